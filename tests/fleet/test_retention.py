"""What is old becomes coarser, or goes; no count is lost before its time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from edgepack import messages
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup, GroupRollup
from edgepack_fleet.adapters.tables import ChangeRow, DeviceRow, EventRow, StreamRow, TelemetryRow
from edgepack_fleet.core.keeping import Keeping
from edgepack_fleet.core.slots import DAY, FINE, HOUR
from edgepack_fleet.core.sums import total
from edgepack_fleet.retention import AT_ONCE, Retention
from edgepack_fleet.rollups import sums_of
from edgepack_fleet.uplink import Uplink
from fleet_rig import fleet_database, latencies, mosquitto, running, small_model, wait

pytestmark = pytest.mark.both_databases
NOW = 1_790_000_000.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with fleet_database(database_url, "cam") as found:
        yield found


def report(database: Database, count: int, first: float, every: float, boot: str = "b") -> None:
    rows = [
        messages.Telemetry(
            boot=boot, seq=n, start=first + n * every, end=first + n * every + 1, inferences=n,
            classes={"a": n}, bundle="m@1", digest="d",
            latency_ms=latencies({9999.0: n, 20000.0: 1}),
        )
        for n in range(count)
    ]  # fmt: skip
    for place in range(0, count, 200):
        payload = messages.encode_batch(rows[place : place + 200])
        Uplink(database, lambda: NOW, expected=small_model, keep_raw=True).ingest(
            [Incoming("ep/1/d/cam/up/tele", payload)]
        )


def spans(database: Database) -> dict[int, int]:
    with database.read() as session:
        rows = session.scalars(select(DeviceRollup.span)).all()
    return {span: rows.count(span) for span in sorted(set(rows))}


def test_slots_become_hours_and_days_and_no_count_is_lost(database: Database) -> None:
    report(database, AT_ONCE + 300, NOW - 100 * DAY, 4 * HOUR)
    with database.read() as session:
        before = total(sums_of(row) for row in session.scalars(select(DeviceRollup)))
    Retention(database, Keeping(), lambda: NOW).run()
    found = spans(database)
    assert set(found) == {FINE, HOUR, DAY}
    for kind in (DeviceRollup, GroupRollup):
        with database.read() as session:
            rows = session.scalars(select(kind).where(kind.span != EVER)).all()
        assert total(sums_of(row) for row in rows) == before
        for row in rows:
            age = NOW - row.start
            assert row.span == DAY or age <= (Keeping().fine_days + 1) * DAY or row.span == HOUR
            assert row.span != FINE or age <= (Keeping().fine_days + 1 / 24) * DAY
    Retention(database, Keeping(), lambda: NOW).run()
    assert spans(database) == found, "a second turn changes nothing"


def test_what_was_counted_over_all_time_stays(database: Database) -> None:
    report(database, 10, NOW - 9 * DAY, HOUR)
    Retention(database, Keeping(), lambda: NOW + 900 * DAY).run()
    Retention(database, Keeping(), lambda: NOW + 900 * DAY).run()
    assert spans(database) == {}
    with database.read() as session:
        (row,) = session.scalars(select(GroupRollup))
    assert (row.span, row.inferences) == (EVER, sum(range(10)))


def test_a_late_report_is_folded_like_the_others(database: Database) -> None:
    report(database, 3, NOW - 95 * DAY, 10, boot="b")
    retention = Retention(database, Keeping(), lambda: NOW)
    retention.run()
    report(database, 3, NOW - 95 * DAY, 10, boot="c")
    retention.run()
    retention.run()
    with database.read() as session:
        (row,) = session.scalars(select(DeviceRollup))
    assert (row.span, row.reports, row.classes) == (DAY, 6, {"a": 6})


def test_rows_go_when_they_are_old(database: Database) -> None:
    report(database, 2, NOW, 1, boot="now")
    report(database, 2, NOW, 1, boot="old")
    event = messages.Event(boot="now", seq=9, ts=NOW, type="started")
    Uplink(database, lambda: NOW).ingest([Incoming("ep/1/d/cam/up/evt", messages.encode(event))])
    with database.write() as session:
        session.get_one(DeviceRow, "cam").boot = "now"
        session.add(ChangeRow(time=NOW, type="t", subject="s", data={}))

    def left(days: float) -> dict[str, int]:
        Retention(database, Keeping(raw_days=3), lambda: NOW + days * DAY).run()
        with database.read() as session:
            tables = (TelemetryRow, EventRow, ChangeRow, StreamRow)
            return {t.__tablename__: len(session.scalars(select(t)).all()) for t in tables}

    everything = {"telemetry": 4, "events": 1, "changes": 1, "streams": 2}
    assert left(2) == everything
    assert left(4) == everything | {"telemetry": 0}
    assert left(31) == everything | {"telemetry": 0, "changes": 0}
    assert left(401) == {"telemetry": 0, "events": 0, "changes": 0, "streams": 2}
    assert left(801)["streams"] == 1, "that of the boot a device is in is never forgotten"


@pytest.mark.mosquitto
def test_a_fleet_forgets_by_itself(tmp_path: Path) -> None:
    data = tmp_path / "fleet"
    with mosquitto(data) as broker, running(data, broker.address) as service:
        database = service.database
        with database.write() as session:
            session.add(ChangeRow(time=1.0, type="t", subject="s", data={}))
    with mosquitto(data) as broker, running(data, broker.address) as service:

        def left() -> bool:
            with service.database.read() as session:
                return session.scalar(select(ChangeRow).where(ChangeRow.type == "t")) is not None

        wait("the old change to go", lambda: not left())


def test_who_is_told_to_stop_goes_on_later(database: Database) -> None:
    report(database, AT_ONCE + 300, NOW - 100 * DAY, HOUR)
    retention, asked = Retention(database, Keeping(), lambda: NOW), []
    some = retention.run(lambda seconds: asked.append(seconds) or False)
    assert 0 < some < retention.run()
    assert retention.run() == 0
