"""Every way an update can end, again and again: no thread, descriptor, file or state stays behind.

One round is a dozen endings; the long form makes a hundred of them in a row.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_rig import Device, Site, site
from edgepack.errors import EdgepackError
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.core.state import State
from fleet_rig import wait

pytestmark = pytest.mark.mosquitto
_GROWING = {"outbox.db", "outbox.db-wal", "outbox.db-shm", "journal.db-wal", "journal.db-shm"}
"""Databases whose side files come and go."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


class Endings:
    """A device and every way its updates can end."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.device = place.running_1(allow_local_install=True)
        self.bundle = place.publish("3.0.0")
        self.worse = place.publish("2.0.0")
        for version, facts in {
            "4.0.0": {"lie": True},
            "4.1.0": {"broken": True},
            "4.2.0": {"ram_mb": 2**30},
            "4.3.0": {"ram_mb": 12},
            "4.5.0": {},
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
            self.accepted,
        ]

    def bad(self, version: str, reason: str) -> None:
        rollout = self.place.roll_out(version, probation_s=4)
        assert self.place.ended(rollout) == "paused"
        assert self.place.job(rollout).reason == reason

    def accepted(self) -> None:
        assert self.place.ended(self.place.roll_out("3.0.0", probation_s=0)) == "completed"
        assert self.place.ended(self.place.roll_out("1.0.0", probation_s=0)) == "completed"

    def again(self) -> None:
        assert self.place.ended(self.place.roll_out("1.0.0", probation_s=0)) == "completed"

    def pinned(self) -> None:
        self.device.ask("pin")
        self.bad("4.5.0", "pinned")
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
        assert self.place.ended(rollout) == "paused"

    def refused_from_a_file(self) -> None:
        with self.worse.open("rb") as file, pytest.raises(EdgepackError) as found:
            self.device.ask("install", file.fileno())
        assert found.value.reason == "acceptance_below_limit"

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
    """Return the belongings once runners that are leaving have left."""
    wait("quiet", lambda: device.status().get("phase") == "idle")
    before = belongings(device)

    def same() -> dict[str, object] | None:
        nonlocal before
        now = belongings(device)
        still, before = now == before, now
        return now if still else None

    return wait("the belongings to settle", same)


@pytest.mark.parametrize("rounds", [1, pytest.param(9, marks=pytest.mark.soak)])
def test_endings_of_every_kind_leave_nothing_behind(place: Site, rounds: int) -> None:
    endings = Endings(place)
    device = endings.device
    endings.accepted()
    at_first = settled(device)
    count = 0
    for _ in range(rounds):
        for ending in endings.all:
            ending()
            count += 1
            assert device.serving() == "digits@1.0.0"
        now = settled(device)
        assert now == at_first, "nothing came, nothing went"
    assert count >= rounds * 12
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
