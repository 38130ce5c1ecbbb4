"""The control socket hears people again after trouble, and takes only what can be kept."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepack_agent.adapters.control import Asked, ControlServer, call
from fleet_rig import wait


def echo(asked: Asked) -> None:
    asked.reply.set_result({"cmd": asked.command} | asked.args)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    server = ControlServer(tmp_path / "control.sock", echo)
    yield tmp_path / "control.sock"
    server.close()


def said(path: Path, line: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        peer.sendall(line)
        return json.loads(peer.makefile("rb").readline())


def test_a_command_is_heard(path: Path) -> None:
    assert call(path, "lock", args={"for_s": 3, "reason": "Übung"}) == {
        "cmd": "lock", "for_s": 3, "reason": "Übung",
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"[]", b"{}", b'{"cmd": 3}', b'{"cmd": "x", "args": 3}', b"[" * 60_000,
        b'{"cmd": "x", "args": {"reason": "\\udcff"}}', b'{"cmd": "\xff"}',
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(path: Path, line: bytes) -> None:
    """A reason typed in another encoding arrives as half a surrogate pair, which no file takes."""
    assert said(path, line + b"\n")["error"]["reason"] == "bad_command"


STARVED = """
import contextlib, logging, os, resource, sys
from pathlib import Path
from edgepack_agent.adapters.control import ControlServer

logging.basicConfig(format="%(message)s")
server = ControlServer(Path(sys.argv[1]), lambda asked: asked.reply.set_result({"heard": True}))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
with contextlib.suppress(OSError):
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
print("no descriptor is free", file=sys.stderr)
sys.stdin.readline()
for each in taken:
    os.close(each)
sys.stdin.readline()
server.close()
"""
"""A server whose process has no descriptor left until it reads a line. Nothing else is in there:
what a process of tests closes in between would be free again."""


def test_running_out_of_descriptors_closes_no_ears(tmp_path: Path) -> None:
    path, log = tmp_path / "control.sock", tmp_path / "log"
    words = [sys.executable, "-c", STARVED, str(path)]
    with (
        log.open("wb") as file,
        subprocess.Popen(words, stdin=subprocess.PIPE, stderr=file) as server,
        socket.socket(socket.AF_UNIX) as peer,
    ):
        assert server.stdin is not None
        try:
            wait("the last descriptor", lambda: "no descriptor is free" in log.read_text())
            # The kernel has set one descriptor aside for the one that is waited for already.
            peer.connect(str(path))
            wait("it to notice", lambda: f"nobody is heard on {path}" in log.read_text())
            server.stdin.write(b"\n")
            server.stdin.flush()
            assert call(path, "status", timeout_s=20) == {"heard": True}
            server.stdin.close()
            assert server.wait(20) == 0
        finally:
            server.kill()
