"""Real agents whose plug is pulled in the middle of real updates, and put in again.

Unlike in `test_power_cuts`, the agent goes on afterwards: against a real fleet and broker, until
the update has ended, with one word to the fleet about it and no file left behind.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashstates.bench import Bench, Patient, bench
from crashstates.device import Examiner
from crashstates.soak import Course, Tally, rollbacks, run
from crashstates.trace import Op
from fleet_rig import wait

pytestmark = [pytest.mark.mosquitto, pytest.mark.strace]

ONCE_EACH = (
    "checking",
    "downloading",
    "verifying",
    "staged",
    "self_test",
    "probation",
    "committed",
)
"""A candidate may see three restarts, so no more than three of its phases are cut in one update."""


@pytest.fixture(scope="module")
def place() -> Iterator[Bench]:
    with bench(1, "1.0.0", "1.1.0", "1.2.0") as found:
        yield found


@pytest.fixture(scope="module")
def patient(place: Bench, tmp_path_factory: pytest.TempPathFactory) -> Patient:
    """A device that runs 1.0.0."""
    found = place.patients[0]
    Course(found, 1, Tally(), tmp_path_factory.mktemp("keep")).begin()
    assert found.job(last(found, "1.0.0")) == ("SUCCEEDED", "")
    return found


def last(patient: Patient, version: str) -> str:
    """Return the newest rollout of VERSION to PATIENT."""
    from sqlalchemy import select

    from edgepack_fleet.adapters.tables import RolloutRow

    with patient.bench.site.service.database.read() as session:
        rows = session.scalars(select(RolloutRow).order_by(RolloutRow.number)).all()
        return next(row.id for row in reversed(rows) if row.release == f"digits@{version}")


def at(patient: Patient, phase: str, place: Path, *, saved: bool) -> Callable[[int, Op], bool]:
    """Return when to kill: PHASE is in the journal's file and SAVED, or not yet synced."""
    examiner = Examiner(place, {})

    def now(_count: int, op: Op) -> bool:
        if not op.path.startswith("journal.db") or op.kind != ("sync" if saved else "write"):
            return False
        return examiner.state(patient.plug.disk.seen()).phase == phase

    return now


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param(True, id="saved", marks=pytest.mark.soak),
        pytest.param(False, id="not yet saved"),
    ],
)
def test_an_update_survives_a_cut_in_every_phase(
    patient: Patient, tmp_path: Path, saved: bool
) -> None:
    version = "1.1.0" if saved else "1.2.0"
    before = patient.events("activated")
    rollout = patient.roll_out(version, probation_s=0)
    for number, phase in enumerate(ONCE_EACH):
        patient.plug.kill_when(at(patient, phase, tmp_path / f"{number}", saved=saved))
        if not patient.plug.on:
            patient.start()
        assert patient.plug.ended.wait(60), f"{phase} is not reached"
        assert patient.plug.follows(), patient.plug.difference
        # Saved: the kernel lives on. Not yet saved: what was not synced is lost.
        if not saved:
            patient.plug.pull(0, ordered=True)
    patient.start()
    wait(f"the update to {version}", lambda: patient.job(rollout)[0] == "SUCCEEDED", 60)
    wait("right answers", lambda: patient.answers() >= 0.75)
    wait("one word about it", lambda: len(patient.events("activated")) > len(before))
    assert patient.events("activated") == [*before, f"digits@{version}"]
    wait("no file to be left", lambda: not patient.litter())


@pytest.mark.soak
def test_random_cuts(patient: Patient, tmp_path: Path) -> None:
    tally = Tally()
    course = Course(patient, 7, tally, tmp_path, versions=("1.0.0", "1.1.0", "1.2.0"))
    course.current = (patient.status().get("serving") or "").partition("@")[2]
    course.expect(patient.events("activated"))
    while tally.cuts < 4:
        course.update()
    course.settle()
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.survived == tally.cuts
    assert tally.double == 0


def test_the_way_back_is_measured_by_the_log() -> None:
    log = (
        "2026-01-01 00:00:00,100 INFO x: self_test -> rolling_back Outcome(...)\n"
        "2026-01-01 00:00:00,350 INFO x: rolling_back -> idle \n"
        "2026-01-01 00:00:01,000 INFO x: idle -> offered \n"
    )
    assert rollbacks(log) == [0.25]


@pytest.mark.soak
def test_soak(tmp_path: Path) -> None:
    tally = run(100, seed=1, minutes=20, devices=4, keep=tmp_path)
    assert not tally.failures, "\n".join(tally.failures)
