"""The process that applies one patch: `python -m edgepack_agent.patcher`, by the agent alone.

    patcher BASE_FD PATCH_FD OUT_FD SIZE MEMORY SECONDS PARENT

A patch may come from anybody, so it is taken apart here and not in the supervisor: with three
open files, no way to open another, and limits on memory, time and on what is written. Whether
the result is right is not believed but measured, by the parent.
"""

import contextlib
import errno
import os
import resource
import sys

from edgepack.confinement import die_with_parent
from edgepack.errors import IntegrityError
from edgepack.patch import apply_patch, preload, read_header
from edgepack_agent.runner.kernel import be_killed_first

__all__ = ["BAD_PATCH", "DISK", "MEMORY", "main"]

BAD_PATCH, MEMORY, DISK = 3, 4, 5
"""Exit codes: what was wrong; any other: something unforeseen."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main(arguments: list[str]) -> int:
    """Apply the patch and return the exit code; what was wrong goes to standard output."""
    base, patch, out, size, memory, seconds, parent = map(int, arguments)
    die_with_parent(parent)
    be_killed_first()
    with contextlib.suppress(OSError):
        os.nice(10)
    with os.fdopen(base, "rb") as old, os.fdopen(patch, "rb") as diff, os.fdopen(out, "wb") as new:
        try:
            preload(read_header(diff).codec)
            diff.seek(0)
            _confine(size, memory, seconds)
            apply_patch(diff, old, new)
            new.flush()
            os.fsync(new.fileno())
        except IntegrityError as error:
            return _failed(BAD_PATCH, error.why or error.what)
        except MemoryError:
            return _failed(MEMORY, f"it takes more than {memory} bytes of memory")
        except OSError as error:
            return _failed(DISK if error.errno in _FULL else 1, error.strerror or str(error))
    return 0


def _confine(size: int, memory: int, seconds: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: size,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
        # What is open stays open; nothing else can be opened, no file and no socket.
        resource.RLIMIT_NOFILE: 0,
    }
    for kind, limit in limits.items():
        before, _ = resource.getrlimit(kind)
        lower = limit if before == resource.RLIM_INFINITY else min(limit, before)
        resource.setrlimit(kind, (lower, lower))


def _failed(code: int, why: str) -> int:
    os.write(sys.stdout.fileno(), why.encode(errors="replace")[:400])
    return code


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
