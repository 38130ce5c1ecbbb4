"""A real outbox and the fleet's real database, with all between them that can go wrong.

Every interval is marked by an error of its own name. Marks survive adding up, so that of each
single interval it is known where it is: waiting, arrived, or given up and reported.
"""

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import select

from edgepack.messages import Ack, Histogram, Telemetry, decode, encode_batch
from edgepack_agent.adapters.outbox import RESEND_S, Batch, Outbox
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow, TelemetryRow
from edgepack_fleet.uplink import Uplink

Fate = Literal["arrives", "lost"]
FATES = st.lists(st.sampled_from(["arrives", "lost"]), max_size=8)


class OutboxAndFleet(RuleBasedStateMachine):
    """What a device has counted is at the fleet once, on the device, or reported as lost."""

    @initialize(cap=st.integers(3, 8))
    def begin(self, cap: int) -> None:
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(TemporaryDirectory()))
        self.database = self.stack.enter_context(contextlib.closing(with_a_device(self.folder)))
        self.uplink = Uplink(self.database, lambda: 0.0, keep_raw=True)
        self.cap, self.now = cap, 0.0
        self.truth: Counter[str] = Counter()
        self.given_up: set[str] = set()
        self.sent: list[Incoming] = []
        self.acks: list[Ack] = []
        self.box = self.opened()

    def opened(self) -> Outbox:
        return Outbox(self.folder / "outbox.db", max_rows=self.cap, clock=lambda: self.now)

    @rule(what=st.lists(st.sampled_from("aab!"), min_size=1, max_size=9), count=st.integers(0, 9))
    def happen(self, what: list[str], count: int) -> None:
        """Let intervals of the models a and b go by, and events (!) happen."""
        for each in what:
            if each == "!":
                self.put(lambda: self.box.add_event(0.0, "activated"))
            else:
                self.count(each, count)

    def count(self, digest: str, count: int) -> None:
        mark = f"i{len(self.marks())}"
        self.truth += Counter({mark: 1, "inferences": count, f"class {digest}": count})
        self.put(lambda: self.box.add_telemetry(self.row(digest, count, {mark: 1})))

    def row(self, digest: str, inferences: int, errors: dict[str, int]) -> Any:
        def make(seq: int, lost: int) -> Telemetry:
            return Telemetry(
                boot=self.box.boot, seq=seq, start=0.0, end=1.0, lost=lost, digest=digest,
                inferences=inferences, errors=errors, classes={digest: inferences},
                latency_ms=Histogram(edges=(1.0, 2.0), counts=(inferences, 0, 1)),
            )  # fmt: skip

        return make

    def put(self, add: Callable[[], None]) -> None:
        """Do ADD, and note what the outbox gives up for it."""
        before = self.waiting()
        add()
        self.given_up |= before - self.waiting()

    @rule(by_hand=st.booleans(), again=st.booleans(), fates=FATES)
    def send(self, by_hand: bool, again: bool, fates: list[Fate]) -> None:
        """Send what is due, or all there is, as an export does; some of it arrives."""
        self.now += RESEND_S + 1 if again else 0
        batches = self.box.everything() if by_hand else self.box.take()
        self.travel([message(batch) for batch in batches], fates)

    @rule(data=st.data(), fates=FATES)
    def arrive_late(self, data: st.DataObject, fates: list[Fate]) -> None:
        """Let messages arrive that have been on their way for long, or have arrived before."""
        if self.sent:
            messages = data.draw(st.lists(st.sampled_from(self.sent), max_size=4))
            self.travel(messages, fates)

    def travel(self, messages: list[Incoming], fates: list[Fate]) -> None:
        fate = iter(fates)
        self.sent = [*self.sent, *messages][-20:]
        heard = [each for each in messages if next(fate, "arrives") == "arrives"]
        answers = [decode(each.payload, Ack) for each in self.uplink.ingest(heard)]
        self.acks = [*self.acks, *answers][-20:]
        for ack in answers:
            if next(fate, "arrives") == "arrives":
                self.box.acknowledge(ack)

    @rule(data=st.data())
    def acknowledge_late(self, data: st.DataObject) -> None:
        if self.acks:
            self.box.acknowledge(data.draw(st.sampled_from(self.acks)))

    @rule(data=st.data())
    def carry(self, data: st.DataObject) -> None:
        """Bring a file of an export to the fleet by hand, which is not answered."""
        if self.sent:
            file = data.draw(st.sampled_from(self.sent))
            assert self.uplink.carried("cam", file.topic.split("/")[-1], file.payload) == ""

    @rule(how=st.sampled_from(["link", "power", "power", "past"]))
    def lose(self, how: str) -> None:
        """Lose the link, the power, or what the device knew of its past."""
        if how == "link":
            self.box.link_lost()
        elif how == "power":
            self.box.close()
            self.box = self.opened()
        else:
            self.box.new_boot()

    def marks(self) -> set[str]:
        return {name for name in self.truth if name.startswith("i") and name != "inferences"}

    def waiting(self) -> set[str]:
        rows = [body for _, _, kind, body, _ in self.box._rows(-1) if kind == "tele"]
        return {m for body in rows for m in msgspec.json.decode(body, type=Telemetry).errors}

    def arrived(self) -> list[dict[str, Any]]:
        with self.database.read() as session:
            return [row.body for row in session.scalars(select(TelemetryRow))]

    @invariant()
    def everything_is_somewhere_and_nothing_is_twice(self) -> None:
        arrived = Counter(mark for body in self.arrived() for mark in body["errors"])
        assert len(self.box) <= self.cap
        assert set(arrived.values()) <= {1}
        assert self.marks() - arrived.keys() - self.waiting() <= self.given_up

    def teardown(self) -> None:
        """Give the device a good link at last."""
        self.count("a", 1)  # it says what was lost
        for _ in range(20):
            self.now += RESEND_S + 1
            for answer in self.uplink.ingest([message(batch) for batch in self.box.take()]):
                self.box.acknowledge(decode(answer.payload, Ack))
        assert len(self.box) == 0
        rows, found = self.arrived(), Counter[str]()
        for body in rows:
            found.update(body["errors"])
            found["inferences"] += body["inferences"]
            found.update({f"class {name}": n for name, n in body["classes"].items()})
            assert sum(body["latency_ms"]["counts"]) == body["inferences"] + len(body["errors"])
        missing = self.marks() - found.keys()
        assert missing <= self.given_up
        assert sum(body["lost"] for body in rows) > 0 if missing else +found == +self.truth
        self.box.close()
        self.stack.close()


def message(batch: Batch) -> Incoming:
    return Incoming(f"ep/1/d/cam/up/{batch.kind}", encode_batch(batch.rows))


def with_a_device(folder: Path) -> Database:
    database = Database.in_directory(folder)
    database.migrate()
    with database.write() as session:
        session.add(GroupRow(id="lab", created=0.0))
        session.flush()
        session.add(
            DeviceRow(id="cam", group_id="lab", enrolled=0.0, certificate_serial="1", inventory={})
        )
    return database


class TestOutboxAndFleet(OutboxAndFleet.TestCase):
    """Fewer examples than these do not find rows on the wire that are added up."""

    settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
    pytestmark = pytest.mark.soak
