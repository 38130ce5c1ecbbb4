"""A power cut at every moment of real updates: what is left is always a device that works.

One real agent installs a model, refuses a bad one and installs a third, while every operation on
its files is recorded. Then every state of the disk that a cut could have left is built (see
`crashstates`) and examined.
"""

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent_rig import Device, Site, site
from crashstates.cuts import Cut, cuts
from crashstates.device import Examiner, Left, Promises
from crashstates.disk import Disk, Image, read_image
from crashstates.trace import Op, read_ops, settled, strace
from edgepack_agent.core.machine import PHASES
from fleet_rig import wait

pytestmark = [pytest.mark.mosquitto, pytest.mark.strace]


SHADOW = {"shadow": {"seconds": 0.1, "deadline_s": 0.2}}
"""Nobody asks the device anything, so that a moment of comparing ends with too few samples."""


@dataclass(frozen=True)
class Life:
    """What an agent did to its data directory, from its first start on."""

    before: Image
    ops: list[Op]
    examiner: Examiner
    promises: Promises


def end(device: Device, record: Path, sign: int = signal.SIGTERM) -> None:
    assert device.process is not None
    device.process.send_signal(sign)
    device.process.wait(30)
    settled(record, device.process.pid)


def lived(place: Site) -> tuple[Device, Image, list[Op]]:
    """Let a device live through three updates; return it, and what it did."""
    record = place.root / "record"
    device = place.device(telemetry={"level": "metrics", "interval_s": 60}, update=SHADOW)
    device.under, before = strace(record), read_image(device.data)
    place.publish("1.0.0")
    place.publish("2.0.0")
    place.publish("3.0.0")
    device.start()
    wait("the device to connect", lambda: device.status().get("connected"))
    for version, ends in (("1.0.0", "completed"), ("2.0.0", "paused"), ("3.0.0", "completed")):
        assert place.ended(place.roll_out(version, probation_s=0)) == ends
        wait("the device to rest", lambda: device.status().get("phase") == "idle")
    end(device, record)
    return device, before, read_ops(record, device.data)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scratch directory, in memory where there is such a file system."""
    there = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path_factory.mktemp("scratch")
    place = Path(tempfile.mkdtemp(prefix="edgepack-cuts-", dir=there))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, memory: Path) -> Life:
    root = tmp_path_factory.mktemp("life")
    with site(root) as place:
        device, before, ops = lived(place)
        blobs = [path for path in (root / "fleet" / "blobs").rglob("*") if path.is_file()]
        content = {path.name: path.read_bytes() for path in blobs}
    disk = Disk(before)
    for op in ops:
        disk.apply(op)
    now = {k: v for k, v in disk.seen().items() if not k.endswith("-shm")}
    assert now == {k: v for k, v in read_image(device.data).items() if not k.endswith("-shm")}
    examiner = Examiner(memory, content)
    return Life(before, ops, examiner, Promises.of(before, ops, examiner))


def test_the_record_goes_through_the_whole_story(life: Life) -> None:
    phases = {state.phase for state in life.promises.states}
    assert phases >= set(PHASES) - {"deferred"}, set(PHASES) - phases
    assert len(life.ops) > 300


def judge(life: Life, all_cuts: Iterator[Cut]) -> list[str]:
    """Return every promise that a cut breaks."""
    known: dict[int, Left] = {}
    broken: list[str] = []
    for cut in all_cuts:
        if cut.mark not in known:
            known[cut.mark] = life.examiner.examine(cut.image)
        broken += [f"{cut}: {each}" for each in life.promises.broken(cut.moment, known[cut.mark])]
    return broken


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "posix"])
def test_a_cut_at_any_moment_breaks_no_promise(life: Life, ordered: bool) -> None:
    seen = cuts(life.before, life.ops, ordered=ordered, seeds=2)
    broken = judge(life, seen)
    assert not broken, "\n".join(broken[:20])


FORGOTTEN = {
    "the journal's": r"journal\.db-wal",
    "the floors'": r"\.part-.*",
    "a chunk's": r"parts/.*\.part",
    "the slots'": r"slots.*|outbox.*|journal.*|",
}
"""Whose data or names an agent could forget to sync."""


@pytest.mark.parametrize("forgotten", FORGOTTEN.values(), ids=FORGOTTEN)
def test_an_agent_that_forgets_to_sync_is_caught(life: Life, forgotten: str) -> None:
    ops = [op for op in life.ops if op.kind != "sync" or not re.fullmatch(forgotten, op.path)]
    assert len(ops) < len(life.ops)
    # What was promised was promised all the same, so every moment must stay what it was.
    kept = [op if op in ops else Op("chmod", op.path) for op in life.ops]
    assert judge(life, cuts(life.before, kept, ordered=False, seeds=0))
