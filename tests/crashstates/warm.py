"""Real agent and runner processes that start in milliseconds: forked from one that has imported.

`python -m crashstates.warm agents SOCKET` forks an agent for every line on stdin and tells its
process id; `... runners SOCKET` forks the runners that those agents ask for at SOCKET. What they
do after their imports is what `edgepack-agent run` and `python -m edgepack_agent.runner` do; as
there, a runner ends with its agent. So a thousand power cuts do not cost a thousand imports.
"""

import array
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

__all__: list[str] = []

RUNNERS = "EDGEPACK_WARM_RUNNERS"
_FDS = 16


def serve_agents() -> None:
    """Fork an agent for each line of stdin, `{"config": FILE, "log": FILE}`."""
    import edgepack_agent.__main__
    import edgepack_agent.cli.run
    import edgepack_agent.parts
    import edgepack_agent.supervisor  # noqa: F401
    from edgepack_agent.adapters.installed import Shelf
    from edgepack_agent.adapters.runner import Runner

    found = Shelf().read()
    Shelf.read = lambda _: found  # type: ignore[method-assign]
    Runner._spawn = _spawn  # type: ignore[assignment, method-assign]
    gc.freeze()
    signal.signal(signal.SIGCHLD, lambda *_: _bury())
    print("ready", flush=True)
    while line := _line():
        wanted = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_agent(wanted)
        print(pid, flush=True)


def _line() -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        found += byte
    return found


def _bury() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become_agent(wanted: dict[str, str]) -> NoReturn:
    from edgepack_agent.runner.kernel import die_with_parent

    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _leave(lambda: sys.exit(_run(Path(wanted["config"]))))


def _run(config: Path) -> int:
    from edgepack_agent.__main__ import main
    from edgepack_agent.cli.run import settings_file

    return main(["--config-fd", str(settings_file(config))])


def _leave(run: Any) -> NoReturn:
    code = 1
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class WarmProcess:
    """A runner that somebody else has forked for us; as much of `Popen` as is used."""

    def __init__(self, command: list[str], fds: list[int]) -> None:
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(os.environ[RUNNERS])
        words = {"argv": command, "fds": len(fds)}
        handles = array.array("i", [*fds, 2])
        message = json.dumps(words).encode() + b"\n"
        self._link.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)])
        self.pid = int(self._word() or b"0")
        if not self.pid:
            raise OSError("no runner could be forked")
        self._code: int | None = None

    def _word(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            piece = self._link.recv(1)
            if not piece:
                break
            found += piece
        return found

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)  # whoever minds it kills it then

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            self._link.settimeout(timeout)
            try:
                self._code = int(self._word() or b"-9")
            except TimeoutError:
                raise subprocess.TimeoutExpired("runner", timeout or 0) from None
            self._link.close()
        return self._code


def _spawn(self: Any) -> WarmProcess:
    """Take the place of `Runner._spawn`: descriptors keep their numbers, as with `pass_fds`."""
    return WarmProcess(self._command, self._inherited)


def serve_runners(path: str) -> None:
    """Fork a runner for every connection to the unix socket PATH.

    Who serves what is written to PATH.pids, a line `PID SLOT` each.
    """
    import edgepack_targets.onnx_session  # noqa: F401

    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, lambda *_: _bury())
    print("ready", flush=True)
    while True:
        # Ends with whoever started it: that is what stdin is for.
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _mind(link)
        link.close()


def _mind(link: socket.socket) -> NoReturn:
    """Fork the runner that LINK asks for, tell its end, and end it when LINK is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size = socket.CMSG_SPACE(_FDS * array.array("i").itemsize)
    message, ancillary, _, _ = link.recvmsg(65536, size)
    handles = array.array("i")
    for _, _, data in ancillary:
        handles.frombytes(data[: len(data) - len(data) % handles.itemsize])
    wanted = json.loads(message)
    pid = os.fork()
    if pid == 0:
        link.close()
        _become_runner(wanted, list(handles))
    for handle in handles:
        os.close(handle)
    with contextlib.suppress(OSError):  # whoever asked may have been killed meanwhile
        link.sendall(b"%d\n" % pid)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, link], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        link.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become_runner(wanted: dict[str, Any], handles: list[int]) -> NoReturn:
    *inherited, errors = handles
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    # The command names descriptors by the numbers they have in the agent.
    argv = wanted["argv"]
    start = argv.index("edgepack_agent.runner") + 1
    words, numbers = argv[start:], iter(inherited)
    for index, word in enumerate(words):
        if word in {"--control-fd", "--listen-fd"}:
            words[index + 1] = str(next(numbers))
    slot = words[words.index("--slot") + 1]
    with Path(f"{os.environ[RUNNERS]}.pids").open("a") as known:
        known.write(f"{os.getpid()} {slot}\n")
    sys.argv = ["edgepack_agent.runner", *words]
    _leave(lambda: runpy.run_module("edgepack_agent.runner", run_name="__main__"))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    if sys.argv[1] == "agents":
        serve_agents()
    else:
        serve_runners(sys.argv[2])
