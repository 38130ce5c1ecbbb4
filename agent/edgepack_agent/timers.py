"""What is to be done later, on one clock. Runs nothing itself: the loop takes what is due."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator

__all__ = ["Timers"]

_Action = Callable[[], None]


class Timers:
    """Actions in the order they fall due; CLOCK gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: list[tuple[float, int, _Action, bool]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def later(self, seconds: float, action: _Action, *, here: bool = False) -> None:
        """Let ACTION fall due in SECONDS; HERE: unless `leave` comes first."""
        entry = self._clock() + seconds, next(self._order), action, here
        heapq.heappush(self._waiting, entry)

    def leave(self) -> None:
        """Forget what was only to be done here; deadlines of days must not pile up."""
        self._waiting = [entry for entry in self._waiting if not entry[3]]
        heapq.heapify(self._waiting)

    def repeat(
        self, seconds: float | Callable[[], float], action: _Action, *, jitter: bool = False
    ) -> None:
        """Let ACTION fall due every SECONDS, give or take a quarter with JITTER."""

        def again() -> None:
            wait()
            action()

        def wait() -> None:
            spread = random.uniform(0.75, 1.25) if jitter else 1.0  # noqa: S311 - no secret
            pause = seconds() if callable(seconds) else seconds
            self.later(pause * spread, again)

        wait()

    def next_in(self) -> float | None:
        """Return the seconds until something falls due, which may be negative; None: nothing."""
        return self._waiting[0][0] - self._clock() if self._waiting else None

    def due(self) -> Iterator[_Action]:
        """Yield what is due, each once."""
        now = self._clock()  # what falls due meanwhile waits for the next look
        while self._waiting and self._waiting[0][0] <= now:
            yield heapq.heappop(self._waiting)[2]
