"""A whole update as the systemd unit has it: nobody, a read-only system, its system calls only."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_rig import Device, Site, site
from edgepack_agent.runner import landlock
from fleet_rig import wait
from sandbox import NOBODY, allowed_calls

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give it up"),
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"),
]
ROOT = Path(__file__).parents[2]
UNIT = ROOT / "agent" / "systemd" / "edgepack-agent.service"
LAUNCHER = Path(__file__).parents[1] / "sandbox.py"


@pytest.fixture
def place() -> Iterator[Site]:
    # Not below pytest's own directories, which only their owner may enter.
    with tempfile.TemporaryDirectory(prefix="edgepack-") as home:
        Path(home).chmod(0o755)
        with site(Path(home)) as found:
            yield found


def confine(device: Device, *options: str) -> None:
    """Have DEVICE run as the unit says."""
    run = device.home / "run"
    run.mkdir()
    for path in (device.home, *device.home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    device.under = ["unshare", "--mount", "--propagation", "private", sys.executable]
    device.under += [str(LAUNCHER), str(UNIT), *options, str(device.data), str(run), "--"]


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_two_updates_as_nobody_on_a_read_only_system(place: Site) -> None:
    device = place.device()
    confine(device)
    device.start()
    for version in ("1.0.0", "3.0.0"):
        place.publish(version)
        assert place.ended(place.roll_out(version, probation_s=0)) == "completed", device.log
        assert device.serving() == f"digits@{version}"
    assert device.accuracy() >= 0.9
    assert device.status()["runner"]["landlock"] is (landlock.abi() > 0)

    assert device.process is not None
    agent = device.process.pid
    (runner,) = wait("the old runner to end", lambda: len(c := children(agent)) == 1 and c)
    for pid in (agent, runner):
        found = facts(pid)
        assert found["Uid"].split() == [str(NOBODY)] * 4
        assert (found["CapEff"], found["CapBnd"]) == ("0" * 16, "0" * 16)
        assert found["NoNewPrivs"] == "1"
        assert (found["Seccomp"], found["Seccomp_filters"]) == ("2", "2")
    mounts = Path(f"/proc/{device.process.pid}/mounts").read_text().splitlines()
    writable = {line.split()[1] for line in mounts if "rw" in line.split()[3].split(",")}
    writable = {path for path in writable if not path.startswith(("/proc", "/sys", "/dev"))}
    assert writable == {str(device.data), str(device.home / "run")}
    assert device.stop() == 0


def test_a_call_that_is_missing_in_the_unit_is_noticed(place: Site) -> None:
    """What the test above proves: with one call less the update does not come through."""
    device = place.device()
    confine(device, "--without", "rename")
    device.start()
    place.publish("1.0.0")
    rollout = place.roll_out("1.0.0", probation_s=0)
    assert place.ended(rollout) == "paused", device.log
    job = place.job(rollout)
    assert (job.status, job.reason) == ("FAILED", "storage")
    assert "not permitted" in job.detail["message"]
    assert device.serving() is None


def test_calls_with_a_long_record_of_holes_are_not_among_the_allowed() -> None:
    calls = allowed_calls(UNIT)
    assert {"openat", "fsync", "rename", "sched_setaffinity"} <= calls
    for call in ("io_uring_setup", "userfaultfd", "keyctl", "mount", "setuid", "bpf", "ptrace"):
        assert call not in calls
    assert "landlock_restrict_self" in calls


def test_the_launcher_itself_refuses_what_the_unit_does(tmp_path: Path) -> None:
    """Writing elsewhere, other address families and forbidden calls fail, as `strict` has it."""
    code = (
        "import ctypes, errno, os, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def io_uring_setup():\n"
        "    if libc.syscall(425, 0, 0): raise OSError(ctypes.get_errno(), '')\n"
        "def refused(call, *words):\n"
        "    try: call(*words)\n"
        "    except OSError as e: return errno.errorcode[e.errno]\n"
        "print(refused(open, '/etc/x', 'w'), refused(io_uring_setup),\n"
        "  refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW),\n"
        "  refused(os.listdir, '/root/.ssh'), refused(os.setuid, 0))\n"
    )
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, LAUNCHER, UNIT]
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["EROFS", "EPERM", "EAFNOSUPPORT", "ENOENT", "EPERM"], done.stderr
