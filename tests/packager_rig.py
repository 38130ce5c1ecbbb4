"""Builds for the packager's tests: the real command in a process of its own."""

import json
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = str(Path(sysconfig.get_path("scripts")) / "edgepack")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def bundle(self, target: str, precision: str) -> dict[str, Any]:
        """Return what the build says about one variant."""
        found = [
            b
            for b in self.document["bundles"]
            if (b["target"], b["precision"]) == (target, precision)
        ]
        return dict(found[0])


@dataclass(frozen=True)
class Pair:
    """Two builds of the same thing, in HOME/one and HOME/two."""

    home: Path
    first: Done
    second: Done


@dataclass(frozen=True)
class OnnxDigits:
    """A trained ONNX model and its data."""

    home: Path
    model: Path
    calibration: Path
    evaluation: Path


def start(*args: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `edgepack ARGS` in CWD."""
    return subprocess.Popen(
        [COMMAND, *map(str, args)], cwd=cwd, env=os.environ | (env or {}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 240) -> Done:
    """Wait for PROCESS and return how it ended."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Done(process.returncode, out, err)


def edgepack(
    *args: str | Path, cwd: Path, env: dict[str, str] | None = None, timeout: float = 240
) -> Done:
    """Run `edgepack ARGS` in CWD to its end."""
    return finish(start(*args, cwd=cwd, env=env), timeout)


def build_twice(
    home: Path, *args: str | Path, precisions: Sequence[str], again: Sequence[str] = ()
) -> tuple[Done, Done]:
    """Run the same build side by side into HOME/one and HOME/two, without any cache.

    Args:
        home: An empty directory.
        args: What is built for which targets.
        precisions: Of the first build.
        again: Of the second; none: the same.
    """
    words = ("build", *args, "--unsigned", "--no-cache", "--json")
    wanted = {"one": precisions, "two": again or precisions}
    pair = [
        start(*words, *_precisions(those), "--out", home / name, cwd=home)
        for name, those in wanted.items()
    ]
    first, second = [finish(process) for process in pair]
    return first, second


def _precisions(names: Sequence[str]) -> list[str]:
    return [word for name in names for word in ("--precision", name)]


def bundles(home: Path) -> dict[str, bytes]:
    """Return the bundles in HOME by name."""
    return {path.name: path.read_bytes() for path in sorted(home.glob("*.edgepack"))}
