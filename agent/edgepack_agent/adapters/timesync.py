"""Whether somebody keeps the clock right, as the kernel knows it. Sets nothing."""

import ctypes

__all__ = ["synchronised"]

_TIME_ERROR = 5
_ROOM = 512
"""More bytes than `struct timex` has anywhere. All zero, it asks and changes nothing."""


def synchronised() -> bool | None:
    """Return what the kernel says; None if it does not."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_ROOM))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR
