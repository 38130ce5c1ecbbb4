"""What a runtime compiled of a model, kept for the next start; never loaded unless it is whole.

    HOME/KEY/...           what the runtime wrote, in a form of its own
    HOME/KEY/whole.json    sha256 of each of these files

HOME belongs to one model, KEY to all that decides whether the runtime may use it: its version,
the CPU, the settings. The list is taken away while the files are being loaded: one that takes
the process along is not loaded a second time. The sums find what a disk has damaged, which
OpenVINO does not: of 24 single bytes it noticed one, and loaded the others without a word.
They do not find what an enemy has written, so HOME has to be nobody's but ours.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgepack.durable import write_file
from edgepack_targets import cpu

__all__ = ["MAX_MB", "compiled"]

T = TypeVar("T")
LIST = "whole.json"
MAX_MB = 512
"""More is not kept of one model."""


def compiled(
    home: Path | None,
    facts: Mapping[str, Any],
    build: Callable[[Path | None], T],
    limit_mb: float = MAX_MB,
) -> T:
    """Return what BUILD makes, with what is kept in HOME for FACTS or with a place to keep it.

    Args:
        home: An existing directory of mode 0700 that is ours; else, and with None, nothing is
            kept, and nothing is loaded.
        facts: What decides whether it can be used again, apart from the CPU: JSON values.
        build: Gets the directory to load from or to write to; None: without.
        limit_mb: MiB; more is not kept.

    Raises:
        Exception: What BUILD raises without a directory.
    """
    if home is None or not _is_ours(home):
        return build(None)
    place = home / _key(facts)
    if _take(place):
        with contextlib.suppress(Exception):
            return _kept(home, place, build, limit_mb)
    _clear(home)
    with contextlib.suppress(Exception):
        place.mkdir(mode=0o700)
        return _kept(home, place, build, limit_mb)
    # A full disk or a runtime that cannot keep this model; a model that cannot be run fails again.
    _clear(home)
    return build(None)


def _is_ours(home: Path) -> bool:
    """Say whether nobody else may have written to HOME."""
    with contextlib.suppress(OSError):
        found = home.lstat()
        ours = found.st_uid == os.geteuid() and not found.st_mode & 0o077
        return ours and stat.S_ISDIR(found.st_mode)
    return False


def _key(facts: Mapping[str, Any]) -> str:
    known = {**facts, "cpu": sorted(cpu.features()), "machine": os.uname().machine}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def _take(place: Path) -> bool:
    """Say whether all of PLACE is as it was written, and take its list away."""
    try:
        listed = json.loads((place / LIST).read_bytes())
        (place / LIST).unlink()
        return bool(listed) and listed == _sums(place)
    except (OSError, ValueError, RecursionError):
        return False


def _kept(home: Path, place: Path, build: Callable[[Path | None], T], limit_mb: float) -> T:
    made = build(place)
    with contextlib.suppress(OSError):
        if sum(path.stat().st_size for path in place.rglob("*")) > limit_mb * 2**20:
            _clear(home)
        elif sums := _sums(place):
            write_file(place / LIST, json.dumps(sums).encode())
    return made


def _sums(place: Path) -> dict[str, str]:
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.name != LIST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(place).as_posix()] = digest
    return found


def _clear(home: Path) -> None:
    for each in home.iterdir():
        shutil.rmtree(each, ignore_errors=True)
