"""The running fleet on a real broker: devices over TLS, jobs, telemetry, content, sudden ends."""

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from sqlalchemy import func, select

from edgepack import messages, topics
from edgepack_fleet.adapters.broker import Address, known_address, prepare
from edgepack_fleet.adapters.mqtt import PIECES, READS, _Client
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.rollup_tables import DeviceRollup
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow, JobRow, OutboxRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web import rollout_views, views
from fleet_rig import Device, Mosquitto, csr, enrol, mosquitto, publisher, running, wait

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "fleet"


@pytest.fixture
def broker(data: Path) -> Iterator[Mosquitto]:
    with mosquitto(data) as found:
        yield found


@pytest.fixture
def fleet(data: Path, broker: Mosquitto) -> Iterator[Service]:
    publisher(data).release()
    with running(data, broker.address) as service:
        yield service


@pytest.fixture
def cam(fleet: Service, broker: Mosquitto) -> Iterator[Device]:
    device = Device(enrol(fleet, "cam"), broker.address)
    device.connect()
    yield device
    device.leave()


def online(fleet: Service, name: str) -> bool:
    with fleet.database.read() as session:
        return bool(session.get_one(DeviceRow, name).online)


def state(fleet: Service, rollout: str) -> str:
    with fleet.database.read() as session:
        found = rollout_views.rollout(session, rollout, fleet.now())
    assert found is not None
    return found.state


def test_a_device_gets_its_job_and_the_rollout_completes(fleet: Service, cam: Device) -> None:
    wait("the birth to arrive", lambda: online(fleet, "cam"))
    assert cam.job() is None
    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
    cam.hears("job/notify")
    job = cam.waits_for_job()
    assert (job.release, job.target) == ("digits@1.0.0", "models/digits/1.0.0/onnx-int8.json")
    assert fleet.director.metadata("cam", "timestamp.json") is not None
    job = cam.update(job, "IN_PROGRESS", state="downloading", progress=0.3)
    cam.update(job, "SUCCEEDED")
    wait("the rollout to complete", lambda: state(fleet, rollout) == "completed")
    with fleet.database.read() as session:
        shown = views.device(session, "cam")
    assert shown is not None
    assert (shown.bundle, shown.desired, shown.target) == ("digits@1.0.0", "digits@1.0.0", "onnx")


def test_telemetry_is_acknowledged_after_it_is_saved_and_counted_once(
    fleet: Service, cam: Device
) -> None:
    def row(seq: int) -> messages.Telemetry:
        return messages.Telemetry(boot="b", seq=seq, start=0.0, end=1.0, inferences=5)

    cam.say("tele", messages.encode_batch([row(0), row(1), row(4)]))
    first = messages.decode(cam.hears("ack")[1], messages.Ack)
    assert (first.boot, first.upto, first.missing) == ("b", 4, ((2, 3),))
    cam.say("tele", messages.encode_batch([row(1), row(2), row(3)]))
    second = messages.decode(cam.hears("ack")[1], messages.Ack)
    assert (second.upto, second.missing) == (4, ())
    with fleet.database.read() as session:
        assert session.scalar(select(func.sum(DeviceRollup.reports))) == 5
        assert session.get_one(DeviceRow, "cam").inferences == 25


def test_metadata_and_content_come_in_blocks(fleet: Service, cam: Device) -> None:
    cam.say("meta", messages.MetaRequest(xfer="m1", repo="image", name="timestamp.json"))
    head = messages.decode(cam.hears("meta/m1/head")[1], messages.Head)
    kind, block = cam.hears("meta/m1/")
    assert (head.status, head.size, kind) == (200, len(block), "meta/m1/0")
    assert block == fleet.images.metadata("timestamp.json")

    cam.say("meta", messages.MetaRequest(xfer="m2", repo="director", name="9.root.json"))
    assert messages.decode(cam.hears("meta/m2/head")[1], messages.Head).status == 404

    content = bytes(range(256)) * 600
    sha256 = hashlib.sha256(content).hexdigest()
    fleet.content.put(sha256, [content])
    request = messages.BlobRequest(xfer="b1", sha256=sha256, size=len(content), start=1, n=8)
    cam.say("blob", request)
    got = dict(cam.hears("blob/b1/") for _ in range(2))
    assert got == {"blob/b1/1": content[65536:131072], "blob/b1/2": content[131072:]}

    refusals = {
        "b2": (messages.BlobRequest(xfer="b2", sha256="0" * 64, size=1, start=0, n=1), 404),
        "b3": (messages.BlobRequest(xfer="b3", sha256=sha256, size=1, start=0, n=1), 416),
        "b4": (
            messages.BlobRequest(xfer="b4", sha256=sha256, size=len(content), start=3, n=1),
            416,
        ),
    }
    for xfer, (wanted, status) in refusals.items():
        cam.say("blob", wanted)
        head = messages.decode(cam.hears(f"blob/{xfer}/head")[1], messages.Head)
        assert head.status == status


def test_what_cannot_be_read_is_counted_and_refused_where_it_has_a_token(
    fleet: Service, cam: Device
) -> None:
    cam.say("tele", b"\xff\x00")
    cam.say("job/get", b'{"token": 5}')
    cam.say("job/update", b'{"token": "t9", "job": 7}')
    cam.say("meta", messages.MetaRequest(xfer="../+/#", repo="image", name="timestamp.json"))
    cam.say("nonsense", b"{}")
    kind, payload = cam.hears("job/update")
    refusal = messages.decode(payload, messages.Rejected)
    assert (kind, refusal.token, refusal.code) == ("job/update/rejected", "t9", "bad_message")
    wait("everything to be counted", lambda: sum(fleet.uplink.refused.values()) >= 3)
    wait("the transfer to be counted", lambda: fleet.transfer.refused["bad_message"] == 1)
    assert cam.job() is None, "the fleet still answers"


def test_a_device_leaves_nothing_behind_on_topics_of_its_making(
    fleet: Service, cam: Device
) -> None:
    cam.say("anything/else", b"{}", retain=True)
    cam.say("tele", b"[]", retain=True)
    assert cam.job() is None
    assert fleet.uplink.refused["unknown_topic"] == 0, "the broker let it through"


def test_blocks_wait_for_a_broker_that_does_not_read(fleet: Service, broker: Mosquitto) -> None:
    assert broker.process is not None
    out: list[int] = []

    def send() -> None:
        for number in range(1500):
            topic = topics.down("nobody", f"blob/x/{number}")
            fleet.link.publish_paced(topic, bytes(topics.BLOCK_SIZE), qos=0)
            out.append(number)

    thread = threading.Thread(target=send)
    os.kill(broker.process.pid, signal.SIGSTOP)
    try:
        thread.start()
        wait("what fits to be sent", lambda: len(out) >= PIECES)
        thread.join(1.0)
        assert thread.is_alive()
        assert len(out) < 1000
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
        thread.join(20)
    assert len(out) == 1500


def test_more_requests_than_fit_are_refused_and_do_not_block_what_else_is_said(
    fleet: Service, broker: Mosquitto, cam: Device
) -> None:
    content = os.urandom(64 * topics.BLOCK_SIZE)
    sha256 = hashlib.sha256(content).hexdigest()
    fleet.content.put(sha256, [content])
    cam.client.unsubscribe(topics.device_filter("cam"))
    cam.client.subscribe([(topics.down("cam", "job/#"), 1)])
    asked = messages.BlobRequest(xfer="b", sha256=sha256, size=len(content), start=0, n=64)
    for _ in range(3000):
        cam.client.publish(topics.up("cam", "blob"), messages.encode(asked), 0)
    assert cam.job() is None
    wait("the requests to be refused", lambda: fleet.transfer.refused["busy"] > 0)


def test_a_clock_that_is_set_makes_nobody_silent(data: Path, broker: Mosquitto) -> None:
    publisher(data).release()
    ahead = [0.0]
    service = Service(Settings(data, broker.address), lambda: time.time() + ahead[0])
    service.start()
    try:
        cam = Device(enrol(service, "cam"), broker.address)
        cam.connect()
        wait("the device to be online", lambda: online(service, "cam"))
        rollout = service.rollouts.create("digits@1.0.0", "lab", "100%", Policy(timeout_s=60))
        job = cam.update(cam.waits_for_job(), "IN_PROGRESS")
        for ahead[0] in (7200.0, -7200.0, 7200.0):
            service.poke()
            time.sleep(0.5)  # some ticks, in each of which the job could be taken for silent
            job = cam.update(job, "IN_PROGRESS")
        cam.update(job, "SUCCEEDED")
        wait("the rollout to complete", lambda: state(service, rollout) == "completed")
        cam.leave()
    finally:
        service.stop()


def test_devices_are_sent_to_where_they_can_reach_the_broker(data: Path, broker: Mosquitto) -> None:
    prepare(data, Pki(data / "pki"), Address("0.0.0.0", 8883))
    assert known_address(data) == Address("127.0.0.1", 8883)
    service = Service(Settings(data, known_address(data), hosts=("fleet.example",)))
    elsewhere = Service(Settings(data, Address("mqtt.example", 1), hosts=("fleet.example",)))
    public = Address("public.example", 8884)
    said = Service(Settings(data, Address("mqtt.example", 1), public_broker=public))
    asked = [broker_of(fleet) for fleet in (service, elsewhere, said)]
    assert asked == [("fleet.example", 8883), ("mqtt.example", 1), ("public.example", 8884)]
    for made in (service, elsewhere, said):
        made.database.close()


def broker_of(fleet: Service) -> tuple[str, int]:
    with fleet.database.write() as session:
        session.merge(GroupRow(id="lab", created=0.0))
    token = fleet.enrolment.create_token("lab", 60, 1)
    key = ec.generate_private_key(ec.SECP256R1())
    reply = fleet.enrolment.enroll(messages.EnrollRequest(secret=token.secret, csr=csr(key)))
    return reply.broker_host, reply.broker_port


def test_one_device_cannot_speak_as_another_nor_hear_it(
    fleet: Service, broker: Mosquitto, cam: Device
) -> None:
    thief = Device(enrol(fleet, "thief"), broker.address)
    thief.connect(client_id="cam")  # the certificate's name counts, not this one
    try:
        thief.client.subscribe([("ep/1/d/cam/dn/#", 1), ("ep/1/d/+/dn/#", 1), ("#", 1)])
        forged = messages.Telemetry(boot="x", seq=0, start=0.0, end=0.0, inferences=10**6)
        thief.client.publish(topics.up("cam", "tele"), messages.encode_batch([forged]), 1)
        thief.client.publish(topics.down("cam", "job/notify"), b"{}", 1)
        thief.say("tele", messages.encode_batch([forged]))
        thief.hears("ack")
        cam.say("tele", messages.encode_batch([forged]))
        heard = [cam.hears("")[0]]
        assert heard == ["ack"], "nothing but its own acknowledgement"
        with fleet.database.read() as session:
            rows = session.scalars(select(DeviceRollup.device_id)).all()
        assert sorted(rows) == ["cam", "thief"]
        assert thief.heard.empty(), "it heard nothing of the other's"
        assert cam.client.is_connected(), "it was not put out by its own name"
    finally:
        thief.leave()


def test_a_stranger_without_a_certificate_does_not_get_in(broker: Mosquitto, data: Path) -> None:
    import ssl

    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.tls_set_context(ssl.create_default_context(cafile=str(data / "pki" / "ca.pem")))
    answers: list[object] = []
    client.on_connect = lambda *args: answers.append(args[3])
    client.on_disconnect = lambda *args: answers.append("closed")
    client.connect(broker.address.host, broker.address.port)
    deadline = time.monotonic() + 5
    while not answers and time.monotonic() < deadline:
        client.loop(0.1)
    assert answers in (["closed"], []) or str(answers[0]) != "Success"


def test_presence_follows_the_connection_that_was_born_last(
    fleet: Service, broker: Mosquitto, cam: Device
) -> None:
    wait("the device to be online", lambda: online(fleet, "cam"))
    cam.say("conn", messages.Conn(online=False, conn="an earlier one"))
    cam.job()  # what it said before has been read by now
    assert online(fleet, "cam"), "an old will is old news"
    cam.forget()
    wait("the will to be told", lambda: not online(fleet, "cam"))
    cam.connect(conn="c2")
    wait("the device to be back", lambda: online(fleet, "cam"))


def test_the_broker_is_killed_in_the_middle(fleet: Service, broker: Mosquitto, cam: Device) -> None:
    wait("the device to be online", lambda: online(fleet, "cam"))
    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
    job = cam.update(cam.waits_for_job(), "IN_PROGRESS")
    broker.kill()
    cam.forget()
    wait("the fleet to notice", lambda: not fleet.link.connected)
    broker.start()
    wait("the fleet to come back", lambda: fleet.link.connected)
    cam.connect(conn="c2")
    assert cam.waits_for_job() == job
    cam.update(job, "SUCCEEDED")
    wait("the rollout to complete", lambda: state(fleet, rollout) == "completed")


def test_what_devices_say_while_the_fleet_is_away_is_not_lost(
    data: Path, broker: Mosquitto
) -> None:
    publisher(data).release()
    with running(data, broker.address) as first:
        cam = Device(enrol(first, "cam"), broker.address)
        cam.connect()
        wait("the device to be online", lambda: online(first, "cam"))
        rollout = first.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
        job = cam.update(cam.waits_for_job(), "IN_PROGRESS")
    update = messages.JobUpdate(token="late", job=job.job, version=job.version, status="SUCCEEDED")
    cam.say("job/update", update)
    with running(data, broker.address) as second:
        # The broker may bring again what the first one had saved, so other answers may come before.
        while (heard := cam.hears("job/update"))[1].find(b"late") < 0:
            assert heard[0] == "job/update/accepted"
        assert heard[0] == "job/update/accepted"
        wait("the rollout to complete", lambda: state(second, rollout) == "completed")
    cam.leave()


def test_a_hint_that_was_saved_but_not_sent_goes_out_after_a_restart(
    data: Path, broker: Mosquitto
) -> None:
    with running(data, broker.address) as first:
        cam = Device(enrol(first, "cam"), broker.address)
        cam.connect()
    from edgepack_fleet import jobrows
    from edgepack_fleet.adapters.database import Database

    database = Database.in_directory(data)
    with database.write() as session:
        session.add(jobrows.hint("cam", time.time()))
    database.close()
    with running(data, broker.address) as second:
        cam.hears("job/notify")
        wait("the outbox to be empty", lambda: not _outbox(second))
    cam.leave()


def _outbox(fleet: Service) -> int:
    with fleet.database.read() as session:
        return session.scalar(select(func.count()).select_from(OutboxRow)) or 0


def test_a_device_that_accepts_and_goes_silent_times_out_and_pauses_the_rollout(
    fleet: Service, cam: Device
) -> None:
    wait("the device to be online", lambda: online(fleet, "cam"))
    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy(timeout_s=0.5))
    cam.update(cam.waits_for_job(), "IN_PROGRESS")
    wait("the rollout to pause", lambda: state(fleet, rollout) == "paused")
    with fleet.database.read() as session:
        assert session.scalars(select(JobRow.status)).all() == ["TIMED_OUT"]
        found = rollout_views.rollout(session, rollout, fleet.now())
    assert found is not None
    assert "timed_out" in found.reason


def test_what_was_left_in_a_lost_connection_holds_nobody_up(tmp_path: Path) -> None:
    """Pieces that a broker never took are not waited for on the next connection."""
    data = tmp_path / "fleet"
    with mosquitto(data) as broker, running(data, broker.address) as service:

        def pieces(count: int) -> threading.Thread:
            def send() -> None:
                for _ in range(count):
                    service.link.publish_paced("ep/1/d/cam/down/blk/1", bytes(65536), qos=1)

            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            return thread

        assert broker.process is not None
        broker.process.send_signal(signal.SIGSTOP)
        stuck = pieces(2 * PIECES)
        wait("pieces to be left over", lambda: len(service.link._pieces) >= PIECES)
        broker.kill()
        stuck.join(20)
        assert not stuck.is_alive()
        broker.start()
        wait("the fleet to be back", lambda: service.link.connected, 60)
        after = pieces(2 * PIECES)
        after.join(20)
        assert not after.is_alive(), "it waits for what will never be out"


def test_a_link_with_much_to_say_reads_and_writes_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library alone reads once for each message on its way; nothing is written meanwhile."""
    client, read = _Client(CallbackAPIVersion.VERSION2, client_id="x"), []
    ours, theirs = socket.socketpair()

    def packet() -> MQTTErrorCode:
        read.append(1)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    with ours, theirs:
        client._sock = ours
        client._out_messages.update(dict.fromkeys(range(5000)))
        monkeypatch.setattr(client, "_packet_read", packet)
        assert client.loop_read() == MQTTErrorCode.MQTT_ERR_SUCCESS
        assert len(read) == READS
        client._sock = None
