"""Finished steps kept between builds: found by what they were made from, hashed when used.

A kept step is a directory `KEY/{out/,step.json}`, written beside its place and renamed. What
was not used for the longest goes first once the whole is bigger than its limit.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack_packager.adapters.source import digest_tree

__all__ = ["StepCache"]

DAY = 86400.0
"""Seconds; what is half copied for longer was given up."""
ROOM = 8 * 10**9
"""Bytes that finished steps may take together."""


class StepCache:
    """Finished steps in DIRECTORY; one that cannot be read or written holds nothing."""

    def __init__(self, directory: Path, *, room: int = ROOM) -> None:
        self._home, self._room = directory, room

    def find(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """Return the files and the result of the step KEY, if they are there and whole."""
        try:
            said = json.loads((self._home / key / "step.json").read_text())
            out = self._home / key / "out"
            if _digest(out, said["result"]) != said["sha256"]:
                return None
            os.utime(self._home / key)
            return out, said["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, key: str, out: Path, result: dict[str, Any]) -> Path:
        """Copy OUT and RESULT in, all or nothing; return where the files can be read from.

        What another build kept meanwhile stays: that build reads it.
        """
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".step-", dir=self._home) as folder:
                step = Path(folder) / "step"
                shutil.copytree(out, step / "out")
                said = {"result": result, "sha256": _digest(out, result)}
                (step / "step.json").write_text(json.dumps(said))
                if self.find(key):
                    return out
                shutil.rmtree(self._home / key, ignore_errors=True)
                step.rename(self._home / key)
        except OSError:
            # A full or read-only cache is no reason to fail: OUT itself is still there.
            return out
        return self._home / key / "out"

    def prune(self) -> None:
        """Delete what killed builds left, and what was used longest ago until the rest fits.

        Never fails.
        """
        with suppress(OSError):
            for left in self._home.glob(".step-*"):
                if time.time() - left.stat().st_mtime > DAY:
                    shutil.rmtree(left, ignore_errors=True)
            kept = sorted(self._home.glob("*/step.json"), key=lambda p: -p.parent.stat().st_mtime)
            total = 0
            for step in kept:
                total += _size(step.parent)
                if total > self._room:
                    shutil.rmtree(step.parent, ignore_errors=True)


def _digest(out: Path, result: dict[str, Any]) -> str:
    """Return the SHA-256 of the files in OUT and of RESULT, in hex."""
    said = json.dumps(result, sort_keys=True)
    return hashlib.sha256(f"{digest_tree(out)}\0{said}".encode()).hexdigest()


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
