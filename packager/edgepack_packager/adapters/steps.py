"""Run steps, or take what an earlier build left in the cache. Knows no plan.

A cached step is found by what it was made from: the function, its arguments, the keys of the
steps before it, and the versions of tools and code. Its files are hashed again when used.
"""

import errno
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import edgepack_packager.workers
import edgepack_targets
from edgepack import canonical
from edgepack.errors import UsageError
from edgepack_packager.adapters.cache import StepCache
from edgepack_packager.adapters.worker import Interpreter, run_step
from edgepack_targets.machine import describe_machine

__all__ = ["Done", "Progress", "Steps", "no_room"]

CONVERTERS = (
    "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "numpy",
)  # fmt: skip
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
Progress = Callable[[str, int, int], None]
"""Told what is being done, how many steps are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Done:
    """A finished step: the files it wrote and what it said."""

    key: str
    out: Path
    result: dict[str, Any]
    kept: bool = False
    """Whether it was taken from the cache."""


class Steps:
    """Where the steps of one build run, from any thread; the same step runs once.

    Args:
        work: Temporary directory of the build.
        cache: Finished steps of earlier builds; None: nothing is kept.
        interpreters: By toolchain name; `host` is one of them.
        timeout_s: For each step.
        progress: Told what happens.
        expected: How many steps there will be, for the progress.
    """

    def __init__(
        self,
        work: Path,
        cache: StepCache | None,
        interpreters: Mapping[str, Interpreter],
        *,
        timeout_s: float,
        progress: Progress,
        expected: int = 0,
    ) -> None:
        self._work, self._cache = work, cache
        self._interpreters, self._timeout_s = interpreters, timeout_s
        self._progress, self._expected = progress, expected
        self._tools, self._machine = _tools(), {**describe_machine()}
        self._started = self._finished = self._taken = 0
        self._running: dict[str, Future[Done]] = {}
        self._lock, self._quiet = threading.Lock(), _Quiet()
        self._stopped = threading.Event()

    def run(
        self,
        toolchain: str,
        function: str,
        args: Mapping[str, Any],
        *,
        facts: Mapping[str, Any],
        parents: Sequence[Done] = (),
        alone: bool = False,
    ) -> Done:
        """Return FUNCTION's outcome, from the cache if it is there.

        Args:
            toolchain: Where it runs.
            function: `module.function` of the workers.
            args: Its arguments; paths in them are not part of what it is found by.
            facts: What else decides its outcome: digests of files, settings.
            parents: The steps whose files it reads.
            alone: Whether nothing else may run meanwhile: it measures time, on this machine.
        """
        if alone:
            facts = {**facts, "machine": self._machine}
        key = self._key(toolchain, function, parents, facts)
        with self._lock:
            future = self._running.get(key)
            mine = future is None
            if future is None:
                future = self._running[key] = Future()
        if not mine:
            return future.result()
        try:
            done = self._kept(key) or self._make(key, toolchain, function, args, alone=alone)
        except BaseException as error:
            future.set_exception(error)
            raise
        future.set_result(done)
        return done

    def _kept(self, key: str) -> Done | None:
        found = self._cache.find(key) if self._cache else None
        if found is None:
            return None
        with self._lock:
            self._taken += 1
        self._tell("", finished=1)
        return Done(key, *found, kept=True)

    def _make(
        self, key: str, toolchain: str, function: str, args: Mapping[str, Any], *, alone: bool
    ) -> Done:
        out, result = self.fresh(toolchain, function, args, alone=alone)
        where = self._cache.keep(key, out, result) if self._cache else out
        return Done(key, where, result)

    def fresh(
        self, toolchain: str, function: str, args: Mapping[str, Any], *, alone: bool = False
    ) -> tuple[Path, dict[str, Any]]:
        """Run FUNCTION now; return its directory and what it said."""
        with self._lock:
            self._started += 1
            out = self._work / f"{self._started:02d}-{function}"
        out.mkdir()
        with self._quiet.alone() if alone else self._quiet.together():
            said = run_step(
                self._interpreters[toolchain], function, args, out,
                timeout_s=self._timeout_s, say=self._tell, stopped=self._stopped,
            )  # fmt: skip
        self._tell("", finished=1)
        return out, said

    def stop(self) -> None:
        """End every worker that runs; whoever waits for one gets its error."""
        self._stopped.set()

    @property
    def started(self) -> int:
        """How many workers were started."""
        return self._started

    @property
    def taken(self) -> int:
        """How many steps were taken from the cache."""
        return self._taken

    def _tell(self, text: str, *, finished: int = 0) -> None:
        with self._lock:
            self._finished += finished
            done = self._finished
        self._progress(text, done, max(self._expected, done))

    def _key(
        self, toolchain: str, function: str, parents: Sequence[Done], facts: Mapping[str, Any]
    ) -> str:
        interpreter = self._interpreters[toolchain]
        made_from = {
            "step": function,
            "toolchain": [interpreter.name, str(interpreter.python)],
            "tools": self._tools,
            "parents": [parent.key for parent in parents],
            "facts": dict(facts),
        }
        return hashlib.sha256(canonical.dumps(made_from)).hexdigest()


def no_room(error: OSError) -> UsageError:
    """Return what ERROR, which no step and no reader of a file has a word for, means."""
    if error.errno not in FULL:
        return UsageError("the build cannot read or write a file", why=str(error), reason="io")
    return UsageError(
        "the build's temporary files cannot be written",
        why=error.strerror or str(error),
        fix="make room, or set TMPDIR to a directory that has it",
        reason="no_space",
    )


class _Quiet:
    """Many together, or one alone: a measurement beside a conversion measures the conversion."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._together, self._alone = 0, False

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            with self._free:
                self._together -= 1
                self._free.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._alone)
            self._alone = True
            self._free.wait_for(lambda: not self._together)
        try:
            yield
        finally:
            with self._free:
                self._alone = False
                self._free.notify_all()


def _tools() -> list[str]:
    """Return what converts here: versions of the tools, digest of our own code."""
    found = {d.name: d.version for d in distributions() if d.name in CONVERTERS}
    homes = (edgepack_targets, edgepack_packager.workers)
    code = [_digest_code(Path(str(package.__file__)).parent) for package in homes]
    return [*(f"{name}=={version}" for name, version in sorted(found.items())), *code]


def _digest_code(home: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(home.rglob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()
