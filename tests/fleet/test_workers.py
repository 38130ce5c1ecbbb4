"""Several workers on one database: who leads, what each counts, what is told in which order."""

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select, update

from edgepack import messages, topics
from edgepack.errors import UsageError
from edgepack_fleet import outbox
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.director import Director
from edgepack_fleet.adapters.embedded import EmbeddedBroker
from edgepack_fleet.adapters.feed import Feed
from edgepack_fleet.adapters.lease import LEASE_S, Lease
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.pki import Pki, worker_name
from edgepack_fleet.adapters.rollup_tables import EVER, GroupRollup
from edgepack_fleet.adapters.tables import DeviceRow, OutboxRow, TelemetryRow
from edgepack_fleet.adapters.worker_tables import LeaseRow
from edgepack_fleet.leadership import Leadership
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.uplink import Uplink
from fleet_rig import Device, enrol, fleet_database, mosquitto, publisher, wait
from pg_rig import Postgres

DEVICES = [f"d{n}" for n in range(8)]


@pytest.fixture
def url(pg: Postgres) -> Iterator[str]:
    found = pg.create(migrated=True)
    yield found
    pg.drop(found)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with fleet_database(url, *DEVICES) as found:
        yield found


def at_once(*work: object) -> None:
    """Do all of WORK in threads of their own; what one raises is raised."""
    failed: list[BaseException] = []

    def run(what: object) -> None:
        try:
            what()  # type: ignore[operator]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(what,)) for what in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def said(device: str, kind: str, message: object) -> Incoming:
    payload = message if isinstance(message, bytes) else msgspec.json.encode(message)
    return Incoming(topics.up(device, kind), payload)


def rows(*numbers: int) -> bytes:
    return messages.encode_batch(
        [
            messages.Telemetry(boot="b", seq=n, start=0.0, end=1.0, inferences=2, bundle="m@1")
            for n in numbers
        ]
    )


@pytest.mark.both_databases
def test_a_lease_has_one_holder_and_ends(database_url: str) -> None:
    with fleet_database(database_url) as database:
        one, two = Lease(database, "leader", "one"), Lease(database, "leader", "two")
        assert one.take()
        assert not two.take()
        assert one.take(), "its holder goes on"
        assert Lease(database, "other", "two").take()
        with database.write() as session:
            now = database.time(session)
            session.execute(update(LeaseRow).values(until=now - 1.0))
        assert not one.is_held()
        assert two.take()
        assert not one.take()
        assert one.is_held(), "by somebody"
        one.give_back()  # it is not its own
        assert not one.take()
        two.give_back()
        assert one.take()


def test_what_two_workers_hear_of_the_same_devices_is_counted_once(database: Database) -> None:
    uplinks = [Uplink(database, lambda: 1000.0, keep_raw=True) for _ in range(4)]

    def hear(uplink: Uplink, turn: int) -> None:
        order = DEVICES[turn:] + DEVICES[:turn]
        for first in range(0, 60, 3):
            # Every row comes to two workers, as after a lost acknowledgement.
            mine = range(first, first + 3) if turn % 2 else range(57 - first, 60 - first)
            uplink.ingest([said(device, "tele", rows(*mine)) for device in order])

    at_once(*(lambda u=u, n=n: hear(u, n) for n, u in enumerate(uplinks)))
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(TelemetryRow)) == 60 * len(DEVICES)
        assert set(session.scalars(select(DeviceRow.inferences))) == {120}
        ever = select(func.sum(GroupRollup.inferences)).where(GroupRollup.span == EVER)
        assert session.scalar(ever) == 120 * len(DEVICES)
    assert sum((uplink.refused for uplink in uplinks), Counter()) == {}


def test_who_follows_the_changes_misses_none_of_several_writers(database: Database) -> None:
    feed = Feed(database, lambda: 1.0)
    uplinks = [Uplink(database, lambda: 1000.0) for _ in range(3)]
    over, seen = threading.Event(), []

    def follow() -> None:
        while True:
            last = over.is_set()
            for change in feed.after(seen[-1][0] if seen else 0, 1000):
                seen.append((change.id, change.subject))
            if last:
                return

    def flap(uplink: Uplink, device: str) -> None:
        for n in range(30):
            conn = messages.Conn(online=n % 2 == 0, conn="c", boot="b")
            uplink.ingest([said(device, "conn", conn)])

    reader = threading.Thread(target=follow)
    reader.start()
    try:
        at_once(*(lambda u=u, d=d: flap(u, d) for u, d in zip(uplinks, DEVICES, strict=False)))
    finally:
        over.set()
        reader.join()
    assert Counter(subject for _, subject in seen) == {f"devices/{d}": 30 for d in DEVICES[:3]}
    numbers = [number for number, _ in seen]
    assert numbers == sorted(set(numbers))


def test_an_event_that_another_has_overtaken_changes_nothing(database: Database) -> None:
    def happened(seq: int, kind: str, bundle: str) -> Incoming:
        event = messages.Event(boot="b", seq=seq, ts=1.0, type=kind, bundle=bundle)
        return said("d0", "evt", event)

    one, two = (Uplink(database, lambda: 1000.0) for _ in range(2))
    one.ingest([happened(4, "rolled_back", "m@1.0.0"), said("d0", "tele", rows(5))])
    two.ingest([happened(3, "activated", "m@1.1.0")])
    with database.read() as session:
        assert session.get_one(DeviceRow, "d0").bundle == "m@1.0.0"
    two.ingest([happened(7, "activated", "m@1.2.0"), happened(6, "camera", "")])
    with database.read() as session:
        assert session.get_one(DeviceRow, "d0").bundle == "m@1.2.0"
    later, earlier = happened(9, "activated", "m@1.4.0"), happened(8, "activated", "m@1.3.0")
    one.ingest([later, earlier, said("d0", "tele", rows(10))])
    with database.read() as session:
        assert session.get_one(DeviceRow, "d0").bundle == "m@1.4.0"


def test_a_worker_with_another_data_directory_is_refused(tmp_path: Path, url: str) -> None:
    for _ in range(2):
        Service(Settings(tmp_path / "one", Address("127.0.0.1", 1), url)).database.close()
    (tmp_path / "one" / "secret").unlink()  # all access tokens are revoked
    Service(Settings(tmp_path / "one", Address("127.0.0.1", 1), url)).database.close()
    with pytest.raises(UsageError) as caught:
        Service(Settings(tmp_path / "two", Address("127.0.0.1", 1), url))
    assert caught.value.reason == "other_fleet"


def test_each_message_is_sent_by_one_worker(database: Database) -> None:
    with database.write() as session:
        session.add_all(OutboxRow(topic=f"t/{n}", payload=b"", created=0.0) for n in range(1000))
    sent: list[str] = []

    def publish(outgoing: object) -> list[bool]:
        topics_ = [topic for topic, _ in outgoing]  # type: ignore[attr-defined]
        sent.extend(topics_)
        return [True] * len(topics_)

    def drain() -> None:
        def left() -> int:
            with database.read() as session:
                return session.scalar(select(func.count()).select_from(OutboxRow)) or 0

        while left():
            outbox.empty(database, publish)

    at_once(drain, drain, drain)
    assert sorted(sent) == sorted(f"t/{n}" for n in range(1000))


def test_a_message_the_broker_did_not_take_stays(database: Database) -> None:
    with database.write() as session:
        session.add_all(OutboxRow(topic=f"t/{n}", payload=b"", created=0.0) for n in range(3))
    outbox.empty(database, lambda outgoing: [topic != "t/1" for topic, _ in outgoing])
    with database.read() as session:
        assert session.scalars(select(OutboxRow.topic)).all() == ["t/1"]


def test_a_director_and_a_pki_are_made_once(tmp_path: Path) -> None:
    made: list[Director] = []
    keys: list[Pki] = []
    at_once(*[lambda: made.append(Director(tmp_path / "director"))] * 4)
    at_once(*[lambda: keys.append(Pki(tmp_path / "pki", client="fleet.2"))] * 4)
    assert len({director.root() for director in made}) == 1
    assert len(list((tmp_path / "director" / "root").glob("*.root.json"))) == 1
    keys[0].announce_next()
    keys[0].switch()
    for pki in keys[1:]:
        pki.look()
    assert {pki.issuing for pki in keys} == {"ca-2"}
    assert "server" in keys[1].keep_fresh(), "it is another one, whoever has made it"


@contextlib.contextmanager
def worker(
    data: Path, url: str, broker: Address, number: int, *, linked: bool = True
) -> Iterator[Service]:
    service = Service(Settings(data, broker, url, worker=worker_name(number)))
    service.start()
    try:
        wait("the worker to reach its broker", lambda: service.link.connected or not linked)
        yield service
    finally:
        service.stop()


def is_online(database: Database, name: str) -> bool:
    with database.read() as session:
        return session.get_one(DeviceRow, name).online


def served(one: Service, two: Service, device: Device, blob: bytes) -> None:
    """Check that DEVICE is served, by either worker."""
    digest = hashlib.sha256(blob).hexdigest()
    one.content.put(digest, [blob])
    for n in range(20):
        device.say("tele", rows(n))
        device.say(
            "blob",
            messages.BlobRequest(sha256=digest, start=0, n=1, size=len(blob), xfer=f"x{n}"),
        )
    heard = {device.hears("blob")[1] for _ in range(20)}
    assert heard == {blob}

    def counted() -> bool:
        with two.database.read() as session:
            return session.get_one(DeviceRow, device.name).inferences == 40

    wait("all rows to be counted", counted)


@pytest.mark.mosquitto
def test_two_workers_share_the_work_and_one_follows_the_other(tmp_path: Path, url: str) -> None:
    data = tmp_path / "fleet"
    publisher(data)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(mosquitto(data))
        two = stack.enter_context(worker(data, url, broker.address, 2))
        wait("a leader", lambda: two.leadership.held)
        with worker(data, url, broker.address, 1) as one:
            device = Device(enrol(one, "cam"), broker.address)
            device.connect()
            stack.callback(device.leave)
            served(one, two, device, b"blob" * 100)
            wait("the birth", lambda: is_online(two.database, "cam"))
            assert not one.leadership.held
            two.leadership.stop()
            one.leadership.poke()
            wait("another leader", lambda: one.leadership.held)
            device.forget()
            wait("the will", lambda: not is_online(two.database, "cam"))


@pytest.mark.scale
def test_a_leader_that_loses_its_broker_leaves_it_to_another(database: Database) -> None:
    reach = {"one": True, "two": True}
    one, two = (
        Leadership(Lease(database, "leader", name), lambda n=name: reach[n], lambda leads: None)
        for name in reach
    )
    with contextlib.ExitStack() as stack:
        for each in (one, two):
            stack.callback(each.stop)
        one.start()
        wait("a leader", lambda: one.held)
        two.start()
        reach["one"] = False
        wait("another leader", lambda: two.held, 3 * LEASE_S)
        assert not one.held
        reach["two"] = False
        wait("nobody", lambda: not two.is_anybodys, 3 * LEASE_S)
        assert not one.held
        assert not two.held
        reach["one"] = True
        wait("the broker to be back", lambda: one.held and two.is_anybodys)


def test_without_a_broker_one_worker_keeps_what_is_theirs(tmp_path: Path, url: str) -> None:
    data = tmp_path / "fleet"
    publisher(data)
    nobody = Address("127.0.0.1", 1)
    with contextlib.ExitStack() as stack:
        one, two = (
            stack.enter_context(worker(data, url, nobody, number, linked=False))
            for number in (1, 2)
        )
        wait("a keeper", lambda: one.upkeep.held or two.upkeep.held)
        assert one.upkeep.held != two.upkeep.held
        keeper, other = (one, two) if one.upkeep.held else (two, one)
        assert keeper.alerts.leads()
        assert not other.alerts.leads()
        assert not one.leadership.held
        assert not two.leadership.held
        keeper.upkeep.stop()
        other.upkeep.poke()
        wait("another keeper", other.webhooks.leads)


@pytest.mark.scale
@pytest.mark.mosquitto
def test_a_broker_that_divides_nothing_tells_the_leader(tmp_path: Path, url: str) -> None:
    data = tmp_path / "fleet"
    publisher(data)
    with contextlib.ExitStack() as stack:
        broker = EmbeddedBroker(data, Pki(data / "pki"))
        broker.start()
        stack.callback(broker.stop)
        two = stack.enter_context(worker(data, url, broker.address, 2))
        one = stack.enter_context(worker(data, url, broker.address, 1))
        wait("a leader", lambda: one.leadership.held or two.leadership.held)
        device = Device(enrol(one, "cam"), broker.address)
        device.connect()
        stack.callback(device.leave)
        served(one, two, device, b"blob" * 100)
        wait("the birth", lambda: is_online(two.database, "cam"))
