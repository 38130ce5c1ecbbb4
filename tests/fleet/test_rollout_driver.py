"""Rollouts on a real database, director and image repository: created, stopped, superseded."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from edgepack.errors import UsageError
from edgepack.messages import Inventory
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow, JobRow, OutboxRow, RolloutRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.core.variants import Release
from edgepack_fleet.rollouts import Rollouts
from edgepack_fleet.web import schemas, views
from trust_rig import World

FITS = msgspec.to_builtins(Inventory(arch="x86_64", runtimes={"onnx": "1.23.2"}))


@dataclass
class Bench:
    """A fleet without broker or HTTP. A test moves its clock and plays its devices."""

    world: World
    database: Database
    now: float = 1_000_000.0
    rollouts: Rollouts = field(init=False)

    def __post_init__(self) -> None:
        world = self.world
        self.rollouts = Rollouts(
            self.database,
            lambda device, target: world.director.assign(device, target),
            lambda: [Release(r.name, r.version, r.variants) for r in world.image.releases()],
            lambda: self.now,
        )

    def add(self, *names: str, group: str = "lab", online: bool = True) -> None:
        with self.database.write() as session:
            if session.get(GroupRow, group) is None:
                session.add(GroupRow(id=group, created=0.0))
                session.flush()
            session.add_all(
                DeviceRow(id=n, group_id=group, enrolled=0.0, certificate_serial="1",
                          inventory=FITS, online=online)
                for n in names
            )  # fmt: skip

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.rollouts.tick(0.0)

    def set(self, device: str, status: str, reason: str = "") -> None:
        with self.database.write() as session:
            query = select(JobRow).where(JobRow.device_id == device).order_by(JobRow.created.desc())
            job = session.scalars(query).first()
            assert job is not None
            job.status, job.reason, job.updated = status, reason, self.now
            job.version += 1

    def jobs(self, rollout: str) -> dict[str, str]:
        with self.database.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.rollout_id == rollout))
            return {row.device_id: row.status for row in rows}

    def show(self, rollout: str) -> schemas.Rollout:
        with self.database.read() as session:
            found = views.rollout(session, rollout)
        assert found is not None
        return found

    def create(self, release: str = "digits@1.0.0", waves: str = "1,100%", **limits: object) -> str:
        return self.rollouts.create(release, "lab", waves, Policy(**limits))  # type: ignore[arg-type]

    def wanted(self, device: str) -> str:
        data = self.world.director.metadata(device, "timestamp.json")
        assert data is not None
        version = max(
            int(p.name.split(".")[0])
            for p in (self.world.path / "fleet/director/devices" / device).glob("*.targets.json")
        )
        return (self.world.director.metadata(device, f"{version}.targets.json") or b"").decode()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    for version in ("1.0.0", "2.0.0"):
        world.release(version)
    return world


@pytest.fixture
def bench(published: World, tmp_path: Path) -> Iterator[Bench]:
    database = Database.in_directory(tmp_path)
    database.migrate()
    yield Bench(published, database)
    database.close()


def test_a_rollout_goes_wave_by_wave_and_tells_director_and_devices(bench: Bench) -> None:
    bench.add("a", "b", "c")
    rollout = bench.create()
    bench.tick()
    assert bench.jobs(rollout) == {"a": "QUEUED"}
    assert "models/digits/1.0.0/onnx-int8.json" in bench.wanted("a")
    with bench.database.read() as session:
        assert session.scalars(select(OutboxRow.topic)).all() == ["ep/1/d/a/dn/job/notify"]
    bench.set("a", "SUCCEEDED")
    bench.tick()
    assert bench.jobs(rollout) == {"a": "SUCCEEDED", "b": "QUEUED", "c": "QUEUED"}
    bench.set("b", "SUCCEEDED")
    bench.set("c", "SUCCEEDED")
    bench.tick()
    shown = bench.show(rollout)
    assert (shown.state, shown.reason) == ("completed", "3 of 3 devices run digits@1.0.0.")
    assert [(w.size, w.done, w.failed, w.pending) for w in shown.waves] == [
        (1, 1, 0, 0),
        (2, 2, 0, 0),
    ]


def test_a_tick_that_changes_nothing_writes_nothing(bench: Bench) -> None:
    bench.add("a")
    rollout = bench.create()
    bench.tick()
    bench.tick()
    with bench.database.read() as session:
        version = session.get_one(RolloutRow, rollout).version
    for _ in range(3):
        assert bench.rollouts.tick(0.0) is False
    with bench.database.read() as session:
        assert session.get_one(RolloutRow, rollout).version == version


def test_failures_pause_and_resuming_accepts_them(bench: Bench) -> None:
    bench.add("a", "b")
    rollout = bench.create()
    bench.tick()
    bench.set("a", "FAILED", "acceptance_below_limit")
    bench.tick()
    shown = bench.show(rollout)
    assert shown.state == "paused"
    assert "acceptance_below_limit" in shown.reason
    assert [(f.reason, f.devices) for f in shown.failures] == [("acceptance_below_limit", ["a"])]
    bench.tick()
    assert bench.jobs(rollout) == {"a": "FAILED"}, "paused assigns nothing"
    bench.rollouts.resume(rollout)
    bench.tick()
    assert bench.jobs(rollout) == {"a": "FAILED", "b": "QUEUED"}


def test_an_operator_pauses_resumes_and_cancels(bench: Bench) -> None:
    bench.add("a", "b")
    rollout = bench.create(waves="1,100%")
    bench.tick()
    bench.set("a", "IN_PROGRESS")
    bench.rollouts.pause(rollout)
    assert bench.show(rollout).reason == "Paused by an operator."
    with pytest.raises(UsageError, match="is paused"):
        bench.rollouts.pause(rollout)
    bench.rollouts.resume(rollout)
    bench.rollouts.cancel(rollout)
    assert bench.jobs(rollout) == {"a": "CANCELED"}
    assert bench.show(rollout).state == "cancelled"
    bench.tick()
    assert bench.jobs(rollout) == {"a": "CANCELED"}
    for action in (bench.rollouts.pause, bench.rollouts.resume, bench.rollouts.cancel):
        with pytest.raises(UsageError):
            action(rollout)
        with pytest.raises(UsageError, match="no rollout"):
            action("r99")


def test_a_newer_rollout_takes_over(bench: Bench) -> None:
    bench.add("a", "b")
    first = bench.create()
    bench.tick()
    bench.set("a", "IN_PROGRESS")
    second = bench.create("digits@2.0.0")
    assert bench.show(first).state == "cancelled"
    assert second in bench.show(first).reason
    bench.tick()
    assert bench.jobs(first) == {"a": "CANCELED"}
    assert bench.jobs(second) == {"a": "QUEUED"}
    assert "digits/2.0.0" in bench.wanted("a")


def test_a_paused_rollout_stays_as_it_was_but_cannot_go_on_beside_a_newer_one(
    bench: Bench,
) -> None:
    bench.add("a", "b")
    first = bench.create()
    bench.tick()
    bench.set("a", "FAILED", "x")
    bench.tick()
    second = bench.create("digits@2.0.0", "100%")
    bench.tick()
    assert bench.jobs(second) == {"a": "QUEUED", "b": "QUEUED"}
    shown = bench.show(first)
    assert shown.state == "paused"
    assert {d.id: d.status for d in shown.devices} == {"a": "FAILED", "b": "QUEUED"}
    with pytest.raises(UsageError) as caught:
        bench.rollouts.resume(first)
    assert second in caught.value.why


def test_a_late_device_gets_the_newest_that_completed_and_only_that(bench: Bench) -> None:
    bench.add("a")
    first = bench.create(waves="100%")
    bench.tick()
    bench.set("a", "SUCCEEDED")
    bench.tick()
    second = bench.create("digits@2.0.0", "100%")
    bench.tick()
    bench.set("a", "SUCCEEDED")
    bench.tick()
    assert bench.show(second).state == "completed"
    bench.add("late")
    bench.tick()
    assert "late" not in bench.jobs(first)
    assert bench.jobs(second)["late"] == "QUEUED"


def test_a_paused_rollout_does_not_keep_newcomers_from_the_one_before(bench: Bench) -> None:
    bench.add("a")
    first = bench.create(waves="100%")
    bench.tick()
    bench.set("a", "SUCCEEDED")
    bench.tick()
    second = bench.create("digits@2.0.0", "100%")
    bench.tick()
    bench.set("a", "FAILED", "x")
    bench.tick()
    assert bench.show(second).state == "paused"
    bench.add("late")
    bench.tick()
    assert bench.jobs(first)["late"] == "QUEUED"
    bench.tick()
    assert bench.jobs(first)["a"] == "SUCCEEDED", "what the newer one touched is left alone"


def test_a_device_that_left_before_taking_its_job_makes_room_and_comes_back(bench: Bench) -> None:
    bench.add("a", "b")
    rollout = bench.create(waves="1,100%", patience_s=60.0)
    bench.tick()
    with bench.database.write() as session:
        session.get_one(DeviceRow, "a").online = False
    bench.tick(30)
    assert bench.jobs(rollout) == {"a": "QUEUED"}
    bench.tick(40)
    assert bench.jobs(rollout) == {"b": "QUEUED"}
    with bench.database.write() as session:
        session.get_one(DeviceRow, "a").online = True
    bench.tick()
    assert bench.jobs(rollout) == {"b": "QUEUED"}, "it waits for its wave now"
    bench.set("b", "SUCCEEDED")
    bench.tick()
    assert bench.jobs(rollout) == {"b": "SUCCEEDED", "a": "QUEUED"}


def test_silence_counts_only_while_the_fleet_could_hear(bench: Bench) -> None:
    bench.add("a")
    rollout = bench.create(waves="100%", timeout_s=60.0)
    bench.tick()
    bench.set("a", "IN_PROGRESS")
    bench.now += 1000
    bench.rollouts.tick(heard_since=bench.now - 5)
    assert bench.jobs(rollout) == {"a": "IN_PROGRESS"}
    bench.rollouts.tick(heard_since=bench.now - 61)
    assert bench.jobs(rollout) == {"a": "TIMED_OUT"}
    assert bench.show(rollout).state == "paused"


def test_what_does_not_fit_is_shown_as_skipped_with_the_reason(bench: Bench) -> None:
    bench.add("a")
    with bench.database.write() as session:
        session.get_one(DeviceRow, "a").inventory = {"runtimes": {"tflite": "2.1"}}
    rollout = bench.create()
    bench.tick()
    (shown,) = bench.show(rollout).devices
    assert shown.status == "SKIPPED"
    assert "onnx" in shown.reason


def test_what_is_not_there_is_said(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"digits@7\.7\.7") as caught:
        bench.create("digits@7.7.7")
    assert "digits@1.0.0" in caught.value.why
    with pytest.raises(UsageError, match="lab"):
        bench.create()
    bench.add("a")
    with pytest.raises(UsageError, match="waves"):
        bench.create(waves="none")


def test_a_decision_made_on_old_facts_is_not_saved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("a")
    rollout = bench.create()
    assign = bench.world.director.assign

    def pause_meanwhile(*args: object) -> None:
        bench.rollouts.pause(rollout)
        assign(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.world.director, "assign", pause_meanwhile)
    assert bench.rollouts.tick(0.0) is False
    assert bench.jobs(rollout) == {}
    assert bench.show(rollout).state == "paused"
