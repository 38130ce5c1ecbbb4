"""What a helper process does first: end with its parent, stay off the network. Starts nothing.

Standard library only: the environments of toolchains have nothing else.
"""

import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

__all__ = ["die_with_parent", "stay_offline"]

PR_SET_PDEATHSIG = 1
NETWORK = frozenset({"socket.connect", "socket.getaddrinfo", "socket.sendto"})


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, even by SIGKILL.

    Args:
        parent: Process id of who started it. If that one is gone already, this process ends at
            once: nobody waits for its result.
    """
    # Asked for here and not between fork and exec: that would run Python in a forked child of a
    # process with threads.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def stay_offline() -> None:
    """Refuse every connection from now on: a converter or runtime has no business there."""

    def hook(event: str, _: tuple[Any, ...]) -> None:
        if event in NETWORK:
            raise PermissionError("a worker has no network")

    sys.addaudithook(hook)
