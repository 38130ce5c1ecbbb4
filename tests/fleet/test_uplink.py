"""What devices say, read into a real database without a broker in between; fuzzed."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from edgepack import messages, topics
from edgepack.counting import LATENCY_EDGES_MS
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import (
    DeviceRow,
    EventRow,
    JobRow,
    RolloutRow,
    TelemetryRow,
)
from edgepack_fleet.uplink import Answer, Uplink
from fleet_rig import fleet_database

pytestmark = pytest.mark.both_databases


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with fleet_database(database_url, "cam", "other") as found:
        yield found


@pytest.fixture
def uplink(database: Database) -> Uplink:
    return Uplink(database, lambda: 1000.0, keep_raw=True)


def said(kind: str, message: Any, device: str = "cam", **facts: Any) -> Incoming:
    payload = message if isinstance(message, bytes) else msgspec.json.encode(message)
    return Incoming(f"ep/1/d/{device}/up/{kind}", payload, **facts)


def row(seq: int, **facts: Any) -> messages.Telemetry:
    return messages.Telemetry(**({"boot": "b", "seq": seq, "start": 0.0, "end": 1.0} | facts))


def device(database: Database, name: str = "cam") -> DeviceRow:
    with database.read() as session:
        return session.get_one(DeviceRow, name)


def acks(answers: list[Answer]) -> list[messages.Ack]:
    found = [a for a in answers if a.topic.endswith("/dn/ack")]
    return [messages.decode(a.payload, messages.Ack) for a in found]


def give_job(database: Database, state: str = "running", status: str = "QUEUED") -> None:
    with database.write() as session:
        session.add(
            RolloutRow(id="r1", number=1, group_id="lab", release="m@1.0.0", variants=[],
                       waves="100%", policy={}, forgiven=[], state=state, created=0.0, updated=0.0)
        )  # fmt: skip
        session.flush()
        session.add(
            JobRow(id="r1-cam", device_id="cam", rollout_id="r1", wave=0, release="m@1.0.0",
                   target="models/m/1.0.0/onnx-int8.json", status=status, detail={},
                   probation_s=5, timeout_s=60, created=0.0, updated=0.0)
        )  # fmt: skip


def test_one_batch_of_many_devices_is_one_transaction(uplink: Uplink, database: Database) -> None:
    batch = [
        said("tele", messages.encode_batch([row(n, inferences=2) for n in range(40)])),
        said(
            "tele",
            messages.encode_batch(
                [row(40, inferences=2, errors={"deadline": 3, "bad_request": 5})]
            ),
        ),
        said("tele", messages.encode_batch([row(7, inferences=1)]), device="other"),
    ]
    found = {a.topic: messages.decode(a.payload, messages.Ack) for a in uplink.ingest(batch)}
    assert found["ep/1/d/cam/dn/ack"].upto == 40
    assert found["ep/1/d/other/dn/ack"].missing == ((0, 6),)
    cam = device(database)
    assert (cam.inferences, cam.errors) == (82, 3)


def test_rows_that_come_twice_count_once_even_within_one_batch(
    uplink: Uplink, database: Database
) -> None:
    twice = said("tele", messages.encode_batch([row(0, inferences=5), row(0, inferences=5)]))
    for _ in range(3):
        (ack,) = acks(uplink.ingest([twice, twice]))
        assert ack.upto == 0
    assert device(database).inferences == 5


def test_telemetry_and_events_share_their_numbers(uplink: Uplink, database: Database) -> None:
    event = messages.Event(boot="b", seq=1, ts=0.0, type="activated", bundle="m@2.0.0", digest="d")
    (ack,) = acks(
        uplink.ingest([said("tele", messages.encode_batch([row(0), row(2)])), said("evt", [event])])
    )
    assert (ack.upto, ack.missing) == (2, ())
    assert device(database).bundle == "m@2.0.0"
    assert device(database).digest == "d"
    new_boot = said("tele", messages.encode_batch([row(0, boot="c")]))
    (ack,) = acks(uplink.ingest([new_boot]))
    assert (ack.boot, ack.upto) == ("c", 0)


def test_seconds_of_a_slowed_processor_are_kept_as_they_came(
    uplink: Uplink, database: Database
) -> None:
    rows = [row(0, throttled_s=7), row(1)]
    assert len(acks(uplink.ingest([said("tele", messages.encode_batch(rows))]))) == 1
    with database.read() as session:
        bodies = session.scalars(select(TelemetryRow.body).order_by(TelemetryRow.seq)).all()
    assert [body["throttled_s"] for body in bodies] == [7, None]


def test_an_event_may_come_alone_and_tell_the_inventory(uplink: Uplink, database: Database) -> None:
    detail = {"arch": "aarch64", "runtimes": {"tflite": "2.1"}, "something_new": 1}
    event = messages.Event(boot="b", seq=0, ts=0.0, type="inventory", detail=detail)
    uplink.ingest([said("evt", event)])
    assert device(database).inventory["runtimes"] == {"tflite": "2.1"}
    broken = messages.Event(boot="b", seq=1, ts=0.0, type="inventory", detail={"arch": 7})
    assert len(acks(uplink.ingest([said("evt", broken)]))) == 1, "it is saved as an event"
    assert device(database).inventory["arch"] == "aarch64"


def test_birth_and_will(uplink: Uplink, database: Database) -> None:
    birth = messages.Conn(online=True, conn="2", boot="b", agent="0.1", bundle="m@1.0.0")
    old_will, will = messages.Conn(online=False, conn="1"), messages.Conn(online=False, conn="2")
    uplink.ingest([said("conn", birth), said("conn", old_will)])
    assert device(database).online
    uplink.ingest([said("conn", will), said("conn", b"")])
    assert not device(database).online
    assert device(database).bundle == "m@1.0.0"


def test_what_the_broker_had_kept_says_nothing_about_now(
    uplink: Uplink, database: Database
) -> None:
    uplink.ingest([said("conn", messages.Conn(online=True, conn="1"), retained=True)])
    assert (device(database).online, device(database).seen) == (True, 0.0)
    uplink.everybody_offline()
    assert not device(database).online


@pytest.mark.parametrize(
    ("state", "status", "given"),
    [
        ("running", "QUEUED", True),
        ("completed", "QUEUED", True),
        ("paused", "QUEUED", False),
        ("paused", "IN_PROGRESS", True),
        ("running", "SUCCEEDED", False),
    ],
)
def test_which_jobs_are_handed_out(
    uplink: Uplink, database: Database, state: str, status: str, given: bool
) -> None:
    give_job(database, state, status)
    (answer,) = uplink.ingest([said("job/get", messages.JobGet(token="t"))])
    reply = messages.decode(answer.payload, messages.JobReply)
    assert (reply.job is not None) == given
    (empty,) = uplink.ingest([said("job/get", messages.JobGet(token="t"), device="other")])
    assert messages.decode(empty.payload, messages.JobReply).job is None


def test_the_job_of_another_device_is_unknown(uplink: Uplink, database: Database) -> None:
    give_job(database)
    theirs = messages.JobUpdate(token="t", job="r1-cam", version=0, status="SUCCEEDED")
    (answer,) = uplink.ingest([said("job/update", theirs, device="other")])
    assert answer.topic == "ep/1/d/other/dn/job/update/rejected"
    assert messages.decode(answer.payload, messages.Rejected).code == "unknown_job"
    with database.read() as session:
        assert session.get_one(JobRow, "r1-cam").status == "QUEUED"


def test_a_refused_update_comes_with_the_job_as_it_is(uplink: Uplink, database: Database) -> None:
    give_job(database)
    update = messages.JobUpdate(token="t", job="r1-cam", version=5, status="SUCCEEDED")
    (answer,) = uplink.ingest([said("job/update", update)])
    refusal = messages.decode(answer.payload, messages.Rejected)
    assert refusal.code == "version_mismatch"
    assert refusal.job is not None
    assert refusal.job.version == 0


@pytest.mark.parametrize("at_once", [False, True])
def test_the_model_before_is_known_by_what_comes_with_the_end_of_its_job(
    uplink: Uplink, database: Database, *, at_once: bool
) -> None:
    give_job(database, status="IN_PROGRESS")
    counts = (*[0] * 9, 100, *[0] * (len(LATENCY_EDGES_MS) - 9))
    known = messages.Histogram(edges=LATENCY_EDGES_MS, counts=counts)
    old = [
        row(n, start=990.0, end=995.0, bundle="m@0.9.0", inferences=100, latency_ms=known)
        for n in range(5)
    ]
    batch = [
        said("tele", messages.encode_batch(old)),
        said("job/update", messages.JobUpdate(token="t", job="r1-cam", version=0,
                                              status="SUCCEEDED", state="ACTIVE")),
    ]  # fmt: skip
    for part in [batch] if at_once else [[message] for message in batch]:
        uplink.ingest(part)
    with database.read() as session:
        measured = session.get_one(JobRow, "r1-cam").measured
    assert sum(measured["before"]["counts"]) == 500


@pytest.mark.parametrize(
    ("incoming", "cause"),
    [
        (said("tele", b"[{"), "bad_message"),
        (said("tele", b"\x78\x9c\x00"), "bad_message"),
        (said("tele", [{"v": 1, "boot": "b", "seq": 2**60, "start": 0, "end": 0}]), "bad_message"),
        (said("tele", b"[" + b" " * messages.MAX_MESSAGE + b"]"), "bad_message"),
        (said("conn", b"\xff"), "bad_message"),
        (said("nothing", b"{}"), "unknown_topic"),
        (said("tele", b"[]", device="stranger"), "unknown_device"),
        (Incoming("ep/1/g/lab/dn/hint", b""), "unknown_topic"),
    ],
)
def test_what_is_not_taken_is_counted_and_stops_nobody(
    uplink: Uplink, database: Database, incoming: Incoming, cause: str
) -> None:
    good = said("tele", messages.encode_batch([row(0, inferences=1)]))
    assert len(acks(uplink.ingest([incoming, good, incoming]))) == 1
    assert uplink.refused == {cause: 2}
    assert device(database).inferences == 1


def refuse(database: Database, what: str, when: str) -> None:
    """Let the database refuse WHAT (`INSERT ON telemetry`) WHEN."""
    refusal = "BEGIN SELECT RAISE(ABORT, 'no'); END"
    if database.is_shared:
        refusal = "EXECUTE FUNCTION no()"
        with database.engine.begin() as connection:
            body = "BEGIN RAISE EXCEPTION 'no'; END"
            connection.exec_driver_sql(
                f"CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
            )
    trigger = f"CREATE TRIGGER refuse BEFORE {what} FOR EACH ROW WHEN ({when}) {refusal}"
    with database.engine.begin() as connection:
        connection.exec_driver_sql(trigger)


def test_a_message_the_database_refuses_is_dropped_alone(
    uplink: Uplink, database: Database
) -> None:
    refuse(database, "UPDATE ON devices", "NEW.conn = 'bad'")
    bad = said("conn", messages.Conn(online=True, conn="bad"))
    good = said("tele", messages.encode_batch([row(0, inferences=4)]))
    (ack,) = acks(uplink.ingest([bad, good]))
    assert ack.boot == "b"
    assert uplink.refused == {"not_saved": 1}
    assert device(database).inferences == 4


def test_a_row_the_database_refuses_does_not_come_back_with_its_batch(
    uplink: Uplink, database: Database
) -> None:
    refuse(database, "INSERT ON telemetry", "NEW.seq = 1")
    batch = said("tele", messages.encode_batch([row(n, inferences=4) for n in range(3)]))
    (ack,) = acks(uplink.ingest([batch]))
    assert (ack.upto, ack.missing) == (2, ())
    assert uplink.refused == {"not_saved": 1}
    assert (device(database).inferences, count(database, TelemetryRow)) == (8, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": "yesterday", "end": 1},
        {"start": 0, "end": 1, "inferences": -1},
        {"start": 0, "end": 1, "inferences": 2**60},
        {"start": 0, "end": 1, "v": 2},
        {},
    ],
)
def test_a_row_that_is_nonsense_does_not_come_back_with_its_batch(
    uplink: Uplink, database: Database, wrong: dict[str, Any]
) -> None:
    rows = [row(0, inferences=1), {"v": 1, "boot": "b", "seq": 1} | wrong, row(2, inferences=1)]
    for _ in range(2):
        (ack,) = acks(uplink.ingest([said("tele", rows)]))
        assert (ack.upto, ack.missing) == (2, ())
    assert uplink.refused == {"bad_message": 1}
    assert device(database).inferences == 2
    without_a_number = [row(3, inferences=1), {"boot": "b"}, 7]
    (ack,) = acks(uplink.ingest([said("tele", without_a_number)]))
    assert (ack.upto, device(database).inferences) == (3, 3)


def test_counters_stop_before_the_database_does(uplink: Uplink, database: Database) -> None:
    most = {"inferences": 2**53, "errors": {"deadline": 2**53, "runtime_error": 2**53}}
    for first in range(0, 1200, 400):
        rows = [row(n, **most) for n in range(first, first + 400)]
        (ack,) = acks(uplink.ingest([said("tele", messages.encode_batch(rows))]))
        assert ack.upto == first + 399
    assert (device(database).inferences, device(database).errors) == (2**53, 2**53)


KINDS = ["conn", "tele", "evt", "job/get", "job/update", "cert"]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = ["v", "boot", "seq", "start", "end", "ts", "type", "token", "job", "version", "status",
          "online", "conn", "errors", "inferences", "detail", "bundle", "classes"]  # fmt: skip
SHAPED = st.dictionaries(st.sampled_from(FIELDS), JSON)
PAYLOADS = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode()),
    SHAPED.map(lambda value: json.dumps(value).encode()),
    st.lists(SHAPED, max_size=3).map(lambda value: json.dumps(value).encode()),
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.sampled_from(KINDS), PAYLOADS), min_size=1, max_size=4))
def test_no_payload_stops_the_fleet(
    uplink: Uplink, database: Database, payloads: list[tuple[str, bytes]]
) -> None:
    answers = uplink.ingest([said(kind, payload) for kind, payload in payloads])
    assert all(a.topic.startswith("ep/1/d/cam/dn/") for a in answers)
    assert uplink.refused["not_saved"] == 0, "what is read is also saved"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_no_topic_stops_the_fleet(topic: str) -> None:
    found = topics.parse_up(topic)
    assert found is None or topics.DEVICE_ID.fullmatch(found.device)


def count(database: Database, table: Any) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_rows_are_kept_as_they_came(uplink: Uplink, database: Database) -> None:
    full = row(
        0, latency_ms=messages.Histogram(edges=(1.0, 2.0), counts=(1, 2, 3)), classes={"7": 2}
    )
    uplink.ingest([said("tele", [full])])
    with database.read() as session:
        body = session.scalars(select(TelemetryRow.body)).one()
    assert msgspec.convert(body, messages.Telemetry) == full
    assert (count(database, TelemetryRow), count(database, EventRow)) == (1, 0)
