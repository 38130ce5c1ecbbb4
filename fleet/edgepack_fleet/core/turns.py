"""Who is answered next: small requests first, then devices in turn. Pure; waits for nothing.

Every device has a line of its own, so that one that floods waits behind itself. Where there is no
room, the longest line gives way, not whoever comes late.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Turn", "Turns"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Turn(Generic[T]):
    """A request whose turn it is."""

    device: str
    item: T
    small: bool


class Turns(Generic[T]):
    """Requests that wait.

    Args:
        per_device: Requests of one device that may wait.
        in_all: Requests that may wait.
    """

    def __init__(self, per_device: int, in_all: int) -> None:
        self._per_device, self._in_all = per_device, in_all
        # A dict keeps the order of its keys: the first one is next.
        self._small: dict[str, deque[T]] = {}
        self._large: dict[str, deque[T]] = {}
        self._count: Counter[str] = Counter()
        self._round = 0
        """Small requests that still go before the next large one."""

    def __len__(self) -> int:
        """Return how many requests wait."""
        return self._count.total()

    def put(self, device: str, item: T, *, small: bool) -> list[T]:
        """Let ITEM of DEVICE wait; return what has to go for it, which may be ITEM itself."""
        if self._count[device] >= self._per_device:
            return [item]
        gone: list[T] = []
        if len(self) >= self._in_all:
            longest = max(self._count, key=lambda name: self._count[name])
            if self._count[longest] <= self._count[device] + 1:
                return [item]
            gone.append(self._drop(longest))
        self._lines(small=small).setdefault(device, deque()).append(item)
        self._count[device] += 1
        return gone

    def take(self) -> Turn[T] | None:
        """Return whose turn it is; None if nobody waits.

        Between two large requests every device is heard with one small one at most.
        """
        if self._small and (self._round > 0 or not self._large):
            self._round -= 1
            return self._next(small=True)
        self._round = len(self._small)
        return self._next(small=False) if self._large else None

    def back(self, turn: Turn[T]) -> None:
        """Let what is left of TURN go on when it is this device's turn again."""
        self._lines(small=turn.small).setdefault(turn.device, deque()).appendleft(turn.item)
        self._count[turn.device] += 1

    def _next(self, *, small: bool) -> Turn[T]:
        lines = self._lines(small=small)
        device = next(iter(lines))
        line = lines.pop(device)
        item = line.popleft()
        if line:
            lines[device] = line  # at the end
        self._forget(device)
        return Turn(device, item, small)

    def _drop(self, device: str) -> T:
        """Take the newest request of DEVICE away; large ones go first."""
        lines = self._large if device in self._large else self._small
        item = lines[device].pop()
        if not lines[device]:
            del lines[device]
        self._forget(device)
        return item

    def _forget(self, device: str) -> None:
        self._count[device] -= 1
        if not self._count[device]:
            del self._count[device]

    def _lines(self, *, small: bool) -> dict[str, deque[T]]:
        return self._small if small else self._large
