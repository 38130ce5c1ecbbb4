"""`edgepack-agent serve`: one bundle, one command, its exit codes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from digits import digits_data
from slots import Client, digits_bundle

COMMAND = (
    "from edgepack.cli import run_command; from edgepack_agent.cli.serve import serve;"
    "run_command(serve)"
)


@contextlib.contextmanager
def serving(*args: str | Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Give the process and where it serves."""
    line = [sys.executable, "-c", COMMAND, *map(str, args), "--json"]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said = ""
            while not said.rstrip().endswith("}"):
                said += process.stdout.readline()
                assert process.poll() is None, process.stderr.read()
            document = json.loads(said)
            assert document["schema"] == "edgepack.serve/v1"
            yield process, document["at"]
        finally:
            process.kill()


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", COMMAND, *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_serves_until_it_is_told_to_end(tmp_path: Path, end: int, code: int) -> None:
    path = tmp_path / "api.sock"
    with serving(digits_bundle(), "--listen", "127.0.0.1:0", "--unix", path) as (process, at):
        url, unix = at
        host, port = url.removeprefix("http://").split(":")
        assert (host, unix, path.stat().st_mode & 0o777) == ("127.0.0.1", f"unix:{path}", 0o660)
        test = digits_data()[1]
        for address in ((host, int(port)), str(path)):
            with Client(address) as client:
                answer, _ = client.infer(test.inputs[0])
            assert answer.argmax() == test.labels[0]
        process.send_signal(end)
        _, said = process.communicate(timeout=20)
        assert process.returncode == code
        assert "not signed" in said
        assert "Traceback" not in said
        assert not path.exists()


def test_it_ends_if_its_runner_does(tmp_path: Path) -> None:
    with serving(digits_bundle(), "--unix", tmp_path / "s") as (process, _):
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        [runner] = [int(pid) for file in children for pid in file.read_text().split()]
        os.kill(runner, signal.SIGKILL)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, "the runner ended" in said) == (1, True)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "192.0.2.1:80", "8080", "127.0.0.1:x", "127.0.0.1:99999", ":::80"]
)
def test_it_listens_on_this_machine_only(address: str) -> None:
    done = run(digits_bundle(), "--listen", address)
    assert (done.returncode, "fix:" in done.stderr) == (2, True)


def test_nowhere_to_serve_is_a_usage_error() -> None:
    assert run(digits_bundle()).returncode == 2


def test_a_port_or_socket_in_use_is_a_usage_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(digits_bundle(), "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert (done.returncode, "in use" in done.stderr) == (2, True)
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "s"))
        taken.listen()
        assert run(digits_bundle(), "--unix", tmp_path / "s").returncode == 2
    with serving(digits_bundle(), "--unix", tmp_path / "s") as (_, at):
        assert at == [f"unix:{tmp_path / 's'}"], "a socket that nobody answers is replaced"


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    assert run(digits_bundle(), "--unix", tmp_path / "s").returncode == 2
    assert (tmp_path / "s").read_text() == "precious"


def test_a_missing_bundle_and_a_damaged_one_are_told_apart(tmp_path: Path) -> None:
    assert run(tmp_path / "none", "--unix", tmp_path / "s").returncode == 2
    data = bytearray(digits_bundle().read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    done = run(tmp_path / "damaged", "--unix", tmp_path / "s")
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    assert not (tmp_path / "s").exists()
