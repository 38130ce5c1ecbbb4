"""The life of a request: which word on it counts, and when nobody waits any more. Pure.

QUEUED -> IN_PROGRESS -> SUCCEEDED | FAILED | REJECTED
QUEUED | IN_PROGRESS -> TIMED_OUT (`deadline`) | CANCELED
"""

from edgepack.requests import AnswerStatus

__all__ = ["OPEN", "counts", "in_time", "overdue"]

OPEN = ("QUEUED", "IN_PROGRESS")


def counts(status: str, said: AnswerStatus) -> bool:
    """Return whether a device that has SAID so changes a request in STATUS."""
    return status in OPEN and not (status == said == "IN_PROGRESS")


def in_time(deadline: float, now: float) -> float:
    """Return the seconds that a device has until DEADLINE."""
    return max(0.0, deadline - now)


def overdue(status: str, deadline: float, now: float) -> bool:
    """Return whether nobody waits for the answer any more."""
    return status in OPEN and now >= deadline
