"""The processes of the demo: start, wait until ready, stop by their own id. Knows no story."""

import json
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from edgepack.errors import EdgepackError, UnreachableError

__all__ = ["Processes", "call", "mosquitto_is_here", "program", "wait_for"]

T = TypeVar("T")


def program(name: str) -> str:
    """Return the path of our console script NAME in this very environment."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def call(name: str, *args: str | Path, env: dict[str, str]) -> Any:
    """Run the command NAME with ARGS and return the JSON on its stdout; None if it printed none.

    Raises:
        EdgepackError: it ended with another exit code than 0; its own words are passed on.
    """
    command = [program(name), *map(str, args)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise EdgepackError(
            f"`{name} {' '.join(map(str, args[:2]))}` ended with exit code {done.returncode}",
            why=" | ".join(told[-6:]),
            reason="demo_step_failed",
        )
    return json.loads(done.stdout) if done.stdout.lstrip()[:1] in {"{", "["} else None


def wait_for(what: str, probe: Callable[[], T | None], seconds: float) -> T:
    """Call PROBE until it returns something true, and return that.

    Raises:
        UnreachableError: it did not within SECONDS.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.2)
    raise UnreachableError(f"waited {seconds:.0f} s for {what}", reason="demo_deadline")


class Processes:
    """The processes that run while the story is told; all are gone when it ends."""

    def __init__(self, logs: Path, env: dict[str, str]) -> None:
        self._logs, self._env = logs, env
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, label: str, *command: str | Path) -> subprocess.Popen[bytes]:
        """Start COMMAND with its output in LABEL.log."""
        with (self._logs / f"{label}.log").open("ab") as log:
            process = subprocess.Popen(
                list(map(str, command)), env=self._env, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._running[label] = process
        return process

    def pids(self) -> list[int]:
        """Return the ids of the processes that still run."""
        return [p.pid for p in self._running.values() if p.poll() is None]

    def leave_running(self) -> None:
        """Forget the processes without stopping them."""
        self._running.clear()

    def stop_one(self, label: str) -> None:
        """End the process LABEL: politely, then for good."""
        process = self._running.pop(label)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        """End all processes, last started first."""
        for label in reversed(list(self._running)):
            self.stop_one(label)


def mosquitto_is_here() -> bool:
    """Say whether the mosquitto broker is installed."""
    return bool(shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists())
