"""The socket over which a person at the device commands the agent. Carries out nothing itself.

JSON lines on a unix socket: one request, one reply, then it is closed. Only root and the user
the agent runs as are heard; the kernel says who calls (SO_PEERCRED). `install` passes the
bundle as an open descriptor, so the agent needs no access to where the file is.
"""

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgepack.errors import EdgepackError, UnreachableError, UsageError

__all__ = ["Asked", "ControlServer", "call"]

log = logging.getLogger(__name__)
MAX_LINE = 64 * 1024
ANSWER_S = 900.0
ACCEPT_PAUSE_S = 1.0
_CREDENTIALS = struct.Struct("3i")
Reply = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A command from the socket; `reply` is to be given a document, `file` is to be closed."""

    command: str
    file: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    reply: "Future[Reply]" = field(default_factory=Future)


class _Command(msgspec.Struct, frozen=True):
    """A request. Read strictly: text that is no Unicode could not be kept or told later."""

    cmd: str
    args: dict[str, Any] = {}


class ControlServer:
    """Listens on PATH and hands every allowed command to POST, from threads of its own.

    Raises:
        UsageError: the socket cannot be made, or another agent listens there.
    """

    def __init__(self, path: Path, post: Callable[[Asked], None]) -> None:
        self._path, self._post = path, post
        self._closed = threading.Event()
        self._listener = _listen(path)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._closed.set()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError as error:
                if self._closed.is_set():
                    return
                # Out of descriptors, for one: that passes, and then people are heard again.
                log.warning("nobody is heard on %s: %s", self._path, error)
                self._closed.wait(ACCEPT_PAUSE_S)
                continue
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(5)
            with contextlib.suppress(OSError):
                reply = self._ask(peer)
                peer.sendall(json.dumps(reply).encode() + b"\n")

    def _ask(self, peer: socket.socket) -> Reply:
        if _user(peer) not in {0, os.getuid()}:
            return {"error": {"code": 2, "reason": "not_allowed", "message": "not your agent"}}
        data, files, _, _ = socket.recv_fds(peer, MAX_LINE, 1)
        try:
            wanted = msgspec.json.decode(data, type=_Command)
        except (ValueError, RecursionError):
            for file in files:
                os.close(file)
            return {"error": {"code": 2, "reason": "bad_command", "message": "not a command"}}
        asked = Asked(wanted.cmd, files[0] if files else None, wanted.args)
        self._post(asked)
        try:
            return asked.reply.result(ANSWER_S)
        except FutureTimeoutError:
            return {"error": {"code": 7, "reason": "no_answer", "message": "the agent is busy"}}


def call(
    path: Path,
    command: str,
    file: int | None = None,
    timeout_s: float = ANSWER_S,
    args: dict[str, Any] | None = None,
) -> Reply:
    """Send COMMAND to the agent that listens on PATH, and return its reply.

    Args:
        path: The control socket.
        command: What to do.
        file: A descriptor to pass along.
        timeout_s: Seconds to wait for the reply.
        args: What the command is to know.

    Raises:
        UnreachableError: no agent runs there.
        EdgepackError: what the agent says went wrong, with its exit code.
    """
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(timeout_s)
            peer.connect(str(path))
            line = json.dumps({"cmd": command, "args": args or {}}).encode() + b"\n"
            socket.send_fds(peer, [line], [file] if file is not None else [])
            with peer.makefile("rb") as answers:
                reply: Reply = json.loads(answers.readline() or b"null") or {}
    except (OSError, ValueError) as error:
        raise UnreachableError(
            "the agent does not answer",
            why=f"{path}: {error}",
            fix="is it running? `edgepack-agent run`, or systemctl status edgepack-agent",
            reason="agent_unreachable",
        ) from error
    if "error" in reply:
        raise _as_raised(reply["error"])
    return reply


def _as_raised(error: dict[str, Any]) -> EdgepackError:
    kinds = {kind.exit_code: kind for kind in EdgepackError.__subclasses__()}
    kind = kinds.get(error.get("code", 1), EdgepackError)
    return kind(
        str(error.get("message", "the agent refuses")),
        why=str(error.get("why", "")),
        fix=str(error.get("fix", "")),
        reason=str(error.get("reason", "")),
    )


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ConnectionError, FileNotFoundError):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
            raise UsageError(
                "an agent is running here already", why=str(path), reason="already_running"
            )
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen()
    except OSError as error:
        raise UsageError(
            f"cannot listen on {path}", why=str(error), fix="check run_dir", reason="bad_socket"
        ) from error
    return listener


def _user(peer: socket.socket) -> int:
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return int(uid)
