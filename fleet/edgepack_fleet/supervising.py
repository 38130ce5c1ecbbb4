"""Runs broker and fleet as children, starts again what ends, and stops them in order."""

import contextlib
import queue
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgepack.errors import EdgepackError, UnreachableError, UsageError
from edgepack_fleet.adapters.children import Child
from edgepack_fleet.core.supervision import Standing

__all__ = ["Part", "Supervisor"]

START_S, STOP_S = 60.0, 20.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """A process to keep running.

    Attributes:
        name: What it is called in the log.
        command: Program and arguments.
        ready: Says whether the process does its work.
    """

    name: str
    command: Sequence[str | Path]
    ready: Callable[[], bool]


@dataclass(slots=True)
class _Kept:
    """What is known of one part while we run."""

    child: Child
    standing: Standing = field(default_factory=Standing)
    due: float | None = None
    """When it is started again, on the monotonic clock; None: it runs."""


class Supervisor:
    """Keeps PARTS running, each one after those before it.

    Args:
        parts: In the order of their start; they end the other way round.
        tell: Called with a part's name and a line of the log.
    """

    def __init__(self, parts: Sequence[Part], tell: Callable[[str, str], None]) -> None:
        self._parts: Mapping[str, Part] = {part.name: part for part in parts}
        self._tell = tell
        self._kept: dict[str, _Kept] = {}
        # An ended child, or None for a signal to stop; put from other threads and from handlers.
        self._events: queue.SimpleQueue[Child | None] = queue.SimpleQueue()

    def run(self, ready: Callable[[], None]) -> None:
        """Start everything, call READY, and watch until SIGTERM or SIGINT.

        Raises:
            UsageError: a part refuses to start as it is told to (reason `part_refused`).
            UnreachableError: a part does not get ready (`part_not_ready`), or ends again and
                again (`part_keeps_ending`).
        """
        with self._heeding_signals(), self._stopping():
            for part in self._parts.values():
                self._kept[part.name] = _Kept(self._start(part))
                if not self._became_ready(part, self._kept[part.name].child):
                    return
            ready()
            self._watch()

    def _watch(self) -> None:
        while True:
            try:
                ended = self._events.get(timeout=self._pause())
            except queue.Empty:
                self._start_due()
                continue
            if ended is None:
                return
            self._note_end(ended)

    def _pause(self) -> float | None:
        """Return seconds until something is due; None: nothing is."""
        due = [kept.due for kept in self._kept.values() if kept.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _start_due(self) -> None:
        for name, kept in self._kept.items():
            if kept.due is not None and kept.due <= time.monotonic():
                kept.child, kept.due = self._start(self._parts[name]), None

    def _note_end(self, child: Child) -> None:
        kept = self._kept[child.name]
        kept.standing = kept.standing.ended(time.monotonic() - child.since)
        if kept.standing.pause_s is None:
            raise UnreachableError(
                f"the {child.name} ends again and again",
                why=f"exit code {child.code}: {child.last_words}",
                fix="see the log above",
                reason="part_keeps_ending",
            )
        kept.due = time.monotonic() + kept.standing.pause_s
        self._tell(child.name, f"ended with {child.code}; again in {kept.standing.pause_s:g} s")

    def _start(self, part: Part) -> Child:
        return Child(part.name, part.command, self._tell, self._events.put)

    def _became_ready(self, part: Part, child: Child) -> bool:
        """Wait until PART is ready; False: we are to stop."""
        deadline = time.monotonic() + START_S
        while not part.ready():
            with contextlib.suppress(queue.Empty):
                ended = self._events.get(timeout=POLL_S)
                if ended is None:
                    return False
                if ended is child:
                    raise _refusal(child)
                self._note_end(ended)  # an earlier part; it is started again once we watch
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"the {part.name} is not ready after {START_S:.0f} s",
                    why=child.last_words,
                    reason="part_not_ready",
                )
        return True

    @contextlib.contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(n, lambda *_: self._events.put(None)) for n in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        finally:
            for kept in reversed(self._kept.values()):
                kept.child.stop(STOP_S)


def _refusal(child: Child) -> EdgepackError:
    kind = UsageError if child.code == UsageError.exit_code else UnreachableError
    return kind(
        f"the {child.name} does not start",
        why=child.last_words or f"exit code {child.code}",
        reason="part_refused",
    )
