"""`edgepack-agent doctor`: says what is wrong and what to do, and leaves everything as it is."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rig import AGENT, Device, Site, site
from edgepack.errors import EdgepackError
from edgepack_agent.adapters import reach
from edgepack_agent.adapters.identity import load_identity
from edgepack_agent.core import doctor
from edgepack_agent.core.doctor import Finding
from edgepack_fleet.adapters.broker import find_mosquitto
from fleet_rig import free_port, listens, wait

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def asked(config: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the worst finding of every check."""
    done = subprocess.run(
        [AGENT, "--config", config, "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edgepack.agent.doctor/v1"
    found: dict[str, dict[str, Any]] = {}
    for row in document["findings"]:
        assert set(row) == {"check", "status", "what", "why", "fix", "code"}
        if row["status"] != "ok" or row["check"] not in found:
            found[row["check"]] = row
    return done.returncode, found


def content(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    facts = [(p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_uid) for p in files]
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]
    return {str(p): f"{f} {d}" for p, f, d in zip(files, facts, digests, strict=True)}


@dataclass(frozen=True)
class Place:
    site: Site
    device: Device


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A device that runs a model, whose agent is running."""
    with site(tmp_path_factory.mktemp("doctor")) as found:
        folder = found.root / "door"
        folder.mkdir()
        device = found.device(sources=[{"name": "door", "source": f"dir:{folder}"}])
        device.start()
        found.publish("1.0.0")
        assert found.ended(found.roll_out("1.0.0", probation_s=0)) == "completed"
        yield Place(found, device)


@contextlib.contextmanager
def halted(device: Device) -> Iterator[None]:
    """Let the agent of DEVICE write nothing for a while."""
    assert device.process is not None
    os.kill(device.process.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, device.process.pid, os.WSTOPPED)
        yield
    finally:
        os.kill(device.process.pid, signal.SIGCONT)


@pytest.fixture
def stopped(place: Place, tmp_path: Path) -> Device:
    """A copy of that device without an agent, to be spoilt."""
    wait("the agent to be idle", lambda: place.device.status().get("phase") == "idle")
    home = tmp_path / "cam"
    with halted(place.device):
        shutil.copytree(
            place.device.home, home, ignore=shutil.ignore_patterns("run", "current", "previous")
        )
    device = Device(place.device.name, home, free_port())
    device.configure(
        data_dir=str(device.data), run_dir=str(home / "run"), listen=f"127.0.0.1:{device.port}"
    )
    return device


@pytest.mark.mosquitto
def test_a_device_that_works_has_nothing_wrong(place: Place) -> None:
    code, found = asked(place.device.config)
    assert code == 0, found
    assert list(found)[:5] == ["config", "identity", "certificate", "floors", "clock"]
    good = ("identity", "certificate", "clock", "disk", "journal", "outbox", "slots", "runtimes")
    for check in (*good, "agent", "api", "broker", "sources"):
        assert found[check]["status"] == "ok", found[check]
    assert "digits@1.0.0" in found["slots"]["what"]
    assert "connected" in found["broker"]["what"]
    assert place.device.status()["connected"], "looking has thrown the agent out"


@pytest.mark.mosquitto
def test_without_an_agent_it_finds_the_same_and_changes_nothing(stopped: Device) -> None:
    before = content(stopped.home)
    code, found = asked(stopped.config)
    assert code == 0, found
    assert found["agent"]["status"] == "warn"
    assert "digits@1.0.0" in found["slots"]["what"]
    assert content(stopped.home) == before


@pytest.mark.mosquitto
def test_what_is_broken_on_the_disk_is_named(stopped: Device) -> None:
    (model,) = (stopped.data / "slots").glob("*/model/model.onnx")
    data = bytearray(model.read_bytes())
    data[-9] ^= 1
    model.unlink()
    model.write_bytes(data)
    code, found = asked(stopped.config)
    assert (code, found["slots"]["status"]) == (3, "fail")
    assert "digits@1.0.0" in found["slots"]["what"]
    assert "rollback" in found["slots"]["fix"]

    for name in ("journal.db", "journal.db-wal", "floors.json", "floors.json.copy"):
        path = stopped.data / name
        if path.exists():
            path.write_bytes(b"\0" * 5000)
    code, found = asked(stopped.config)
    assert (found["journal"]["status"], found["floors"]["status"]) == ("fail", "fail")
    assert code == 3
    key = stopped.data / "identity" / "key.pem"
    key.write_text("nonsense")
    _, found = asked(stopped.config)
    assert found["certificate"]["status"] == "fail"


NO_ADDRESS = json.dumps(
    {"device": "cam", "group": "lab", "broker_host": "127.0.0.1", "broker_port": 1}
    | {"url": "https://fleet:99999"}
).encode()


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("name", "data", "check"),
    [
        ("ca.pem", b"", "broker"),
        ("ca.pem", b"\xff", "broker"),
        ("device.json", b'{"device": "\xff"}', "identity"),
        ("device.json", NO_ADDRESS, "fleet"),
        ("certificate.pem", b"\xff", "certificate"),
        ("report-key.pem", b"\xff", "identity"),
    ],
)  # fmt: skip
def test_a_file_of_the_identity_that_holds_nonsense_is_a_finding(
    stopped: Device, name: str, data: bytes, check: str
) -> None:
    (stopped.data / "identity" / name).write_bytes(data)
    code, found = asked(stopped.config)
    assert code != 0
    assert found[check]["status"] == "fail"


def test_a_device_that_is_not_enrolled_is_told_how(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(
        json.dumps(
            {
                "data_dir": str(tmp_path / "d"),
                "run_dir": str(tmp_path / "r"),
                "sources": [{"name": "a", "source": f"dir:{tmp_path / 'none'}"}],
                "runtimes": ["onnx", "nonesuch"],
            }
        )
    )
    code, found = asked(config)
    assert code == 2
    assert found["identity"]["fix"].startswith("edgepack-agent enroll")
    assert found["sources"]["why"] == "there is no such directory"
    assert found["runtimes"]["status"] == "warn"
    assert not (tmp_path / "d").exists()
    shown = subprocess.run(
        [AGENT, "--config", config, "doctor"], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 2
    assert "fail  identity     this device is not enrolled\n" in shown.stdout
    assert "fix: edgepack-agent enroll" in shown.stdout
    config.write_text("modle: 1")
    code, found = asked(config)
    assert (code, found["config"]["status"]) == (2, "fail")
    assert "modle" in found["config"]["what"]


@pytest.fixture
def plain() -> Iterator[int]:
    """A server that takes connections and answers something that is no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(1)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def reason(host: str, port: int, tls: ssl.SSLContext) -> str:
    with pytest.raises(EdgepackError) as found:
        reach.reach(host, port, tls)
    assert found.value.fix
    return found.value.reason


@pytest.mark.mosquitto
def test_every_step_to_the_broker_has_its_own_error(
    place: Place, plain: int, tmp_path: Path
) -> None:
    identity = load_identity(place.device.data / "identity")
    assert identity is not None
    broker = place.site.broker.address
    assert reason("nowhere.invalid", 1, identity.tls()) == "dns"
    assert reason("127.0.0.1", free_port(), identity.tls()) == "tcp"
    assert reason("127.0.0.1", plain, identity.tls()) == "tls"
    strangers = ssl.create_default_context()
    assert reason(broker.host, broker.port, strangers) == "server_certificate"
    nobody = ssl.create_default_context(cafile=str(identity.directory / "ca.pem"))
    assert reason(broker.host, broker.port, nobody) == "client_certificate"
    reach.reach(broker.host, broker.port, identity.tls())

    with picky_broker(place.site, tmp_path) as port:
        reach.reach("127.0.0.1", port, identity.tls())
        with pytest.raises(EdgepackError) as found:
            reach.log_in(identity.device, "127.0.0.1", port, identity.tls())
    assert found.value.reason == "auth"
    assert "not authori" in found.value.why.lower()


class picky_broker:  # noqa: N801 - reads as a function
    """A broker with the fleet's certificate that lets nobody log in."""

    def __init__(self, found: Site, home: Path) -> None:
        text = found.broker.config.read_text()
        kept = [x for x in text.splitlines() if x.startswith(("certfile", "keyfile", "cafile"))]
        self.port = free_port()
        home.chmod(0o755)
        self.config = home / "picky.conf"
        lines = [f"listener {self.port} 127.0.0.1", *kept, "allow_anonymous false", "user root"]
        self.config.write_text("\n".join(lines) + "\n")

    def __enter__(self) -> int:
        command = [find_mosquitto(), "-c", str(self.config)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait("the broker to listen", lambda: listens(self.port))
        return self.port

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize(
    ("begin", "end", "held", "status", "word"),
    [
        (-30, 60, True, "ok", "60 days"),
        (-80, 10, True, "warn", "renewed by now"),
        (-95, -5, True, "fail", "ended"),
        (3, 93, True, "fail", "set the clock"),
        (-30, 60, False, "fail", "enrol"),
    ],
)
def test_certificates(begin: int, end: int, held: bool, status: str, word: str) -> None:
    found = doctor.certificate(NOW + begin * DAY, NOW + end * DAY, NOW, held=held)
    assert found.status == status
    assert word in f"{found.what} {found.why} {found.fix}"


def test_clocks() -> None:
    clock, sync = doctor.clock(NOW, NOW + 2 * DAY, synchronised=False)
    assert (clock.status, clock.code, sync.status) == ("fail", 3, "warn")
    assert "2026-06-03" in clock.why
    assert [f.status for f in doctor.clock(NOW, NOW, synchronised=True)] == ["ok", "ok"]
    assert doctor.clock(NOW, NOW, synchronised=None)[1].status == "warn"


def test_space() -> None:
    assert [doctor.space(mb, total_mb=9).status for mb in (20, 100, 500)] == ["fail", "warn", "ok"]


@given(st.lists(st.sampled_from(["ok", "warn", "fail"])), st.integers(1, 8))
def test_the_exit_code_is_that_of_the_first_failure(states: list[Any], code: int) -> None:
    findings = [Finding("x", state, "y", code=code) for state in states]
    assert doctor.exit_code(findings) == (code if "fail" in states else 0)
    order = ["ok", "warn", "fail"]
    assert doctor.worst(findings) == max(states, key=order.index, default="ok")
    assert doctor.exit_code([replace_code(f) for f in findings]) == ("fail" in states)


def replace_code(finding: Finding) -> Finding:
    return Finding(finding.check, finding.status, finding.what)
