"""`edgepack fleet up` as a person starts it, and the units that do the same under systemd."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgepack.cli import root, run_command
from edgepack_fleet.adapters.units import SYSUSERS, render
from fleet_rig import EDGEPACK, environment, free_port, listens, wait

PROGRAM = Path("/opt/edgepack/bin/edgepack")
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@dataclass
class Up:
    """A place for `fleet up`, with ports of its own."""

    home: Path
    more: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    ports: dict[str, int] = field(
        default_factory=lambda: {
            n: free_port() for n in ("listen", "device-listen", "broker-listen")
        }
    )

    @property
    def data(self) -> Path:
        return self.home / "fleet"

    @property
    def log(self) -> str:
        return (self.home / "up.log").read_text()

    def words(self) -> list[str | Path]:
        ports = [f"--{name}=127.0.0.1:{port}" for name, port in self.ports.items()]
        return [EDGEPACK, "fleet", "up", "--data", self.data, "--json", *ports, *self.more]

    def start(self) -> dict[str, Any]:
        out = self.home / "up.json"
        with out.open("wb") as said, (self.home / "up.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.words(), stdout=said, stderr=log, env=environment(self.home)
            )

        def told() -> Any:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            with contextlib.suppress(ValueError):
                return json.loads(out.read_text())

        found: dict[str, Any] = wait("it to be up", told, 60)
        return found

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, words)), capture_output=True, text=True, check=False, timeout=60,
            env=environment(self.home),
        )  # fmt: skip

    def ask(self, *words: str) -> Any:
        """Run a command as the program does, in this process: starting one costs a second."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run_command(root, ["fleet", *words, "--data", str(self.data), "--json"])
        return json.loads(out.getvalue())

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(30)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Up]:
    found = Up(tmp_path)
    try:
        yield found
    finally:
        if found.process is not None:
            found.stop()


@pytest.mark.mosquitto
def test_one_command_is_a_fleet_and_comes_back_as_it_was(place: Up) -> None:
    place.more = ("--", "--own-tls")
    first = place.start()
    assert first["schema"] == "edgepack.fleet-up/v1"
    assert first["http"] == f"https://127.0.0.1:{place.ports['listen']}"
    assert first["token"].startswith("epf_")
    trusted = ssl.create_default_context(cafile=first["ca"])

    def healthy() -> bool:
        answer = httpx.get(f"{first['http']}/api/v1/health", verify=trusted).json()
        return bool(answer["status"] == "ok")

    wait("the fleet to reach its broker", healthy)
    assert place.ask("groups", "create", "lab")["id"] == "lab", "over its own certificate"

    for part in ("fleet", "broker"):
        assert place.ask("health", "--part", part)["status"] == "ok"

    again = place.run(*place.words())
    assert again.returncode == 0
    assert json.loads(again.stdout) == first | {"token": None}
    assert "already runs" in again.stderr

    pid = int((place.data / "broker" / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait("the broker to be started again", lambda: "broker | ended with -9" in place.log)
    wait("another broker", lambda: int((place.data / "broker" / "pid").read_text()) != pid)
    wait("the fleet to find it", healthy)

    assert first["token"] not in place.log
    assert place.stop(signal.SIGKILL) == -signal.SIGKILL
    wait("its children to end", lambda: not any(map(listens, place.ports.values())))
    with pytest.raises(SystemExit) as left:
        place.ask("health", "--part", "broker")
    assert left.value.code == 7
    second = place.start()
    assert second == first | {"token": None}
    assert [g["id"] for g in place.ask("groups", "list")["groups"]] == ["lab"]
    assert place.stop(signal.SIGINT) == 0
    assert not any(map(listens, place.ports.values()))
    assert "Traceback" not in place.log


@pytest.mark.mosquitto
def test_a_port_that_is_taken_and_an_option_that_is_none(place: Up) -> None:
    ours = place.ports["broker-listen"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = place.ports["broker-listen"] = int(taken.getsockname()[1])
        done = place.run(*place.words())
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    place.ports["broker-listen"] = ours
    done = place.run(*place.words(), "--", "--no-such-option")
    assert done.returncode == 2, done.stderr
    assert "the fleet does not start" in done.stderr
    assert "--no-such-option" in done.stderr
    assert not listens(ours), "the broker ended, too"


# -- units


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """A root with both units as they are printed."""
    words = [EDGEPACK, "fleet", "service", "print", "--host", "fleet.example.com"]
    done = subprocess.run(
        [*words, "--program", "/bin/true", "--into", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert (tmp_path / "etc/sysusers.d/edgepack-fleet.conf").read_text() == SYSUSERS
    return tmp_path / "etc/systemd/system"


def test_the_units_that_are_printed_run_this_installation() -> None:
    words = [EDGEPACK, "fleet", "service", "print"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    starts = [x for x in done.stdout.splitlines() if x.startswith("ExecStart=")]
    assert [x.partition(" --data ")[0] for x in starts] == [
        f"ExecStart={EDGEPACK.resolve()} fleet {name}" for name in ("broker", "serve")
    ]
    assert not [x for x in starts if "0.0.0.0" in x], "nothing beyond this machine unasked"


@pytest.mark.parametrize("part", ["broker", "fleet"])
def test_another_directory_and_odd_words_in_a_unit(part: str) -> None:
    text = render(part, PROGRAM, Path("/srv/fleet"), ["--host", "a b%c"])
    assert "StateDirectory" not in text
    assert "ReadWritePaths=/srv/fleet\n" in text
    assert "/var/lib/edgepack-fleet" not in text
    assert "--data /srv/fleet --host 'a b%%c'\n" in text


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(printed: Path) -> None:
    for unit in printed.glob("*.service"):
        verdict = ["systemd-analyze", "verify", "--man=no", unit]
        done = subprocess.run(verdict, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_the_exposure_of_the_units_is_at_most_1_5(printed: Path) -> None:
    units = list(printed.glob("*.service"))
    assert len(units) == 2
    for unit in units:
        verdict = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", unit]
        done = subprocess.run(verdict, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        text = unit.read_text()
        unit.write_text("\n".join(x for x in text.splitlines() if "SystemCallFilter=" not in x))
        done = subprocess.run(verdict, capture_output=True, text=True, check=False)
        assert done.returncode != 0, "the threshold is not judged"
