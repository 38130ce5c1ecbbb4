"""When a label begins and ends to be seen by a camera. Pure.

One frame proves little: a model is wrong now and then, in both directions. A label is there once
it was in `need` of the last `of` frames, and gone once it was in none of the last `of`; between
an end and the next beginning there are at least `need` frames, so nothing flaps.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

__all__ = ["Found", "Rule", "Seen", "Sighting", "View", "close", "gone", "look", "pictured"]

MAX_OPEN = 32
"""Labels that one camera sees at a time; of more, those that came first."""
MAX_ENDED = 8
"""Of what has ended, this much is said again, for whom a word was lost."""
MAX_BEGINS, BEGINS_S = 60, 60.0
"""So many may begin in so many seconds; what comes after them begins later, if it stays."""
MAX_LABEL = 100
DIGITS = 4

Box = tuple[float, float, float, float]


class Found(NamedTuple):
    """One thing in one frame."""

    label: str
    score: float
    box: Box | None = None
    """Left, top, right and bottom in pixels of what is looked at."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What counts as seen."""

    labels: frozenset[str] | None = None
    """None: all."""
    need: int = 3
    of: int = 5

    def wants(self, label: str) -> bool:
        """Say whether LABEL counts."""
        return self.labels is None or label in self.labels


class Sighting(msgspec.Struct, frozen=True):
    """A label that is seen, or was."""

    number: int
    """Counts the sightings of a life, from 1."""
    label: str
    start: float
    """Unix seconds, as all times here."""
    score: float
    """Of the last frame with it, of the surest if there are several."""
    top_score: float
    box: Box | None = None
    """Of the same."""
    end: float | None = None
    snapshot: str = ""
    """Name of the picture of its beginning; empty: there is none."""


class Seen(msgspec.Struct, frozen=True):
    """What a camera sees. One word holds all of it, so that a lost one does no harm."""

    camera: str
    life: str
    """Names the time from when the camera began to be watched until that ended."""
    at: float
    digest: str = ""
    """Of the bundle that says so."""
    open: tuple[Sighting, ...] = ()
    """By number."""
    ended: tuple[Sighting, ...] = ()
    """The last few, by number of ending."""
    objects: dict[str, int] = {}
    """How many of each open label are there."""
    closed: bool = False
    """Nothing will follow in this life."""

    def ident(self, sighting: Sighting) -> str:
        """Return what no other sighting is called."""
        return f"{sighting.start:.3f}-{self.life}-{sighting.number}"


class _Best(NamedTuple):
    score: float
    box: Box | None
    many: int


@dataclass(frozen=True, slots=True)
class View:
    """What the next frame is judged by."""

    seen: Seen
    recent: tuple[Mapping[str, _Best], ...] = ()
    begun: tuple[float, ...] = ()
    """When the last ones began."""
    count: int = 0
    """Of all sightings so far."""


def look(view: View, rule: Rule, at: float, found: Iterable[Found]) -> View:
    """Return VIEW after a frame of the time AT in which FOUND was found."""
    best = _best(rule, found)
    recent = (*view.recent, best)[-rule.of :]
    stays = [s for s in view.seen.open if any(s.label in frame for frame in recent)]
    begun = tuple(each for each in view.begun if 0 <= at - each < BEGINS_S)
    room = min(MAX_OPEN - len(stays), MAX_BEGINS - len(begun))
    fresh = _fresh(recent, rule, {s.label for s in stays})[: max(0, room)]
    news = [_begin(label, best[label], at, view.count + i) for i, label in enumerate(fresh, 1)]
    still = (*(_again(s, best.get(s.label)) for s in stays), *news)
    ended = _ended(view.seen, {s.number for s in stays}, at)
    counts = {s.label: max(f[s.label].many for f in recent if s.label in f) for s in still}
    seen = msgspec.structs.replace(view.seen, at=at, open=still, ended=ended, objects=counts)
    return View(seen, recent, begun + (at,) * len(news), view.count + len(news))


def gone(view: View, at: float) -> View:
    """Return VIEW once no frames come any more: nothing is seen."""
    ended = _ended(view.seen, set(), at)
    seen = msgspec.structs.replace(view.seen, at=at, open=(), ended=ended, objects={})
    return replace(view, seen=seen, recent=())


def pictured(view: View, numbers: Collection[int], name: str) -> View:
    """Return VIEW with the picture NAME for the open sightings of NUMBERS."""
    there = tuple(
        msgspec.structs.replace(s, snapshot=name) if s.number in numbers else s
        for s in view.seen.open
    )
    return replace(view, seen=msgspec.structs.replace(view.seen, open=there))


def close(seen: Seen, at: float) -> Seen:
    """Return SEEN as the last word of its life."""
    ended = _ended(seen, set(), at)
    return msgspec.structs.replace(seen, at=at, open=(), ended=ended, objects={}, closed=True)


def _best(rule: Rule, found: Iterable[Found]) -> dict[str, _Best]:
    best: dict[str, _Best] = {}
    for label, score, box in found:
        if not rule.wants(label):
            continue
        name = label[:MAX_LABEL]
        old = best.get(name)
        kept = old if old and old.score >= score else _Best(round(score, DIGITS), box, 0)
        best[name] = kept._replace(many=old.many + 1 if old else 1)
    return best


def _fresh(recent: tuple[Mapping[str, _Best], ...], rule: Rule, known: set[str]) -> list[str]:
    """Return the labels of the newest frame that begin, the surest first."""
    now = recent[-1]
    there = [
        label
        for label in now.keys() - known
        if sum(label in frame for frame in recent) >= rule.need
    ]
    return sorted(there, key=lambda label: (-now[label].score, label))


def _begin(label: str, best: _Best, at: float, number: int) -> Sighting:
    return Sighting(number, label, at, best.score, best.score, best.box)


def _again(sighting: Sighting, best: _Best | None) -> Sighting:
    if best is None:
        return sighting
    top = max(sighting.top_score, best.score)
    return msgspec.structs.replace(sighting, score=best.score, top_score=top, box=best.box)


def _ended(seen: Seen, stays: set[int], at: float) -> tuple[Sighting, ...]:
    # A clock that was set back must not make an end come before its beginning.
    over = [
        msgspec.structs.replace(s, end=max(s.start, at)) for s in seen.open if s.number not in stays
    ]
    return (*seen.ended, *over)[-MAX_ENDED:]
