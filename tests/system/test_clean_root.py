"""The installer without internet, in a system made for it: a bare Debian, then booted for real.

Needs root, debootstrap, systemd-nspawn and minutes; run by `scripts/test-service`.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_rig import Device, Site, digits_release, site
from digits import digits_data
from edgepack_agent.adapters.control import call
from fleet_rig import wait
from slots import Client

pytestmark = [pytest.mark.clean_root, pytest.mark.mosquitto]
HERE = Path(__file__).parents[2]
PROGRAM = "/opt/edgepack/current/bin/edgepack-agent"
MIRROR = "http://deb.debian.org/debian"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with Python and systemd, and nothing of ours; EDGEPACK_CLEAN_ROOT may name one."""
    if ready := os.environ.get("EDGEPACK_CLEAN_ROOT"):
        return Path(ready)
    root = tmp_path_factory.mktemp("bare") / "root"
    packages = "--include=systemd,systemd-sysv,dbus,python3"
    command = ["debootstrap", "--variant=minbase", packages, "bookworm", root, MIRROR]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installer's tarball."""
    out = tmp_path_factory.mktemp("out")
    command = [HERE / "scripts" / "offline-installer", "--out", out, "--deb"]
    subprocess.run(command, check=True)
    (found,) = out.glob("*.tar.gz")
    return found


@dataclass
class Clean:
    """A copy of the bare system."""

    root: Path

    def run(self, line: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell LINE in it, without any network."""
        script = 'mount -t proc proc "$0/proc"; exec chroot "$0" sh -ec "$1"'
        command = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script]
        done = subprocess.run(
            [*command, self.root, line], capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def unpack(self, packed: Path) -> str:
        """Copy the installer into it, and return its directory."""
        shutil.copy(packed, self.root / "root")
        self.run(f"cd /root && tar xf {packed.name}")
        return f"/root/{packed.name.removesuffix('.tar.gz')}"


@pytest.fixture
def clean(bare: Path, tmp_path: Path) -> Clean:
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", bare, root], check=True)
    return Clean(root)


def test_install_use_upgrade_and_remove_without_a_network(
    clean: Clean, packed: Path, tmp_path: Path
) -> None:
    folder = clean.unpack(packed)
    clean.run(f"{folder}/install.sh")
    assert "0.1.0" in clean.run("edgepack-agent --version").stdout
    assert "is valid" in clean.run("edgepack-agent config check").stdout
    report = json.loads(clean.run("edgepack-agent doctor --json", check=False).stdout)
    findings = {row["check"]: row["status"] for row in report["findings"]}
    assert findings["runtimes"] == "ok"
    assert findings["identity"] == "fail"
    assert findings["unit"] == "ok"

    bundle = digits_release(tmp_path / "models", "1.0.0")
    shutil.copy(bundle, clean.root / "root" / "x.edgepack")
    served(clean)

    settings = clean.root / "etc/edgepack/agent.yaml"
    settings.write_text("threads: 2\n")
    identity = clean.root / "var/lib/edgepack/identity/device.json"
    identity.parent.mkdir(parents=True)
    identity.write_text("{}")
    before = (clean.root / "opt/edgepack/current").readlink()
    clean.run(f"{folder}/install.sh")
    assert (clean.root / "opt/edgepack/current").readlink() != before
    assert len(list((clean.root / "opt/edgepack/versions").iterdir())) == 1
    assert settings.read_text() == "threads: 2\n"

    clean.run(f"{folder}/install.sh uninstall")
    assert not (clean.root / "opt/edgepack").exists()
    assert not (clean.root / "usr/local/bin/edgepack-agent").is_symlink()
    assert not list((clean.root / "etc/systemd/system").glob("*edgepack*"))
    assert settings.exists()
    assert identity.exists()


def served(clean: Clean) -> None:
    """Have `serve` answer in the clean system, over a socket that the test reaches as well."""
    socket = clean.root / "root" / "x.sock"
    command = ["unshare", "--net", "chroot", clean.root, "edgepack-agent", "serve"]
    command += ["/root/x.edgepack", "--unix", "/root/x.sock"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait("the socket to be there", socket.exists, 60)
        with Client(str(socket)) as client:
            found = wait("an answer", lambda: client.infer(digits_data()[1].inputs[0]))
        assert found[0].shape[-1] == 10
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_the_deb_installs_and_is_purged(clean: Clean, packed: Path) -> None:
    (package,) = packed.parent.glob("*.deb")
    shutil.copy(package, clean.root / "root" / "agent.deb")
    clean.run("dpkg -i /root/agent.deb")
    assert "0.1.0" in clean.run("edgepack-agent --version").stdout
    clean.run("dpkg -P edgepack-agent")
    assert not (clean.root / "opt/edgepack").exists()
    assert not (clean.root / "etc/edgepack").exists()


def test_an_installer_that_was_damaged_on_the_way_installs_nothing(
    clean: Clean, packed: Path
) -> None:
    folder = clean.unpack(packed)
    wheel = next((clean.root / folder[1:] / "wheels").glob("numpy-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1])
    done = clean.run(f"{folder}/install.sh", check=False)
    assert done.returncode == 3
    assert "not what was packed" in done.stderr
    assert not (clean.root / "opt/edgepack").exists()


@dataclass
class Machine:
    """The clean system, running: systemd is its first process."""

    process: subprocess.Popen[bytes]

    @property
    def leader(self) -> int:
        """Its first process as seen from outside; the one before that soon ends."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[-1])

    def run(self, *words: str, check: bool = True) -> str:
        """Run WORDS in all of its namespaces: what it listens on is nowhere else."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-p", "-n", "-C", "-r", "-w"]
        done = subprocess.run([*enter, *words], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> bool:
        with contextlib.suppress(IndexError):
            told = self.run("systemctl", "is-system-running", check=False)
            return told.strip() in {"running", "degraded"}
        return False

    def last_words(self) -> str:
        """Return the end of its journal, for the reader of a failure."""
        with contextlib.suppress(IndexError, OSError):
            return self.run("journalctl", "-n", "40", "-o", "cat", "--no-pager", check=False)
        return "the machine has ended"

    def show(self, name: str) -> str:
        return self.run("systemctl", "show", "-P", name, "edgepack-agent").strip()

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(Exception):
            socket = Path(f"/proc/{self.leader}/root/run/edgepack/control.sock")
            return call(socket, "status", timeout_s=10)
        return {}

    def journal(self) -> list[dict[str, Any]]:
        told = self.run("journalctl", "-u", "edgepack-agent", "-o", "json", "--no-pager")
        return [json.loads(line) for line in told.splitlines()]


@contextlib.contextmanager
def booted(root: Path, log: Path, *options: str) -> Iterator[Machine]:
    command = ["systemd-nspawn", "-q", "-D", root, "--register=no", "--keep-unit", *options, "-b"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    machine = Machine(process)
    try:
        wait("the machine to boot", machine.up, 90)
        yield machine
    except Exception as error:
        error.add_note(machine.last_words())
        raise
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def enrolled(place: Site, clean: Clean) -> Device:
    """Give the clean system the identity of a new device, as `enroll` does it for root."""
    device = place.device()
    target = clean.root / "var/lib/edgepack"
    target.mkdir(exist_ok=True)
    shutil.copytree(device.data / "identity", target / "identity")
    settings = json.loads(device.config.read_text())
    del settings["data_dir"], settings["run_dir"]
    (clean.root / "etc/edgepack/conf.d/10-test.yaml").write_text(json.dumps(settings))
    return device


def test_updates_under_a_real_systemd(clean: Clean, packed: Path, tmp_path: Path) -> None:
    clean.run(f"{clean.unpack(packed)}/install.sh")
    with site(tmp_path / "site") as place:
        device = enrolled(place, clean)
        dropin = clean.root / "etc/systemd/system/edgepack-agent.service.d/quick.conf"
        dropin.parent.mkdir()
        dropin.write_text("[Service]\nWatchdogSec=4\nRestartSec=1\n")
        with booted(clean.root, tmp_path / "console.log") as machine:
            wait("the agent to connect", lambda: machine.status().get("connected"), 60)
            for version in ("1.0.0", "3.0.0"):
                place.publish(version)
                assert place.ended(place.roll_out(version, probation_s=0)) == "completed"
                assert machine.status()["serving"] == f"digits@{version}"
            assert device.accuracy() >= 0.9
            confined(machine)
            told(machine)
            watched(machine)


def confined(machine: Machine) -> None:
    """What systemd really did to the process is what the unit says."""
    assert machine.show("ActiveState") == "active"
    assert "digits@3.0.0" in machine.show("StatusText")
    assert machine.show("NRestarts") == "0"
    pid = machine.show("MainPID")
    lines = machine.run("cat", f"/proc/{pid}/status").splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert facts["Uid"].split()[0] != "0"
    assert facts["CapBnd"] == "0" * 16
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    mounts = machine.run("cat", f"/proc/{pid}/mounts").splitlines()
    state = [m.split()[3] for m in mounts if m.split()[1] == "/var/lib/private/edgepack"]
    assert state
    assert "noexec" in state[-1].split(",")


def told(machine: Machine) -> None:
    """The journal has fields to search by."""
    rows = machine.journal()
    phases = [row["EDGEPACK_PHASE"] for row in rows if "EDGEPACK_PHASE" in row]
    assert "probation" in phases
    committed = [row for row in rows if row.get("EDGEPACK_RELEASE") == "digits@3.0.0"]
    assert committed
    assert {row["EDGEPACK_DEVICE"] for row in committed} == {"cam"}
    assert {row["PRIORITY"] for row in committed} <= {"4", "5", "6", "7"}
    report = json.loads(machine.run("edgepack-agent", "doctor", "--json", check=False))
    assert not [row for row in report["findings"] if row["status"] == "fail"], report


def watched(machine: Machine) -> None:
    """A loop that stands still is ended by the watchdog, and the model serves again."""
    pid = machine.show("MainPID")
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "edgepack-agent")
    wait("the watchdog to act", lambda: machine.show("NRestarts") == "1", 60)
    wait("it to serve again", lambda: machine.status().get("serving") == "digits@3.0.0", 60)
    assert machine.show("MainPID") != pid
