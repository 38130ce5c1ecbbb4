"""Log messages: fields for a journal that the test plays, lines elsewhere, no secret in either."""

import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_rig import AGENT
from edgepack.errors import EdgepackError
from edgepack_agent.adapters import logs
from edgepack_agent.core.state import Job, Outcome, State

SECRET = "kQ7-zX_81pLmW0vR"
LEAKS = [
    f"rtsp://admin:{SECRET}@10.0.0.7/h264",
    f"ep1.{SECRET}{SECRET}",
    f"https://fleet.example/blob/ab?exp=1&sig={SECRET}",
    f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    f'{{"secret": "{SECRET}"}}',
]


class Journald:
    """Plays /run/systemd/journal/socket and reads the native protocol."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(5)

    def read(self) -> dict[str, str]:
        data, found = self.socket.recv(2**20), {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                (size,) = struct.unpack("<Q", data[:8])
                value, data = data[8 : 8 + size], data[8 + size :]
                assert data[:1] == b"\n"
                data = data[1:]
            found[name.decode()] = value.decode()
        return found


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    found = Journald(tmp_path / "socket")
    yield found
    found.socket.close()


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave Python's own logging as it was."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, threading.excepthook)
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level, sys.excepthook, threading.excepthook = before
    logging.captureWarnings(capture=False)
    for name in ("tuf", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def under_systemd(journald: Journald, monkeypatch: pytest.MonkeyPatch) -> Journald:
    """Say of this process's stderr what systemd would say."""
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    return journald


def test_a_message_has_its_fields(under_systemd: Journald) -> None:
    about = logs.begin("info", "edgepack-agent", journal=under_systemd.path)
    state = State(phase="probation", job=Job("j1", "person@1.4.0", "p", 1.0, 1.0))
    about(lambda: logs.fields("cam-7", state))
    log = logging.getLogger("edgepack_agent.supervisor")
    log.warning("switching %s", "on")
    found = under_systemd.read()
    line = int(found.pop("CODE_LINE"))
    assert Path(__file__).read_text().splitlines()[line - 1].strip().startswith("log.warning")
    assert found == {
        "MESSAGE": "switching on",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "edgepack-agent",
        "LOGGER": "edgepack_agent.supervisor",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_a_message_has_its_fields",
        "EDGEPACK_DEVICE": "cam-7",
        "EDGEPACK_PHASE": "probation",
        "EDGEPACK_RELEASE": "person@1.4.0",
    }
    log.debug("not at this level")
    failed = Outcome("j1", "FAILED", "unreachable")
    about(lambda: logs.fields("cam-7", State(phase="rolling_back", result=failed)))
    log.error("a\n\nb=c\n")
    found = under_systemd.read()
    assert (found["MESSAGE"], found["PRIORITY"]) == ("a\n\nb=c\n", "3")
    assert found["EDGEPACK_REASON"] == "unreachable"


def test_what_nobody_caught_is_a_message_with_its_traceback(under_systemd: Journald) -> None:
    logs.begin("info", "edgepack-agent", journal=under_systemd.path)

    def fail() -> None:
        raise RuntimeError(f"no answer from {LEAKS[0]}")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    found = under_systemd.read()
    assert found["PRIORITY"] == "2"
    assert "RuntimeError: no answer from rtsp://***@10.0.0.7" in found["MESSAGE"]
    assert "in fail" in found["MESSAGE"]


def test_a_journal_that_does_not_read_keeps_nobody_waiting(under_systemd: Journald) -> None:
    logs.begin("info", "edgepack-agent", journal=under_systemd.path)
    ended = threading.Event()

    def talk() -> None:
        for _ in range(15):
            logging.getLogger("x").info("y" * 50_000)
        ended.set()

    threading.Thread(target=talk, daemon=True).start()
    assert ended.wait(60)
    assert len(under_systemd.read()["MESSAGE"]) == logs.MAX_TEXT
    under_systemd.socket.close()
    under_systemd.path.unlink()
    logging.getLogger("x").info("journald is gone")


def test_stderr_that_leads_elsewhere_gets_lines(
    journald: Journald, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for stream in ("", "1:2", "nonsense"):
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        logs.begin("info", "edgepack-agent", journal=journald.path)
        logging.getLogger("x").info("hello")
        assert capfd.readouterr().err.endswith("INFO x: hello\n")


class Unshowable:
    def __str__(self) -> str:
        raise ValueError("never")


def test_no_secret_leaves_by_any_way(under_systemd: Journald) -> None:
    logs.begin("debug", "edgepack-agent", journal=under_systemd.path)
    log = logging.getLogger("edgepack_agent")
    for leak in LEAKS:
        log.info(leak)
        log.info("%s", leak)
        log.warning("%s: %s", EdgepackError("x", why=leak), leak.encode())
        log.info("%r and %s", {"url": leak}, Unshowable())
        log.debug("%(url)s", {"url": leak})
        try:
            raise OSError(leak) from ValueError(leak)
        except OSError:
            log.exception("failed at %s", leak)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(leak, stacklevel=1)
        sys.excepthook(ValueError, ValueError(leak), None)
        for _ in range(8):
            found = under_systemd.read()
            assert SECRET not in str(found), found
    under_systemd.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        under_systemd.read()


def test_no_secret_is_in_what_an_agent_prints(tmp_path: Path) -> None:
    """Through a real process: settings, tokens and errors that hold secrets."""
    path = tmp_path / "agent.yaml"
    source = f"sources: [{{name: a, source: 'rtsp://u:{SECRET}@h/1'}}]\nlog_level: debug\n"
    good = f"data_dir: {tmp_path / 'd'}\nrun_dir: {tmp_path / 'r'}\n{source}"
    token = f"ep1.{SECRET}{SECRET}"
    for text, words in (
        (good, ["config", "check"]),
        (good, ["config", "show"]),
        (good, ["config", "show", "--json"]),
        (good, ["run"]),
        (good, ["enroll", token, "--root", str(path)]),
        (f"log_level: 'password={SECRET}'\n", ["config", "check"]),
        (f"broker: 'mqtts://u:{SECRET}@h'\n", ["run"]),
        (f"listen: 'http://u:{SECRET}@0.0.0.0:80'\n", ["run"]),
    ):
        path.write_text(text)
        done = subprocess.run(
            [AGENT, "--config", path, *words], capture_output=True, text=True, check=False
        )
        assert done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr, words


def test_an_error_that_nobody_expected_ends_a_process_with_a_clean_message() -> None:
    code = (
        "from edgepack_agent.adapters import logs\n"
        "logs.begin('info', 'x')\n"
        f"raise RuntimeError({LEAKS[3]!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError: -----BEGIN PRIVATE KEY----- ***" in done.stderr
    assert SECRET not in done.stderr


def test_a_closed_stderr_ends_nothing() -> None:
    code = (
        "import logging, os\n"
        "from edgepack_agent.adapters import logs\n"
        "logs.begin('info', 'x')\n"
        "os.close(2)\n"
        "logging.getLogger('x').warning('y')\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "alive\n"


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="journalctl is not installed")
def test_logs_are_those_of_the_journal() -> None:
    words = ["logs", "--since", "2000-01-01", "--release", "x@1", "-n", "5"]
    done = subprocess.run([AGENT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no entries" in (done.stdout + done.stderr).lower()
    done = subprocess.run([AGENT, "logs", "--since", "nonsense"], capture_output=True, check=False)
    assert done.returncode != 0


def test_without_a_journal_it_says_where_to_look() -> None:
    env = os.environ | {"PATH": "/nowhere"}
    done = subprocess.run([AGENT, "logs"], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 5
    assert "standard error" in done.stderr
