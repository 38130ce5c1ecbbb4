"""Finds out what the fleet asks, one thing at a time, on a thread of its own.

The loop only hands over and takes back: a check that hangs keeps no update waiting. What is
refused by the device's own rules is refused at once.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edgepack.errors import EdgepackError
from edgepack.requests import MAX_ANSWER, Answer, Request
from edgepack_agent.adapters.requests import Requests
from edgepack_agent.config import Config
from edgepack_agent.core.asking import REASONS, refusal

__all__ = ["Answering", "Finder"]

log = logging.getLogger(__name__)
Finder = Callable[[Request, Callable[[], bool]], Mapping[str, Any]]
"""Finds out what a request wants; its second argument says whether nobody waits any more."""


class Answering:
    """Answers requests.

    Args:
        say: Sends a payload about a kind; False: the link is down.
        post: Puts something on the loop's queue.
        config: Returns the settings as they are now.
        finders: What finds out, by kind.
        clock: Monotonic seconds.
        settings: Is told which version of the settings the fleet speaks of.
    """

    def __init__(
        self,
        say: Callable[[str, bytes], bool],
        post: Callable[[Callable[[], None]], None],
        config: Callable[[], Config],
        finders: Mapping[str, Finder],
        clock: Callable[[], float] = time.monotonic,
        settings: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.requests = Requests(say, self._begin, clock, settings)
        self._post, self._config, self._clock = post, config, clock
        self._finders = dict(finders)
        self._waiting: deque[tuple[Request, float]] = deque()
        self._busy: str | None = None

    def learn(self, kind: str, finder: Finder) -> None:
        """Let FINDER find out what requests of KIND want to know."""
        self._finders[kind] = finder

    def _begin(self, request: Request) -> None:
        config = self._config()
        reason = refusal(request.kind, config.telemetry.level, config.remote.answers)
        if reason:
            self.requests.answer(_no(request, "REJECTED", reason))
            return
        self._waiting.append((request, self._clock() + request.left_s))
        self._next()

    def _next(self) -> None:
        while self._busy is None and self._waiting:
            request, until = self._waiting.popleft()
            if not self.requests.wanted(request.request):
                continue
            if self._clock() > until:
                self.requests.answer(_no(request, "FAILED", "too_late"))
                continue
            self._busy = request.request
            self.requests.answer(_answer(request, "IN_PROGRESS"))
            work = threading.Thread(target=self._work, args=(request, until), daemon=True)
            work.start()

    def _work(self, request: Request, until: float) -> None:
        began = self._clock()

        def over() -> bool:
            return self._clock() > until or not self.requests.wanted(request.request)

        try:
            found = dict(self._finders[request.kind](request, over))
            answer = _fitting(_answer(request, "SUCCEEDED", result=found))
        except EdgepackError as error:
            answer = _no(request, "FAILED", error.reason or "failed", f"{error.what}: {error.why}")
        except Exception:
            log.exception("a request could not be answered")
            answer = _no(request, "FAILED", "internal_error")
        took = msgspec.structs.replace(answer, took_s=round(self._clock() - began, 3))
        self._post(lambda: self._done(took))

    def _done(self, answer: Answer) -> None:
        self._busy = None
        self.requests.answer(answer)
        self._next()


def _answer(request: Request, status: Any, **facts: Any) -> Answer:
    return Answer(token=request.request, request=request.request, status=status, **facts)


def _no(request: Request, status: Any, reason: str, message: str = "") -> Answer:
    told = (message or REASONS.get(reason, ""))[:1000]
    return _answer(request, status, reason=reason, message=told)


def _fitting(answer: Answer) -> Answer:
    """Return ANSWER, if it is short enough to be sent."""
    size = len(msgspec.json.encode(answer.result))
    if size <= MAX_ANSWER:
        return answer
    why = f"{size} bytes, at most {MAX_ANSWER} are sent"
    return msgspec.structs.replace(
        answer, status="FAILED", reason="too_large", message=why, result={}
    )
