"""Whether somebody at this device said "not now". Judges nothing.

Two ways to say it. A lock is asked for with a command, is kept across restarts and ends by
itself. An inhibitor is any file in `run_dir/inhibit/`, for programs that cannot be updated under:
it holds until it is removed, for a day at most, and does not survive a reboot.
"""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgepack.durable import write_file
from edgepack_agent.adapters.download import disk_errors
from edgepack_agent.core.deferral import Lock

__all__ = ["Locks"]

log = logging.getLogger(__name__)
MAX_AGE_S = 86400.0
_LISTED = 5


class Locks:
    """The lock in the file PATH, and the inhibitors in the directory INHIBIT.

    Args:
        path: Need not exist.
        inhibit: Made if it is missing.
        wall: Unix seconds.
    """

    def __init__(self, path: Path, inhibit: Path, wall: Callable[[], float]) -> None:
        self._path, self._inhibit, self._wall = path, inhibit, wall
        with contextlib.suppress(OSError):
            inhibit.mkdir(mode=0o770, parents=True, exist_ok=True)

    def lock(self) -> Lock | None:
        """Return the lock that was asked for last; it may be over."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Lock)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("the lock cannot be read and does not count: %s", error)
            return None

    def set(self, lock: Lock) -> None:
        """Keep LOCK in place of the one before.

        Raises:
            EdgepackError: it cannot be written (`disk_full`, `storage`).
        """
        with disk_errors():
            write_file(self._path, msgspec.json.encode(lock))

    def clear(self) -> None:
        """Forget the lock.

        Raises:
            EdgepackError: the file cannot be removed (`storage`).
        """
        with disk_errors():
            self._path.unlink(missing_ok=True)

    def inhibitors(self) -> tuple[str, ...]:
        """Return the names of the inhibitors that count."""
        found = []
        with contextlib.suppress(OSError):
            for path in sorted(self._inhibit.iterdir()):
                with contextlib.suppress(OSError):
                    if abs(self._wall() - path.lstat().st_mtime) <= MAX_AGE_S:
                        found.append(path.name[:64])
        return tuple(found[:_LISTED])
