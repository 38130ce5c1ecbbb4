"""What the runner asks of Linux about itself: to end with its parent, to gain no rights; RSS, heat.

Everything here is a safeguard beside others and fails without a word where it is not allowed.
"""

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

__all__ = ["be_killed_first", "die_with_parent", "give_up_rights", "rss_mb", "temperature_c"]

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_OOM_SCORE_ADJ = "500"
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


def die_with_parent() -> None:
    """Have the kernel kill this process when the *thread* that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def give_up_rights() -> None:
    """Gain no right by any program from now on, leave no core on disk, make files for us alone."""
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o027)


def be_killed_first() -> None:
    """Make this process the one that goes when memory runs out, not the supervisor."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)


def rss_mb() -> float:
    """Return the resident memory of this process in MiB; 0 if /proc does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_MB
    return 0.0


def temperature_c(zones: Path = Path("/sys/class/thermal")) -> float | None:
    """Return the temperature of the hottest thermal zone; None: this machine does not say."""
    found = []
    for path in zones.glob("thermal_zone*/temp"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()) / 1000)
    return max(found, default=None)
