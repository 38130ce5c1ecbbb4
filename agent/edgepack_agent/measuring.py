"""Measures a release that is not installed here, when nothing else is going on.

The publisher must have approved it, it must fit, and there must be room: as for an update. It is
fetched by the worker while the engine is idle, laid beside the slots, and measured in processes
that give way to the model that serves. An update goes first, always: what was begun is begun again.
"""

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgepack.errors import EdgepackError, UsageError
from edgepack.requests import Request
from edgepack.trust import TargetInfo
from edgepack_agent.adapters.benchmark import measure
from edgepack_agent.core.state import Hold, State
from edgepack_agent.engine import Engine
from edgepack_agent.parts import Parts

__all__ = ["Measuring"]

PAUSE_S = 5.0
"""Seconds before another try, after a bad moment."""
BEGIN_S = 30.0
"""Seconds in which the worker begins what it is given, or does not."""


@dataclass(slots=True)
class _Attempt:
    """One try to fetch a model, handed to the loop; an answer comes back."""

    target: TargetInfo
    answers: "queue.SimpleQueue[Path | EdgepackError | str]" = field(
        default_factory=queue.SimpleQueue
    )
    """Where the model is, why it cannot be, or the reason why not now."""
    begun: bool = False
    given_up: bool = False


class Measuring:
    """Answers requests of the kind `measure`.

    Args:
        parts: For fetching and building.
        engine: Says whether anything else is going on.
        held: Returns why an update would have to wait now.
    """

    def __init__(self, parts: Parts, engine: Engine, held: Callable[[State], Hold | None]) -> None:
        self._parts, self._engine, self._held = parts, engine, held

    def find(self, request: Request, over: Callable[[], bool]) -> Mapping[str, Any]:
        """Return the benchmark document of the target that REQUEST names, from any thread.

        Raises:
            EdgepackError: it cannot be measured here, or there was no good moment until OVER.
        """
        wanted, reason = _target(request.args), "busy"
        while not over():
            found = self._fetched(_Attempt(wanted), over)
            if isinstance(found, EdgepackError):
                raise found
            if isinstance(found, Path):
                try:
                    return self._measured(found, wanted, over)
                except EdgepackError as error:
                    if error.reason != "cancelled":
                        raise
                    found = "busy"
                finally:
                    self._parts.slots.drop_measured()
            reason = found
            _rest(over)
        raise EdgepackError("there was no good moment to measure", reason=reason)

    def _fetched(self, attempt: _Attempt, over: Callable[[], bool]) -> "Path | EdgepackError | str":
        self._parts.queue.put(lambda: self._begin(attempt))
        since = time.monotonic()
        while not over():
            try:
                return attempt.answers.get(timeout=1.0)
            except queue.Empty:
                if not attempt.begun and time.monotonic() - since > BEGIN_S:
                    break
        attempt.given_up = True
        return "busy"

    def _begin(self, attempt: _Attempt) -> None:
        """On the loop: let the worker fetch, if this is a good moment."""
        parts, state = self._parts, self._engine.state
        if parts.config.update.swap == "stop_first":
            why = "`update.swap` is `stop_first`: there is no room for two models"
            attempt.answers.put(EdgepackError("no measuring here", why=why, reason="not_allowed"))
        elif state.phase != "idle" or parts.worker.busy or attempt.given_up:
            attempt.answers.put("busy")
        elif (hold := self._held(state)) is not None:
            attempt.answers.put(hold.reason)
        else:
            self._engine.work(lambda stop: self._fetch(attempt, state, stop))

    def _fetch(self, attempt: _Attempt, state: State, stop: Callable[[], bool]) -> None:
        """On the worker's thread."""
        attempt.begun = True
        kept = state.current, state.previous
        over = lambda: stop() or attempt.given_up  # noqa: E731
        try:
            attempt.answers.put(self._parts.installer.lay_out(attempt.target, kept, over))
        except EdgepackError as error:
            attempt.answers.put("busy" if error.reason == "cancelled" else error)
        except OSError as error:
            attempt.answers.put(EdgepackError("the disk fails", why=str(error), reason="storage"))
        if attempt.given_up:
            self._parts.slots.drop_measured()  # nobody is left who would

    def _measured(
        self, place: Path, wanted: TargetInfo, over: Callable[[], bool]
    ) -> dict[str, Any]:
        threads = self._parts.config.threads
        stop = lambda: over() or self._engine.state.phase != "idle"  # noqa: E731
        found = measure(place, self._parts.config.run_dir, threads, stop)
        if found.get("digest") != f"sha256:{wanted.sha256}":
            raise EdgepackError("another model was measured", reason="digest_mismatch")
        return found


def _target(args: Mapping[str, Any]) -> TargetInfo:
    try:
        return msgspec.convert(args.get("target"), TargetInfo)
    except msgspec.ValidationError as error:
        raise UsageError(
            "what is to be measured cannot be read", why=str(error), reason="bad_request"
        ) from error


def _rest(over: Callable[[], bool]) -> None:
    end = time.monotonic() + PAUSE_S
    while not over() and time.monotonic() < end:
        time.sleep(0.25)
