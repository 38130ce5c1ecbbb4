"""The device's side of requests: pull, answer, repeat until it is taken. Finds nothing out itself.

What the fleet lists is the truth: a request that is no longer in it is forgotten, with its answer.
Nothing is kept over a restart, because the fleet still has the request then.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from edgepack.errors import IntegrityError
from edgepack.messages import Rejected, decode, encode
from edgepack.requests import Answer, AnswerTaken, Request, RequestGet, RequestList

__all__ = ["Requests"]

log = logging.getLogger(__name__)
PATIENCE_S = 10.0


@dataclass(slots=True)
class _Open:
    """A request that the fleet has listed, and what is to be said about it."""

    answer: Answer | None = None
    said: float | None = None
    """When it was said last; it waits for the fleet's word."""


class Requests:
    """What is asked of this device.

    Args:
        say: Sends a payload about a kind; False: the link is down.
        begin: Takes a request that is new.
        clock: Monotonic seconds.
        settings: Is told which version of the settings the fleet speaks of.
    """

    def __init__(
        self,
        say: Callable[[str, bytes], bool],
        begin: Callable[[Request], None],
        clock: Callable[[], float] = time.monotonic,
        settings: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._say, self._begin, self._clock, self._settings = say, begin, clock, settings
        self._open: dict[str, _Open] = {}
        self._get: tuple[str, float] | None = None

    def ask(self) -> None:
        """Ask what is asked."""
        if self._get is None:
            token = secrets.token_hex(8)
            if self._say("req/get", encode(RequestGet(token=token))):
                self._get = token, self._clock()

    def link_changed(self, *, up: bool) -> None:
        """Forget what was on its way; ask anew when the link is up."""
        self._get = None
        for known in self._open.values():
            known.said = None
        if up:
            self.ask()

    def tick(self) -> None:
        """Repeat what was not answered."""
        now = self._clock()
        if self._get and now - self._get[1] > PATIENCE_S:
            self._get = None
            self.ask()
        for name, known in self._open.items():
            if known.answer and (known.said is None or now - known.said > PATIENCE_S):
                self._speak(name, known)

    def answer(self, answer: Answer) -> None:
        """Say ANSWER now, or as soon as the fleet can hear it; a newer one replaces it."""
        known = self._open.get(answer.request)
        if known is not None:
            known.answer, known.said = answer, None
            self._speak(answer.request, known)

    def wanted(self, request: str) -> bool:
        """Return whether somebody still waits for the answer to REQUEST."""
        return request in self._open

    def heard(self, kind: str, payload: bytes) -> None:
        """Take a message whose kind begins with `req/`."""
        handler = {
            "req/notify": lambda _: self.ask(),
            "req/get/accepted": self._listed,
            "req/get/rejected": self._refused,
            "req/answer/accepted": self._taken,
            "req/answer/rejected": self._not_taken,
        }.get(kind)
        try:
            if handler:
                handler(payload)
        except IntegrityError as error:
            log.warning("%s: %s", kind, error.why or error)

    def _speak(self, name: str, known: _Open) -> None:
        assert known.answer is not None
        fresh = msgspec.structs.replace(known.answer, token=secrets.token_hex(8))
        known.answer = fresh
        if self._say("req/answer", encode(fresh)):
            known.said = self._clock()

    def _listed(self, payload: bytes) -> None:
        found = decode(payload, RequestList)
        if self._get is None or found.token != self._get[0]:
            return
        self._get = None
        self._settings(found.settings)
        listed = {request.request: request for request in found.requests}
        self._open = {name: known for name, known in self._open.items() if name in listed}
        for name, request in listed.items():
            if name not in self._open:
                self._open[name] = _Open()
                self._begin(request)

    def _refused(self, payload: bytes) -> None:
        log.warning("the fleet does not say what it asks: %s", payload[:200])
        self._get = None

    def _taken(self, payload: bytes) -> None:
        taken = decode(payload, AnswerTaken)
        known = self._open.get(taken.request)
        if known is None or known.answer is None or known.answer.token != taken.token:
            return
        if known.answer.status == "IN_PROGRESS":
            known.answer = None
        else:
            del self._open[taken.request]

    def _not_taken(self, payload: bytes) -> None:
        refusal = decode(payload, Rejected)
        for name, known in list(self._open.items()):
            if known.answer and known.answer.token == refusal.token:
                log.warning("request %s: %s %s", name, refusal.code, refusal.message)
                del self._open[name]
