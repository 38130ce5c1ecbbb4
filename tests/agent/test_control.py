"""The control socket hears people again after trouble, and takes only what can be kept."""

import gc
import json
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import EdgepackError
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


def test_running_out_of_descriptors_closes_no_ears(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert call(path, "status") == {"cmd": "status"}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as peer, socket.socket(socket.AF_UNIX) as other:
        gc.collect()  # what it closes later would be free again
        lowest = os.open(os.devnull, os.O_RDONLY)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            # The kernel has set one descriptor aside for the one that is waited for already.
            peer.connect(str(path))
            other.connect(str(path))
            wait("it to notice", lambda: "nobody is heard" in caplog.text, 10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        assert call(path, "status", timeout_s=10) == {"cmd": "status"}
    except EdgepackError as error:
        pytest.fail(f"{error}: {error.why}")
