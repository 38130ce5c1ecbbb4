"""What a fleet asks of a device beside updates, and the answers. Says nothing of topics.

A request is pulled like a job: the notice is a hint, the fleet's list is the truth, and an answer
is repeated until the fleet says that it has it.
"""

from typing import Annotated, Any, Literal

import msgspec

from edgepack.messages import Count, Id, Message, Text

__all__ = [
    "KINDS",
    "MAX_ANSWER",
    "MAX_OPEN",
    "Answer",
    "AnswerStatus",
    "AnswerTaken",
    "Kind",
    "Request",
    "RequestGet",
    "RequestList",
]

Kind = Literal["doctor", "logs", "measure"]
KINDS: tuple[Kind, ...] = ("doctor", "logs", "measure")
AnswerStatus = Literal["IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"]
"""As of jobs; REJECTED: the device does not do this, and asking again will not change it."""
MAX_OPEN = 16
"""Requests that may wait for one device."""
MAX_ANSWER = 128 * 1024
"""Bytes that the result of an answer may have as JSON; a device cuts what is longer."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Something to find out, by a deadline."""

    request: Id
    kind: Id
    """One of `KINDS`; a device refuses what it does not know."""
    args: dict[str, Any] = msgspec.field(default_factory=dict)
    left_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Seconds until nobody waits for the answer any more: no clocks need to agree."""


class RequestGet(Message, frozen=True, kw_only=True):
    """Ask for what is asked; `token` comes back in the answer."""

    token: Id


class RequestList(Message, frozen=True, kw_only=True):
    """Everything that waits for this device, oldest first."""

    token: Id
    settings: Count = 0
    """Version of the settings that the director says this device shall have; 0: none."""
    requests: Annotated[tuple[Request, ...], msgspec.Meta(max_length=MAX_OPEN)] = ()


class Answer(Message, frozen=True, kw_only=True):
    """A device's word on a request; signed with its report key."""

    token: Id
    request: Id
    status: AnswerStatus
    reason: Text = ""
    message: Text = ""
    result: dict[str, Any] = msgspec.field(default_factory=dict)
    took_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class AnswerTaken(Message, frozen=True, kw_only=True):
    """The fleet has this answer, or does not want it; it need not be repeated."""

    token: Id
    request: Id
