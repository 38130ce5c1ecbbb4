"""The outbox against a fleet that loses, repeats and acknowledges late: sums stay exact."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepack.counting import CONFIDENCE_EDGES, LATENCY_EDGES_MS, MAX_LABEL
from edgepack.messages import (
    MAX_MESSAGE,
    MAX_SPANS,
    Ack,
    Event,
    Histogram,
    Telemetry,
    decode_batch,
    encode_batch,
)
from edgepack_agent.adapters.allowance import DAY_S, KB, Allowance
from edgepack_agent.adapters.outbox import (
    BATCH,
    OVERTAKEN,
    REMEMBERED,
    RESEND_S,
    WINDOW,
    Outbox,
)
from edgepack_agent.adapters.reports import Reports
from edgepack_agent.core.effects import Publish
from edgepack_agent.core.telemetry import MAX_NAMES, Tally, add_rows
from edgepack_agent.runner.statistics import Statistics
from edgepack_fleet.core.stream import Stream, absorb


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Fleet:
    """What a fleet has committed, by the very rule of the fleet."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.rows: list[Telemetry | Event] = []

    def take(self, box: Outbox) -> None:
        for batch in box.take():
            kind = Telemetry if batch.kind == "tele" else Event
            self.receive(decode_batch(encode_batch(batch.rows), kind))  # type: ignore[arg-type]

    def receive(self, rows: list[Telemetry | Event]) -> None:
        for row in rows:
            gone = row.supersedes if isinstance(row, Telemetry) else ()
            stream, fresh = absorb(self.streams.get(row.boot, Stream()), [row.seq], gone)
            self.streams[row.boot] = stream
            self.rows += [row] if fresh else []

    def acks(self) -> list[Ack]:
        return [Ack(boot=b, upto=s.upto, missing=s.missing) for b, s in self.streams.items()]

    def inferences(self) -> int:
        return sum(row.inferences for row in self.rows if isinstance(row, Telemetry))

    def lost(self) -> int:
        return sum(row.lost for row in self.rows if isinstance(row, Telemetry))


def telemetry(box: Outbox, inferences: int, digest: str = "d") -> Callable[[int, int], Telemetry]:
    def make(seq: int, lost: int) -> Telemetry:
        return Telemetry(
            boot=box.boot,
            seq=seq,
            start=float(seq),
            end=seq + 1.0,
            digest=digest,
            inferences=inferences,
            errors={"deadline": 1},
            latency_ms=Histogram(edges=(1.0,), counts=(inferences, 0)),
            lost=lost,
        )

    return make


def drain(box: Outbox, fleet: Fleet, clock: Clock) -> None:
    for _ in range(200):
        clock.now += RESEND_S + 1
        fleet.take(box)
        for ack in fleet.acks():
            box.acknowledge(ack)
        if not len(box):
            return
    raise AssertionError(f"{len(box)} rows never left")


STEPS = st.lists(
    st.sampled_from(["row", "row", "row", "event", "send", "lose", "ack", "cut", "restart"]),
    max_size=60,
)


class Story:
    """A device and its fleet, and what the device has put into its outbox so far."""

    def __init__(self, path: Path, cap: int) -> None:
        self.path, self.cap = path, cap
        self.clock, self.fleet = Clock(), Fleet()
        self.box = self.opened()
        self.made = self.events = self.number = 0

    def opened(self) -> Outbox:
        return Outbox(self.path, max_rows=self.cap, clock=self.clock)

    def row(self) -> None:
        self.number += 1
        self.box.add_telemetry(telemetry(self.box, self.number))
        self.made += self.number

    def event(self) -> None:
        self.box.add_event(1.0, "activated")
        self.events += 1

    def send(self) -> None:
        self.fleet.take(self.box)

    def lose(self) -> None:
        self.box.take()

    def ack(self) -> None:
        for ack in self.fleet.acks():
            self.box.acknowledge(ack)

    def cut(self) -> None:
        self.box.link_lost()

    def restart(self) -> None:
        self.box.close()
        self.box = self.opened()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(4, 40))
def test_every_inference_arrives_once_or_is_counted_as_lost(steps: list[str], cap: int) -> None:
    with TemporaryDirectory() as name:
        story = Story(Path(name) / "outbox.db", cap)
        for step in steps:
            getattr(story, step)()
            assert len(story.box) <= cap
        for _ in range(2):
            drain(story.box, story.fleet, story.clock)
            story.box.add_telemetry(telemetry(story.box, 0))  # tells what was lost
        drain(story.box, story.fleet, story.clock)
        story.box.close()
        arrived = [row for row in story.fleet.rows if isinstance(row, Event)]
        if story.fleet.lost() == 0:
            assert story.fleet.inferences() == story.made
            assert len(arrived) == story.events
        else:
            assert story.fleet.inferences() <= story.made


def test_a_long_time_offline_costs_resolution_and_no_counts(tmp_path: Path) -> None:
    clock, fleet = Clock(), Fleet()
    box = Outbox(tmp_path / "outbox.db", max_rows=20, clock=clock)
    for _ in range(500):
        box.add_telemetry(telemetry(box, 3))
        assert len(box) <= 20
    box.add_event(1.0, "activated")
    drain(box, fleet, clock)
    assert fleet.inferences() == 1500
    assert [stream.missing for stream in fleet.streams.values()] == [()], "nothing is waited for"
    assert fleet.lost() == 0
    rows = [row for row in fleet.rows if isinstance(row, Telemetry)]
    assert sum(sum(row.errors.values()) for row in rows) == 500
    assert sum(sum(row.latency_ms.counts) for row in rows if row.latency_ms) == 1500
    assert (rows[0].start, rows[-1].end) == (0.0, 500.0)
    box.close()


def test_rows_of_two_bundles_are_never_added_up(tmp_path: Path) -> None:
    clock, fleet = Clock(), Fleet()
    box = Outbox(tmp_path / "outbox.db", max_rows=6, clock=clock)
    for digest in "aabbab":
        box.add_telemetry(telemetry(box, 1, digest))
    box.add_telemetry(telemetry(box, 1, "c"))
    drain(box, fleet, clock)
    found = {d: sum(r.inferences for r in fleet.rows if r.digest == d) for d in "abc"}
    assert found == {"a": 3, "b": 3, "c": 1}
    box.close()


def test_what_was_on_the_wire_is_not_changed_but_its_loss_is_told(tmp_path: Path) -> None:
    clock, fleet = Clock(), Fleet()
    box = Outbox(tmp_path / "outbox.db", max_rows=3, clock=clock)
    for _ in range(3):
        box.add_telemetry(telemetry(box, 1))
    box.take()  # sent, and nobody knows whether it arrived
    box.add_telemetry(telemetry(box, 1))
    drain(box, fleet, clock)
    box.add_telemetry(telemetry(box, 0))
    drain(box, fleet, clock)
    assert fleet.inferences() == 3
    assert fleet.lost() == 1
    box.close()


def test_a_row_waits_for_its_acknowledgement_before_it_is_sent_again(tmp_path: Path) -> None:
    clock = Clock()
    box = Outbox(tmp_path / "outbox.db", clock=clock)
    box.add_event(1.0, "activated")
    assert len(box.take()) == 1
    assert box.take() == []
    clock.now += RESEND_S + 1
    assert len(box.take()) == 1
    box.link_lost()
    assert len(box.take()) == 1
    box.acknowledge(Ack(boot=box.boot, upto=0, missing=((0, 0),)))
    assert len(box.take()) == 1, "what the fleet misses goes at once"
    box.acknowledge(Ack(boot="another", upto=99))
    assert len(box) == 1
    box.acknowledge(Ack(boot=box.boot, upto=0))
    assert len(box) == 0
    box.close()


def test_the_window_and_the_messages_are_bounded(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox.db", clock=Clock())
    for number in range(WINDOW + 50):
        box.add_event(1.0, "x", detail={"text": "y" * 4000, "n": number})
    batches = box.take()
    assert sum(len(batch.rows) for batch in batches) == WINDOW
    assert all(len(batch.rows) <= BATCH for batch in batches)
    assert all(len(msgspec.json.encode(batch.rows)) <= MAX_MESSAGE for batch in batches)
    assert box.take() == []
    box.close()


def test_numbers_go_on_after_a_restart_and_a_damaged_outbox_is_a_new_boot(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    box = Outbox(path)
    box.add_event(1.0, "activated")
    boot = box.boot
    box.close()
    again = Outbox(path)
    again.add_event(1.0, "activated")
    rows = [msgspec.json.decode(row, type=Event) for batch in again.take() for row in batch.rows]
    assert [(row.boot, row.seq) for row in rows] == [(boot, 0), (boot, 1)]
    again.close()
    for leftover in tmp_path.glob("outbox.db-*"):
        leftover.unlink()
    path.write_bytes(b"rubbish" * 1000)
    fresh = Outbox(path)
    assert fresh.lost_database
    assert fresh.boot != boot
    fresh.close()


def test_a_new_boot_begins_its_own_numbers_and_keeps_the_old_rows(tmp_path: Path) -> None:
    clock, fleet = Clock(), Fleet()
    box = Outbox(tmp_path / "outbox.db", clock=clock)
    box.add_telemetry(telemetry(box, 5))
    box.new_boot()
    box.add_telemetry(telemetry(box, 7))
    drain(box, fleet, clock)
    assert fleet.inferences() == 12
    assert [stream.upto for stream in fleet.streams.values()] == [0, 0]
    box.close()
    with sqlite3.connect(tmp_path / "outbox.db") as database:
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (0,)
    database.close()


def test_numbers_that_were_thrown_away_are_named_once_and_not_in_another_boot(
    tmp_path: Path,
) -> None:
    box = Outbox(tmp_path / "outbox.db", max_rows=3)
    for digest in "abcd":  # nothing can be added up: the oldest goes
        box.add_telemetry(telemetry(box, 1, digest))
    rows = [msgspec.json.decode(body, type=Telemetry) for _, _, _, body, _ in box._rows(-1)]
    assert [(row.seq, row.supersedes) for row in rows] == [(1, ()), (2, ()), (3, ((0, 0),))]
    box.add_event(1.0, "activated")
    box.new_boot()
    box.add_telemetry(telemetry(box, 1, "e"))
    newest = msgspec.json.decode(box._rows(-1)[-1][3], type=Telemetry)
    assert (newest.seq, newest.supersedes) == (0, ())
    box.close()


def test_an_event_that_is_told_once_is_told_once_for_good(tmp_path: Path) -> None:
    box, fleet = Outbox(tmp_path / "outbox.db"), Fleet()
    for name in ("job-1", "job-1", "job-2"):
        box.add_event(1.0, "activated", once=name)
    box.add_event(1.0, "failed", once="job-1")
    fleet.take(box)
    box.close()
    again = Outbox(tmp_path / "outbox.db")
    again.add_event(2.0, "activated", once="job-2")
    assert len(again) == 3
    for number in range(REMEMBERED + 5):
        again.add_event(3.0, "activated", once=f"more-{number}")
    again.add_event(4.0, "activated", once=f"more-{number}")
    assert len(again) == 3 + REMEMBERED + 5
    (kept,) = (
        sqlite3.connect(tmp_path / "outbox.db").execute("SELECT count(*) FROM said").fetchone()
    )
    assert kept == REMEMBERED
    again.close()


def test_many_labels_of_many_runners_still_fit_into_a_message(tmp_path: Path) -> None:
    box, fleet, clock = Outbox(tmp_path / "outbox.db", max_rows=4), Fleet(), Clock()
    box._clock = clock
    for number in range(100):
        labels = {f"{number}-{place} and a name of some length": 1 for place in range(256)}
        tally = Tally("m@1.0.0", "d", 0.0)
        tally.add({"stats": {"inferences": 256, "classes": labels}})
        box.add_telemetry(
            lambda seq, lost, tally=tally: tally.row(box.boot, seq, lost, end=1, level="metrics")  # type: ignore[misc]
        )
    drain(box, fleet, clock)
    rows = [row for row in fleet.rows if isinstance(row, Telemetry)]
    assert len(box) == 0
    assert max(len(msgspec.json.encode(row.classes)) for row in rows) <= MAX_NAMES
    assert sum(sum(row.classes.values()) for row in rows) == fleet.inferences() == 25600
    box.close()


def test_the_longest_row_there_can_be_fits_into_a_message() -> None:
    far = 2**53 - 1
    odd = "\0" * MAX_LABEL  # six bytes each in JSON
    beat = {
        "stats": {
            "errors": {f"{place}{odd}": far for place in range(500)},
            "classes": {f"{place}{odd}": far for place in range(500)} | {odd * 999: far + 1},
            "latency_ms": {
                "edges": LATENCY_EDGES_MS,
                "counts": [far] * (len(LATENCY_EDGES_MS) + 1),
            },
            "confidence": {"edges": CONFIDENCE_EDGES, "counts": [far] * 20},
            "values": [["inputs", f"{place}{odd}", "mean", [far] * 26] for place in range(200)],
        }
    }
    tally = Tally("m@1.0.0", "sha256:" + "a" * 64, 0.0)
    tally.add(beat)
    row = tally.row("b" * 16, far, 0, end=1.0, level="metrics")
    spans = tuple((far - 4 * n, far - 4 * n + 1) for n in range(MAX_SPANS, 0, -1))
    row = add_rows(msgspec.structs.replace(row, seq=1, supersedes=spans), row)
    assert row is not None
    assert len(row.supersedes) == MAX_SPANS
    assert sum(row.classes.values()) == 2 * (501 * far + 1)
    assert len(msgspec.json.encode(row)) <= MAX_MESSAGE // 2
    assert row.features
    assert all(counts == (2 * far,) * 26 for counts in row.features.values())


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=6))
def test_bins_of_features_add_up_however_rows_are_joined(bins: list[list[int]]) -> None:
    rows = []
    for seq, counts in enumerate(bins):
        tally = Tally("m@1.0.0", "d", 0.0)
        tally.add({"stats": {"values": [["inputs", "x", "mean", counts]] if counts else []}})
        rows.append(tally.row("b", seq, 0, end=1.0, level="metrics"))
        assert tally.row("b", seq, 0, end=1.0, level="health").features == {}
    row = rows[0]
    for newer in rows[1:]:
        joint = add_rows(row, newer)
        assert joint is not None
        row = joint
    size = max(map(len, bins))
    wanted = tuple(sum(c[n] for c in bins if n < len(c)) for n in range(size))
    assert row.features == ({"inputs.x.mean": wanted} if any(bins) else {})


def test_a_label_that_is_too_long_counts_as_other() -> None:
    statistics = Statistics()
    for label in ("a" * MAX_LABEL, "b" * (MAX_LABEL + 1)):
        statistics.decided(label, 0.5)
    assert statistics.take()["classes"] == {"a" * MAX_LABEL: 1, "other": 1}


MAX_KB = 0.6
DAYS = st.lists(
    st.sampled_from(["row", "row", "row", "event", "send", "send", "cut", "ack", "restart"])
    | st.sampled_from(["day", "back", "unsaid"]),
    min_size=20,
    max_size=80,
)


class Sparing(Story):
    """A device that may send so much a day, and what it has sent on each."""

    def __init__(self, path: Path, cap: int) -> None:
        self.now, self.goes = 0.0, True
        self.sent: dict[int, list[int]] = {}
        super().__init__(path, cap)

    def opened(self) -> Outbox:
        box = super().opened()
        self.allowance = Allowance(box, MAX_KB, self.say, lambda: self.now)
        self.reports = Reports(box, "metrics", self.allowance.say, batches=self.allowance.batches)
        return box

    def say(self, kind: str, payload: bytes) -> bool:
        if self.goes:
            if kind == "tele":
                self.sent.setdefault(int(self.now // DAY_S), []).append(len(payload))
            row = Telemetry if kind == "tele" else Event
            self.fleet.receive(decode_batch(payload, row))  # type: ignore[arg-type]
        return self.goes

    def send(self) -> None:
        self.clock.now += RESEND_S + 1
        self.reports.send()

    def unsaid(self) -> None:
        self.goes = False
        self.send()
        self.goes = True

    def cut(self) -> None:
        self.box.link_lost()

    def day(self) -> None:
        self.now += DAY_S

    def back(self) -> None:
        self.now = max(0.0, self.now - DAY_S)

    def check(self) -> None:
        for sizes in self.sent.values():
            assert sum(sizes[:-1]) < MAX_KB * KB, "a message went when the day was used up"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(DAYS, st.integers(4, 40))
def test_a_day_takes_what_it_may_and_sums_stay_exact(steps: list[str], cap: int) -> None:
    with TemporaryDirectory() as name:
        story = Sparing(Path(name) / "outbox.db", cap)
        for step in steps:
            getattr(story, step)()
            story.check()
        story.send()
        arrived = [row for row in story.fleet.rows if isinstance(row, Event)]
        if story.fleet.lost() == 0:
            assert len(arrived) == story.events, "events wait for nothing"
        for _ in range(2):
            for _ in range(100):
                story.day()
                story.send()
                story.ack()
                story.check()
            story.box.add_telemetry(telemetry(story.box, 0))  # tells what was lost
        assert len(story.box) <= 1
        if story.fleet.lost() == 0:
            assert story.fleet.inferences() == story.made
        else:
            assert story.fleet.inferences() <= story.made
        story.box.close()


def test_what_is_left_of_a_day_is_known_after_a_restart(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox.db")
    said: list[str] = []

    def say(kind: str, payload: bytes) -> bool:
        said.append(kind)
        return True

    def limited(box: Outbox) -> Allowance:
        return Allowance(box, 1.0, say, lambda: DAY_S * 20000.5)

    allowance = limited(box)
    assert allowance.batches() == 1
    assert allowance.say("tele", b"x" * 1234)
    assert allowance.say("evt", b"x" * 5000)
    box.close()
    box = Outbox(tmp_path / "outbox.db")
    assert limited(box).describe() == {"max_kb_per_day": 1.0, "today_kb": 1.2, "waits": True}
    reports = Reports(box, "metrics", limited(box).say, batches=limited(box).batches)
    box.add_telemetry(telemetry(box, 1))
    reports.event(Publish("activated", "m@1.0.0", "d", "", {}))
    reports.send()
    assert said == ["tele", "evt", "evt"]
    assert len(box) == 2
    down = Allowance(box, 1.0, lambda _kind, _payload: False, lambda: 0.0)
    assert not down.say("tele", b"x" * 5000)
    assert down.batches() == 1, "what did not go costs nothing"
    unlimited = Allowance(box, None, say)
    assert (unlimited.batches(), unlimited.describe()) == (None, None)
    box.close()


def test_events_do_not_overtake_so_much_that_the_fleet_forgets_what_waits(tmp_path: Path) -> None:
    box, fleet, clock = Outbox(tmp_path / "outbox.db", clock=Clock()), Fleet(), Clock()
    box._clock = clock
    for _ in range(OVERTAKEN + 20):
        box.add_telemetry(telemetry(box, 1))
        box.add_event(1.0, "restarted")
    for _ in range(10):
        clock.now += RESEND_S + 1
        for batch in box.take(0):
            fleet.receive(decode_batch(encode_batch(batch.rows), Event))  # type: ignore[arg-type]
        for ack in fleet.acks():
            box.acknowledge(ack)
    assert fleet.rows == [], "so many gaps are too many"
    drain(box, fleet, clock)
    assert fleet.inferences() == OVERTAKEN + 20
    box.close()
