"""Keeps the allocator of the C library from holding what an update needed. Measures nothing.

Only glibc has these calls; elsewhere they do nothing.
"""

import contextlib
import ctypes
import gc

__all__ = ["give_back", "one_arena"]

_M_ARENA_MAX = -8


def one_arena() -> None:
    """Let all threads share one heap; they hardly ever allocate at the same time."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return memory that is free to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
