"""Run one step in a fresh worker process. Knows the protocol, not what a step does.

A fresh process per step keeps converters from one another, makes their output reproducible,
and turns a crash into an error message. The worker's own output is kept in a log whose tail is
part of the error.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgepack
import edgepack_packager
from edgepack import errors
from edgepack.errors import EdgepackError, UnsupportedError

__all__ = ["Interpreter", "WorkerError", "host_interpreter", "run_step"]

TAIL = 12
LOOK_S = 0.2
"""How often a waiting build looks whether it was given up."""
QUIET = {
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    # onnxruntime reports model names and hashes to its maker as soon as it is imported.
    "ORT_DISABLE_TELEMETRY": "1",
    "NO_COLOR": "1",
}
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "SOURCE_DATE_EPOCH", "LD_LIBRARY_PATH")


class WorkerError(UnsupportedError):
    """A step did not do its work: the converter failed, crashed or ran out of time."""

    default_reason = "converter_failed"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Where steps of one toolchain run."""

    name: str
    python: Path
    isolated: bool = True
    """True: another environment, which sees only the two packages that a worker needs."""
    env: Mapping[str, str] = field(default_factory=dict)


def run_step(
    where: Interpreter,
    step: str,
    args: Mapping[str, Any],
    out: Path,
    *,
    timeout_s: float,
    say: Callable[[str], None] = lambda _: None,
    stopped: threading.Event | None = None,
) -> dict[str, Any]:
    """Run STEP with ARGS in a fresh process of WHERE; it writes its files to OUT.

    Args:
        where: Which Python.
        step: `module.function` of the workers.
        args: What JSON can say.
        out: An existing directory.
        timeout_s: After which the worker is killed.
        say: Called with a line of progress, from another thread.
        stopped: Once set, the worker is killed: the build is given up.

    Raises:
        EdgepackError: what the step itself refused, with its own words.
        WorkerError: the converter failed, was killed by a signal, or took longer than TIMEOUT_S.
    """
    with tempfile.TemporaryDirectory(prefix="edgepack-step-") as folder:
        desk = Path(folder)
        request = {"step": step, "args": dict(args), "out": str(out), "parent": os.getpid()}
        (desk / "request.json").write_text(json.dumps(request))
        if where.isolated:
            _link_packages(desk / "path")
        (desk / "tmp").mkdir()
        process = _Process(where, step, desk, say)
        try:
            code = process.wait(timeout_s, stopped or threading.Event())
        finally:
            process.kill()
        return process.outcome(code)


def _link_packages(directory: Path) -> None:
    """Offer the worker's own two packages, and nothing else of this environment."""
    directory.mkdir()
    for package in (edgepack, edgepack_packager):
        home = Path(str(package.__file__)).parent
        (directory / home.name).symlink_to(home)


class _Process:
    """A running worker: its channel is read by a thread, its output goes to a log."""

    def __init__(
        self, where: Interpreter, step: str, desk: Path, say: Callable[[str], None]
    ) -> None:
        self.step, self.say = step, say
        self.log = desk / "log"
        self.last: dict[str, Any] = {}
        reader, writer = os.pipe()
        command = [str(where.python), "-m", "edgepack_packager.workers"]
        try:
            with self.log.open("wb") as log:
                self.process = subprocess.Popen(
                    [*command, str(desk / "request.json"), str(writer)],
                    env=_environment(where, desk),
                    cwd=desk, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    pass_fds=(writer,), start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            os.close(reader)
            raise WorkerError(f"the worker for {step} cannot be started", why=str(error)) from error
        finally:
            os.close(writer)
        self.thread = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        self.thread.start()

    def _listen(self, reader: int) -> None:
        with os.fdopen(reader, "rb") as channel:
            for line in channel:
                # What is no event was not written by our side of the protocol.
                with suppress(ValueError, KeyError, TypeError):
                    self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self.say(event["text"])
        else:
            self.last = event

    def wait(self, timeout_s: float, stopped: threading.Event) -> int:
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            # The channel ends with the worker, and at once; asking for its end again and again
            # would cost every step up to 50 ms.
            self.thread.join(LOOK_S)
            if not self.thread.is_alive():
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(LOOK_S)
            if stopped.is_set():
                raise WorkerError(f"{self.step} was stopped", reason="stopped")
            if time.monotonic() > deadline and self.process.poll() is None:
                raise WorkerError(
                    f"{self.step} took longer than {timeout_s:g} s and was stopped",
                    why=self.tail(),
                    reason="converter_timeout",
                )
        self.thread.join(5)
        return self.process.returncode

    def kill(self) -> None:
        """End the worker and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-TAIL:] if line.strip())

    def outcome(self, code: int) -> dict[str, Any]:
        match self.last.get("event"):
            case "done":
                result: dict[str, Any] = self.last["result"]
                return result
            case "error":
                raise _rebuild(self.step, self.last, self.tail())
            case _:
                raise self._died(code)

    def _died(self, code: int) -> WorkerError:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        hint = "often: out of memory" if code == -signal.SIGKILL else ""
        return WorkerError(
            f"the converter of {self.step} {how}",
            why=self.tail() or hint,
            fix=hint,
            reason="converter_crashed",
        )


def _rebuild(step: str, event: Mapping[str, str], tail: str) -> EdgepackError:
    """Return the error that the worker told about."""
    kind = getattr(errors, event["class"], None)
    if isinstance(kind, type) and issubclass(kind, EdgepackError):
        return kind(event["what"], why=event["why"], fix=event["fix"], reason=event["reason"])
    what = f"{step} failed: {event['class']}: {event['what']}"
    return WorkerError(what, why=" | ".join(filter(None, (event["why"], tail))))


def _environment(where: Interpreter, desk: Path) -> dict[str, str]:
    """Return the worker's environment; what its libraries leave in TMPDIR goes with DESK."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = {"PYTHONPATH": str(desk / "path")} if where.isolated else {}
    return kept | QUIET | {"TMPDIR": str(desk / "tmp")} | path | dict(where.env)


def host_interpreter() -> Interpreter:
    """Return this very environment, where the targets and their converters are installed."""
    return Interpreter("host", Path(sys.executable), isolated=False)
