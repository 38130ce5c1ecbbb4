"""Says what one camera sees, often enough and not more. Judges nothing, see `core.sightings`.

One observer lives as long as its camera is watched without a break, and is used by that camera's
thread alone.
"""

import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from edgepack_agent.core.sightings import (
    Box,
    Found,
    Rule,
    Seen,
    View,
    close,
    gone,
    look,
    pictured,
)
from edgepack_agent.runner.album import Album
from edgepack_agent.runner.interface import Watched
from edgepack_targets.pipeline.answer import Answer, Detections

__all__ = ["Observer"]

COUNTS_S = 1.0
"""How often changes of counts alone are said."""
REPEAT_S = 10.0
"""How often it is said again what was said, should a word have been lost."""


class Observer:
    """Watches the answers about one camera.

    Args:
        camera: Its name.
        rule: What counts as seen.
        say: Takes what is seen; soon, from the thread that calls.
        album: Takes pictures of what begins to be seen; None: nobody does.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        camera: str,
        rule: Rule,
        say: Callable[[Seen], None],
        album: Album | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule, self._say, self._album, self._clock = rule, say, album, clock
        self._view = View(Seen(camera=camera, life=secrets.token_hex(4), at=0.0))
        self._said: Seen | None = None
        self._said_at = -math.inf

    def looked(self, at: float, watched: Watched) -> None:
        """Take the answer about a frame of the time AT, Unix seconds.

        Raises:
            OSError: a picture of it could not be kept; all else is done.
        """
        digest = str(watched.said.get("digest", ""))
        if digest != self._view.seen.digest:
            seen = msgspec.structs.replace(self._view.seen, digest=digest)
            self._view = replace(self._view, seen=seen)
        before = self._view.count
        self._view = look(self._view, self._rule, at, _found(watched.answer))
        try:
            self._keep(before, at, watched)
        finally:
            self._tell()

    def _keep(self, before: int, at: float, watched: Watched) -> None:
        """Keep one picture of the sightings with numbers above BEFORE, if one is worth it."""
        if self._album is None:
            return
        new = [s for s in self._view.seen.open if s.number > before and self._album.wants(s.label)]
        if new:
            name = self._album.add(new[0].label, at, watched)
            self._view = pictured(self._view, {s.number for s in new}, name)

    def idle(self, at: float, *, online: bool) -> None:
        """Take note that no frame came until AT; if the camera is not ONLINE, nothing is seen."""
        if not online and self._view.seen.open:
            self._view = gone(self._view, at)
        self._tell()

    def close(self, at: float) -> None:
        """Say that this life ends at AT, if it was ever heard of."""
        if self._said is not None:
            self._say(close(self._view.seen, at))

    def _tell(self) -> None:
        now, seen, said = self._clock(), self._view.seen, self._said
        since = now - self._said_at
        if seen.at == 0.0:
            return
        turned = said is None or _numbers(seen) != _numbers(said)
        counted = said is not None and seen.objects != said.objects and since >= COUNTS_S
        if turned or counted or since >= REPEAT_S:
            self._said, self._said_at = seen, now
            self._say(seen)


def _numbers(seen: Seen) -> list[int]:
    return [sighting.number for sighting in seen.open]


def _found(answer: Answer) -> Iterator[Found]:
    if isinstance(answer, Detections):
        for each in answer.objects:
            left, top, right, bottom = (round(edge, 1) for edge in each.box)
            box: Box = (left, top, right, bottom)
            yield Found(each.label, each.score, box)
        return
    yield from (Found(label, score) for label, score in answer.top())
