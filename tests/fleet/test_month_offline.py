"""Thirty days without a link, then a bad one: a real outbox, the fleet's real database between."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from edgepack import messages
from edgepack.counting import LATENCY_EDGES_MS
from edgepack.messages import Histogram, Telemetry, decode, encode_batch
from edgepack_agent.adapters.outbox import RESEND_S, Outbox
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup, GroupRollup
from edgepack_fleet.adapters.tables import DeviceRow, TelemetryRow
from edgepack_fleet.uplink import Uplink
from fleet_rig import fleet_database, small_model

DAYS, EVERY_S = 30, 600


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with fleet_database(tmp_path, "cam") as found:
        yield found


class Device:
    """An outbox, and what was really put into it."""

    def __init__(self, path: Path, cap: int) -> None:
        self.path, self.cap, self.now = path, cap, 0.0
        self.truth: Counter[str] = Counter()
        self.dice = random.Random(30)
        self.box = self.opened()

    def opened(self) -> Outbox:
        return Outbox(self.path, max_rows=self.cap, clock=lambda: self.now)

    def restart(self) -> None:
        self.box.close()
        self.box = self.opened()

    def interval(self) -> None:
        count = self.dice.randrange(1, 500)
        bins = [self.dice.randrange(50) for _ in range(len(LATENCY_EDGES_MS) + 1)]
        errors = {"deadline": self.dice.randrange(3)}
        classes = {self.dice.choice("abc"): count}
        start, self.now = self.now, self.now + EVERY_S

        def make(seq: int, lost: int) -> Telemetry:
            return Telemetry(
                boot=self.box.boot, seq=seq, start=start, end=start + EVERY_S, lost=lost,
                bundle="m@1.0.0", digest="d", inferences=count, errors=errors, classes=classes,
                latency_ms=Histogram(edges=LATENCY_EDGES_MS, counts=tuple(bins)),
            )  # fmt: skip

        self.box.add_telemetry(make)
        self.truth += total([(count, errors, classes, bins)])
        assert len(self.box) <= self.cap


def total(rows: list[tuple[int, dict[str, int], dict[str, int], list[int]]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for count, errors, classes, bins in rows:
        found["inferences"] += count
        found.update({f"error {name}": n for name, n in errors.items()})
        found.update({f"class {name}": n for name, n in classes.items()})
        found.update({f"bin {place}": n for place, n in enumerate(bins)})
    return found


def arrived(database: Database) -> Counter[str]:
    with database.read() as session:
        bodies = [row.body for row in session.scalars(select(TelemetryRow))]
    return total(
        [(b["inferences"], b["errors"], b["classes"], b["latency_ms"]["counts"]) for b in bodies]
    )


def added_up(database: Database, kind: type[DeviceRollup | GroupRollup]) -> Counter[str]:
    with database.read() as session:
        rows = session.scalars(select(kind).where(kind.span != EVER)).all()
    return total([(r.inferences, r.reasons, r.classes, r.latency["counts"]) for r in rows])


@pytest.mark.parametrize("cap", [60, pytest.param(1000, marks=pytest.mark.scale)])
def test_sums_are_exact_after_a_month_and_a_link_that_loses_and_repeats(
    tmp_path: Path, database: Database, cap: int
) -> None:
    device = Device(tmp_path / "outbox.db", cap)
    dice = random.Random(7)
    uplink = Uplink(database, lambda: device.now, expected=small_model, keep_raw=True)
    for number in range(DAYS * 86400 // EVERY_S):
        device.interval()
        if number % 500 == 499:
            device.restart()
    kept: list[Incoming] = []
    for _ in range(400):
        device.now += RESEND_S + 1
        sent = [
            Incoming(f"ep/1/d/cam/up/{batch.kind}", encode_batch(batch.rows))
            for batch in device.box.take()
        ]
        kept = [*kept[-5:], *sent]
        heard = [message for message in sent if dice.random() < 0.7]
        heard += dice.sample(kept, min(2, len(kept)))  # again, and late
        dice.shuffle(heard)
        for answer in uplink.ingest(heard):
            if answer.topic.endswith("/dn/ack") and dice.random() < 0.7:
                device.box.acknowledge(decode(answer.payload, messages.Ack))
        if dice.random() < 0.1:
            device.restart()
        if not len(device.box):
            break
    assert len(device.box) == 0
    assert arrived(database) == device.truth
    for kind in (DeviceRollup, GroupRollup):
        assert added_up(database, kind) == device.truth, "counted once, each in its own time"
    with database.read() as session:
        rows = list(session.scalars(select(TelemetryRow)))
        assert session.get_one(DeviceRow, "cam").inferences == device.truth["inferences"]
    assert sum(row.body["lost"] for row in rows) == 0
    assert len(rows) <= cap, "only resolution was lost"
    device.box.close()
