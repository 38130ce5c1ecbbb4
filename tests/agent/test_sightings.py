"""A label begins and ends once, whatever flickers and whatever words are lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_agent.adapters.sighted import Sighted
from edgepack_agent.core.announcement import Names
from edgepack_agent.core.sightings import (
    MAX_BEGINS,
    MAX_ENDED,
    MAX_OPEN,
    Found,
    Rule,
    Seen,
    View,
    close,
    gone,
    look,
    pictured,
)
from edgepack_agent.core.tidings import Told, next_tiding
from edgepack_agent.runner.wire import MAX_LINE, write_line
from edgepack_agent.settings import load_config

LABELS = "abc"
FRAMES = st.lists(st.sets(st.sampled_from(LABELS)) | st.none(), max_size=60)
"""What is found in each frame; None: the camera is gone."""
RULES = st.integers(1, 6).flatmap(
    lambda of: st.integers(1, of).map(lambda need: Rule(need=need, of=of))
)


def start(at: float = 100.0) -> View:
    return View(Seen(camera="door", life="0011", at=at))


def steps(view: View, rule: Rule, frames: list[set[str] | None]) -> Iterator[View]:
    """Yield the view after each of FRAMES, 0.1 s apart."""
    for number, labels in enumerate(frames):
        at = 100 + number / 10
        if labels is None:
            view = gone(view, at)
        else:
            view = look(view, rule, at, [Found(label, 0.5) for label in labels])
        yield view


class Listener:
    """Remembers what was told."""

    def __init__(self) -> None:
        self.told = Told()
        self.kinds: list[tuple[int, str, str]] = []

    def hear(self, seen: Seen) -> None:
        while tiding := next_tiding(self.told, seen):
            self.told = tiding.told
            self.kinds.append((tiding.sighting.number, tiding.kind, tiding.sighting.label))


@given(RULES, FRAMES)
def test_nothing_flaps_within_the_frames_that_are_asked_for(
    rule: Rule, frames: list[set[str] | None]
) -> None:
    there: dict[str, bool] = dict.fromkeys(LABELS, False)
    turned: dict[str, int] = dict.fromkeys(LABELS, -100)
    for number, view in enumerate(steps(start(), rule, frames)):
        found = {sighting.label for sighting in view.seen.open}
        assert found == view.seen.objects.keys()
        for label in LABELS:
            if (label in found) == there[label]:
                continue
            there[label] = label in found
            recent = frames[max(0, number - rule.of + 1) : number + 1]
            if label in found:
                assert sum(label in (each or ()) for each in recent) >= rule.need
                assert number - turned[label] >= rule.need
            elif frames[number] is not None:
                assert all(label not in (each or ()) for each in recent)
                assert number - turned[label] >= rule.of
            turned[label] = number


@given(RULES, FRAMES, st.data())
def test_every_beginning_has_one_end_whatever_is_lost(
    rule: Rule, frames: list[set[str] | None], data: st.DataObject
) -> None:
    listener, view = Listener(), start()
    for view in steps(start(), rule, frames):
        if data.draw(st.booleans()):
            listener.hear(view.seen)
    listener.hear(close(view.seen, 999))
    kinds = listener.kinds
    begun = {number: label for number, kind, label in kinds if kind == "new"}
    assert sorted(kinds) == sorted(
        (number, kind, label) for number, label in begun.items() for kind in ("new", "end")
    )
    for number in begun:
        assert [kind for n, kind, _ in kinds if n == number] == ["new", "end"]


@given(RULES, FRAMES)
def test_with_no_word_lost_all_is_told(rule: Rule, frames: list[set[str] | None]) -> None:
    listener, view = Listener(), start()
    for view in steps(start(), rule, frames):
        listener.hear(view.seen)
        assert {s.number for s in listener.told.open} == {s.number for s in view.seen.open}
    assert [kind for _, kind, _ in listener.kinds].count("new") == view.count


def test_a_word_stays_small_and_beginnings_rare_however_much_is_seen() -> None:
    view, rule = start(), Rule(need=1, of=1)
    for number in range(200):
        found = [Found(f"{number}-{i}-" + "x" * 500, 0.5, (1.0, 2.0, 3.0, 4.0)) for i in range(99)]
        view = look(view, rule, 100 + number / 10, found)
        assert len(view.seen.open) <= MAX_OPEN
        assert len(view.seen.ended) <= MAX_ENDED
    assert view.count == MAX_BEGINS, "20 seconds"
    word = write_line({"evt": "seen", "seen": msgspec.to_builtins(view.seen)})
    assert len(word) < MAX_LINE / 8
    view = look(view, rule, 200.0, [Found("later", 0.9)])
    assert view.seen.open[0].label == "later", "what was too much is forgotten"


def test_counts_scores_and_boxes_are_those_of_the_surest() -> None:
    view, rule = start(), Rule(frozenset({"spot"}), 1, 2)
    view = look(
        view, rule, 100.0, [Found("spot", 0.6, (0, 0, 9, 9)), Found("spot", 0.9), Found("x", 1)]
    )
    view = look(view, rule, 101.0, [Found("spot", 0.7, (1, 1, 9, 9))])
    (spot,) = view.seen.open
    assert (spot.score, spot.top_score, spot.box) == (0.7, 0.9, (1, 1, 9, 9))
    assert view.seen.objects == {"spot": 2}, "one frame that misses one does not change it"
    view = look(view, rule, 99.0, [])
    view = look(view, rule, 98.0, [])
    assert view.seen.ended[0].end == 100.0, "no end before its beginning"


# -- what is told


class Broker:
    """Remembers what is published while it takes anything."""

    def __init__(self) -> None:
        self.takes = True
        self.said: list[dict[str, Any]] = []

    def publish(self, topic: str, payload: str) -> bool:
        if self.takes:
            assert topic == "edgepack/cam/camera/door/events"
            self.said.append(json.loads(payload))
        return self.takes

    def kinds(self) -> list[str]:
        return [f"{event['event_type']} {event['label']}" for event in self.said]


def word(view: View) -> dict[str, Any]:
    return {"evt": "seen", "seen": msgspec.to_builtins(view.seen)}


def test_what_a_runner_saw_ends_with_it_and_a_new_one_begins_anew() -> None:
    broker, rule = Broker(), Rule(need=1, of=1)
    sighted = Sighted(Names("cam"), broker.publish, wall=lambda: 200.0)
    first, second = object(), object()
    sighted.heard(first, word(look(start(), rule, 100.0, [Found("a", 0.5)])))
    sighted.flush()
    assert sighted.objects == {"door": {"a": 1}}
    sighted.heard(first, {"evt": "exited"})
    sighted.flush()
    assert sighted.objects == {"door": {}}
    assert broker.said[1]["end_time"] == 200.0
    assert broker.said[0]["id"] == broker.said[1]["id"]
    other = View(Seen(camera="door", life="2233", at=0.0))
    sighted.heard(second, word(look(other, rule, 201.0, [Found("a", 0.5)])))
    sighted.flush()
    assert broker.kinds() == ["new a", "end a", "new a"]
    assert broker.said[2]["id"] != broker.said[0]["id"]


def test_the_last_word_of_an_old_model_does_not_speak_over_the_new_one() -> None:
    broker, rule = Broker(), Rule(need=1, of=1)
    sighted = Sighted(Names("cam"), broker.publish)
    old = look(start(), rule, 100.0, [Found("a", 0.5)])
    sighted.heard("old", word(old))
    new = look(View(Seen(camera="door", life="2233", at=0.0)), rule, 101.0, [Found("b", 0.5)])
    sighted.heard("new", word(new))
    sighted.heard("old", {"evt": "seen", "seen": msgspec.to_builtins(close(old.seen, 102.0))})
    sighted.flush()
    assert sighted.objects == {"door": {"b": 1}}
    assert sorted(broker.kinds()) == ["end a", "new a", "new b"]


def test_a_broker_that_takes_nothing_is_told_the_end_of_what_it_was_told_of() -> None:
    broker, rule = Broker(), Rule(need=1, of=1)
    sighted = Sighted(Names("cam"), broker.publish)
    view = look(start(), rule, 100.0, [Found("a", 0.5)])
    sighted.heard("r", word(view))
    sighted.flush()
    broker.takes = False
    for number in range(3 * MAX_ENDED):
        view = look(view, rule, 101.0 + number, [Found(f"l{number}", 0.5)])
        sighted.heard("r", word(view))
        sighted.flush()
    assert broker.kinds() == ["new a"]
    broker.takes = True
    sighted.flush()
    kinds = broker.kinds()
    assert kinds[:2] == ["new a", "end a"]
    assert kinds.count(f"new l{3 * MAX_ENDED - 1}") == 1
    assert len(kinds) <= 2 * (MAX_ENDED + 2), "the rest was missed"


def test_a_runner_does_not_choose_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    (tmp_path / "album" / "door").mkdir(parents=True)
    (tmp_path / "album" / "door" / "link.jpg").symlink_to(tmp_path / "secret")
    (tmp_path / "album" / "door" / "good.jpg").write_bytes(b"picture")
    broker, shown, rule = Broker(), [], Rule(need=1, of=1)
    sighted = Sighted(
        Names("cam"), broker.publish, lambda topic, data: shown.append((topic, data)),
        tmp_path / "album",
    )  # fmt: skip
    view = start()
    for number, name in enumerate(["../../secret", "link.jpg", "gone.jpg", "good.jpg", "good.jpg"]):
        view = look(view, rule, 100.0 + number, [Found(f"l{number}", 0.5)])
        view = pictured(view, {number + 1}, name)
        sighted.heard("r", word(view))
        sighted.flush()
    assert shown == [("edgepack/cam/camera/door/snapshot", b"picture")], "and once"
    assert broker.kinds().count("new l4") == 1, "events go on without pictures"


def test_nonsense_of_a_runner_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    sighted = Sighted(Names("cam"), Broker().publish)
    with caplog.at_level("INFO"):
        for wrong in (None, {}, {"camera": 3}, {"camera": "a", "life": "b", "at": "now"}):
            sighted.heard("r", {"evt": "seen", "seen": wrong})
        sighted.flush()
    assert "nonsense" in caplog.text
    assert sighted.objects == {}


@pytest.mark.parametrize(
    "wrong",
    [
        "sightings: {frames: [5, 3]}",
        "sightings: {frames: [0, 3]}",
        "sightings: {labels: ['']}",
        "snapshots: {publish: true}",
        "snapshots: {keep: -1}",
        "sources: [{name: a, source: 'test:pattern'}, {name: a, source: 'dir:/'}]",
        "sources: [{name: Büro, source: 'test:pattern'}, {name: Bäro, source: 'dir:/'}]",
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(wrong + "\n")
    with pytest.raises(UsageError, match=r"sightings|snapshots|sources"):
        load_config(path)
