"""The watchdog is fed by the loop, and only while the loop and the journal make progress."""

import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack_agent.adapters.identity import write_identity
from edgepack_agent.config import Config
from edgepack_agent.parts import Parts, assemble
from edgepack_agent.supervisor import Supervisor

PERIOD_S = 0.1
LONG = 10 * PERIOD_S


class Systemd:
    """Plays the socket that a service tells how it goes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def hears(self, word: str, seconds: float = 20.0) -> bool:
        """Say whether WORD comes within SECONDS of silence."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(4096).decode() != word:
                continue
        except TimeoutError:
            return False
        return True

    def forget(self) -> None:
        """Read away what was said so far."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(4096):
                continue
        except BlockingIOError:
            return


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    found = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(2e6 * PERIOD_S)))
    yield found
    found.socket.close()


@pytest.fixture
def parts(tmp_path: Path, systemd: Systemd) -> Parts:
    files = {"image-root.json": b"{}", "director-root.json": b"{}"}
    place = tmp_path / "data" / "identity"
    write_identity(place, device="cam", group="lab", broker=("127.0.0.1", 1), files=files)
    return assemble(Config(data_dir=tmp_path / "data", run_dir=tmp_path / "run"))


@pytest.fixture
def supervisor(parts: Parts) -> Iterator[Supervisor]:
    found = Supervisor(parts)
    thread = threading.Thread(target=found.run)
    thread.start()
    yield found
    found.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_ready_comes_first_and_only_after_the_journal_is_recovered(
    supervisor: Supervisor, systemd: Systemd
) -> None:
    # Recovery tells which model serves; an agent without a model is ready, too.
    systemd.socket.settimeout(20)
    said = [systemd.socket.recv(4096).decode() for _ in range(3)]
    assert said[0].startswith("STATUS=no model - idle")
    assert "READY=1" in said[1:]
    assert "WATCHDOG=1" not in said[: said.index("READY=1")]


def test_a_loop_that_stands_still_is_not_called_alive(
    supervisor: Supervisor, systemd: Systemd
) -> None:
    assert systemd.hears("READY=1")
    assert systemd.hears("WATCHDOG=1")
    stuck, go_on = threading.Event(), threading.Event()

    def hang() -> None:
        stuck.set()
        go_on.wait(60)

    supervisor.post(hang)
    assert stuck.wait(20)
    systemd.forget()
    assert not systemd.hears("WATCHDOG=1", LONG), "something else than the loop feeds it"
    go_on.set()
    assert systemd.hears("WATCHDOG=1")


def test_a_journal_that_cannot_be_read_is_no_progress(
    supervisor: Supervisor, systemd: Systemd, tmp_path: Path
) -> None:
    assert systemd.hears("WATCHDOG=1")
    other = sqlite3.connect(tmp_path / "data" / "journal.db", isolation_level=None)
    other.execute("INSERT OR REPLACE INTO state VALUES (1, 'nonsense')")
    # One sign of life may have been on its way.
    systemd.hears("WATCHDOG=1", LONG)
    systemd.forget()
    assert not systemd.hears("WATCHDOG=1", LONG)
    other.execute("DELETE FROM state")
    other.close()
    assert systemd.hears("WATCHDOG=1")
