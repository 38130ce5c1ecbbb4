"""The supervisor's handle on a runner process: starts, commands, hears, ends it. Judges nothing.

One thread per runner starts the process, reads its events, waits for its end and then reports
`exited`, exactly once and last. The same thread does all of that because the kernel kills the
runner when the thread that started it ends (see `kernel.die_with_parent`).
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError, IntegrityError
from edgepack_agent.runner.setup import Setup, write_setup
from edgepack_agent.runner.wire import Lines, read_event, write_line

__all__ = ["Event", "Runner"]

Event = dict[str, Any]
KEPT = (
    "PATH", "HOME", "LANG", "LC_", "TZ", "TMPDIR", "XDG_", "LD_", "VIRTUAL_ENV", "PYTHON",
    "JOURNAL_STREAM", "FAKETIME", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "ORT_", "OV_", "OPENVINO",
    "TF_", "XNNPACK", "CUDA_", "AV_",
)  # fmt: skip
"""Beginnings of the variables that a runner inherits: where things are, how runtimes work."""
_STDERR = 2
_LAST_WORDS_S = 5.0


class Runner:
    """A running runner, or one that has exited.

    Attributes:
        slot: The directory it serves.
    """

    def __init__(
        self,
        slot: Path,
        sockets: Sequence[socket.socket],
        on_event: Callable[["Runner", Event], None],
        setup: Setup,
    ) -> None:
        self.slot = slot
        self._on_event = on_event
        self._sending = threading.Lock()
        self._control, self._far = socket.socketpair()
        self._inherited = [self._far.fileno(), *(listener.fileno() for listener in sockets)]
        self._command = _command_line(self._inherited, slot, setup)
        self._started: Future[subprocess.Popen[bytes]] = Future()
        self._thread = threading.Thread(target=self._live, name=f"runner {slot.name}", daemon=True)

    @classmethod
    def start(
        cls,
        slot: Path,
        sockets: Sequence[socket.socket],
        on_event: Callable[["Runner", Event], None],
        setup: Setup,
    ) -> "Runner":
        """Start a runner for SLOT; `loaded` or `failed` will be its first event.

        Args:
            slot: Directory with an extracted bundle.
            sockets: Bound and listening; the runner inherits them and uses them when told to.
            on_event: Called with the runner and each event, from the runner's own thread. Must
                return soon, and not call `stop`.
            setup: How it works, and what it may open besides.

        Raises:
            EdgepackError: the process could not be started.
        """
        runner = cls(slot, sockets, on_event, setup)
        runner._thread.start()
        try:
            runner._started.result()
        except OSError as error:
            raise EdgepackError(
                "the runner process could not be started", why=str(error), reason="runner_start"
            ) from error
        return runner

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether `exited` is still to come."""
        return self._thread.is_alive()

    def send(self, command: Mapping[str, Any], handed: socket.socket | None = None) -> None:
        """Send COMMAND, e.g. `{"cmd": "accept"}`; never blocks.

        HANDED goes with it, if there is one: the runner gets a descriptor of its own.

        A runner that is gone ignores it (its `exited` event tells); one that does not read its
        commands is killed.
        """
        data, flags = write_line(dict(command)), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        rights = array("i", [handed.fileno()] if handed else [])
        carried = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if handed else []
        try:
            with self._sending:
                sent = self._control.sendmsg([data], carried, flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def stop(self, grace_s: float) -> None:
        """Ask the process to finish, kill it after GRACE_S seconds; return when it is gone."""
        self.send({"cmd": "stop"})
        self._thread.join(grace_s)
        if self._thread.is_alive():
            self.kill()
            self._thread.join()

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        return self._started.result()

    def _live(self) -> None:
        try:
            with self._far:
                process = self._spawn()
        except OSError as error:
            self._control.close()
            self._started.set_exception(error)
            return
        self._started.set_result(process)
        try:
            for event in self._events():
                self._on_event(self, event)
        finally:
            code = _reap(process)
            with self._sending:
                self._control.close()
            self._on_event(self, {"evt": "exited", "code": code})

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            pass_fds=self._inherited,
            stdin=subprocess.DEVNULL,
            stdout=_STDERR,
            env=_environment(),
        )

    def _events(self) -> Iterator[Event]:
        lines = Lines()
        while data := _receive(self._control):
            try:
                yield from map(read_event, lines.feed(data))
            except IntegrityError:
                self.kill()
                return


def _receive(control: socket.socket) -> bytes:
    """Return what came; nothing once the other side is gone."""
    with contextlib.suppress(ConnectionError):
        return control.recv(65536)
    return b""


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of PROCESS, which has hung up and gets a moment to end."""
    try:
        return process.wait(_LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _environment() -> dict[str, str]:
    """Return what a runner needs to know of its surroundings: no secret of the agent's is in it."""
    known = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    return known | {"PYTHONUNBUFFERED": "1"}


def _command_line(inherited: Sequence[int], slot: Path, setup: Setup) -> list[str]:
    control, *listeners = map(str, inherited)
    # -P: the working directory is not a place to import from.
    line = [sys.executable, "-P", "-X", "faulthandler", "-m", "edgepack_agent.runner"]
    line += ["--control-fd", control, "--slot", str(slot)]
    for listener in listeners:
        line += ["--listen-fd", listener]
    return [*line, "--setup", write_setup(setup)]
