"""Every way an update can end, again and again: no thread, descriptor, file or state stays behind.

One round is fourteen endings; the long form makes a hundred of them in a row.
"""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_rig import Device, Site, site
from edgepack.errors import EdgepackError
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.core.state import State
from fleet_rig import listening, still, wait
from netfaults import Fault, Proxy

pytestmark = pytest.mark.mosquitto
_GROWING = {"outbox.db", "outbox.db-wal", "outbox.db-shm", "journal.db-wal", "journal.db-shm"}
"""Databases whose side files come and go."""
ROOM = 8_000_000
"""Bytes that the agent may write to a file while its disk is full: more than its databases have."""


@pytest.fixture
def endings(tmp_path: Path) -> Iterator["Endings"]:
    with site(tmp_path) as place, listening(place.service) as port:
        proxy = Proxy(("127.0.0.1", port))
        try:
            yield Endings(place, proxy)
        finally:
            proxy.close()


class Endings:
    """A device that fetches files through PROXY, and every way its updates can end."""

    def __init__(self, place: Site, proxy: Proxy) -> None:
        self.place, self.proxy = place, proxy
        place.service.links.url = f"https://127.0.0.1:{proxy.port}"
        self.device = place.running_1(allow_local_install=True, transfer={"via": "https"})
        self.bundle = place.publish("3.0.0")
        self.worse = place.publish("2.0.0")
        for version, facts in {
            "4.0.0": {"lie": True},
            "4.1.0": {"broken": True},
            "4.2.0": {"ram_mb": 2**30},
            "4.3.0": {"ram_mb": 12},
            "4.5.0": {},
            "4.6.0": {"padding": 2_000_000},
            "4.7.0": {"padding": ROOM},
        }.items():
            place.publish(version, **facts)

    @property
    def all(self) -> list[Callable[[], None]]:
        """Return the endings; 1.0.0 runs after each, and 3.0.0 is previous after the last."""
        return [
            self.again,
            lambda: self.bad("2.0.0", "acceptance_below_limit"),
            lambda: self.bad("4.0.0", "golden_mismatch"),
            lambda: self.bad("4.1.0", "model_unreadable"),
            lambda: self.bad("4.2.0", "ram"),
            lambda: self.bad("4.3.0", "memory_above_limit"),
            self.pinned,
            self.cancelled_while_deferred,
            self.cancelled_on_probation,
            self.stopped_by_a_person,
            self.refused_from_a_file,
            self.unreachable,
            self.disk_full,
            self.accepted,
        ]

    def bad(self, version: str, reason: str, **policy: float) -> None:
        rollout = self.place.roll_out(version, probation_s=4, **policy)
        assert self.place.ended(rollout) == "paused"
        assert self.place.job(rollout).reason == reason

    def accepted(self) -> None:
        assert self.place.ended(self.place.roll_out("3.0.0", probation_s=0)) == "completed"
        assert self.place.ended(self.place.roll_out("1.0.0", probation_s=0)) == "completed"

    def again(self) -> None:
        assert self.place.ended(self.place.roll_out("1.0.0", probation_s=0)) == "completed"

    def pinned(self) -> None:
        self.device.ask("pin")
        self.place.declined(self.place.roll_out("4.5.0"), "pinned")
        self.device.ask("unpin")

    def cancelled_while_deferred(self) -> None:
        inhibitor = self.device.home / "run" / "inhibit" / "now"
        inhibitor.touch()
        rollout = self.place.roll_out("4.5.0")
        self.reaches("deferred")
        self.place.service.rollouts.cancel(rollout)
        self.reaches("idle")
        inhibitor.unlink()

    def cancelled_on_probation(self) -> None:
        rollout = self.place.roll_out("4.5.0", probation_s=60)
        self.reaches("probation")
        self.place.service.rollouts.cancel(rollout)
        self.reaches("idle")

    def stopped_by_a_person(self) -> None:
        rollout = self.place.roll_out("4.5.0", probation_s=60)
        self.reaches("probation")
        with pytest.raises(EdgepackError, match="cancelled_locally"):
            self.device.ask("rollback")
        self.place.declined(rollout, "cancelled_locally")

    def refused_from_a_file(self) -> None:
        with self.worse.open("rb") as file, pytest.raises(EdgepackError) as found:
            self.device.ask("install", file.fileno())
        assert found.value.reason == "acceptance_below_limit"

    def unreachable(self) -> None:
        """The link dies in the middle of the model's files; what the fleet says still comes."""
        self.proxy.arm(fault := Fault("reset", 500_000, stays=True))
        self.bad("4.6.0", "unreachable", timeout_s=10)
        assert self.proxy.struck[-1] is fault
        self.reaches("idle")
        self.proxy.release()
        self.again()

    def disk_full(self) -> None:
        """The kernel takes no more of a file, and says so as it does of a disk that is full."""
        assert self.device.process is not None
        pid = self.device.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
        self.bad("4.7.0", "disk_full")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        self.again()

    def reaches(self, phase: str) -> None:
        wait(f"the phase {phase}", lambda: self.device.status().get("phase") == phase)


def belongings(device: Device) -> dict[str, object]:
    """Return what the agent of DEVICE has: threads, descriptors, files."""
    assert device.process is not None
    proc = Path(f"/proc/{device.process.pid}")
    names = (str(fd.readlink()) for fd in (proc / "fd").iterdir() if fd.is_symlink())
    kinds = sorted(name.partition(":[")[0] for name in names if "control.sock" not in name)
    files = (path.relative_to(device.data) for path in device.data.rglob("*"))
    return {
        "threads": len(list((proc / "task").iterdir())),
        "descriptors": [k for k in kinds if k.startswith("/") and k not in _GROWING]
        + [f"{kind} x{kinds.count(kind)}" for kind in ("socket", "pipe", "anon_inode")],
        "files": sorted(str(f) for f in files if f.name not in _GROWING),
    }


def settled(device: Device) -> dict[str, object]:
    """Return the belongings once they have stayed the same for a while.

    Nothing is asked meanwhile: what answers is a thread and a socket too, for a moment.
    """
    wait("quiet", lambda: device.status().get("phase") == "idle")
    return still("the belongings", lambda: belongings(device))


@pytest.mark.parametrize(
    "rounds",
    [pytest.param(1, marks=pytest.mark.scale), pytest.param(8, marks=pytest.mark.soak)],
)
def test_endings_of_every_kind_leave_nothing_behind(endings: Endings, rounds: int) -> None:
    device = endings.device
    endings.accepted()
    at_first = settled(device)
    count = 0
    for _ in range(rounds):
        for ending in endings.all:
            ending()
            count += 1
            device.comes_to_serve("digits@1.0.0")
        assert settled(device) == at_first, "nothing came, nothing went"
    assert count >= rounds * 14
    endings.accepted()
    assert device.accuracy() >= 0.9
    assert device.stop() == 0
    journal = Journal(device.data / "journal.db")
    state = journal.state
    journal.close()
    kept = State(
        current=state.current,
        previous=state.previous,
        outcome=state.outcome,
        ended=state.ended,
    )
    assert state == kept, "nothing of any job"
