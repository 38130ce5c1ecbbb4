"""Rollouts on a real database, director and image repository: created, stopped, superseded."""

import pytest
from sqlalchemy import select

from edgepack.errors import UsageError
from edgepack_fleet.adapters.tables import DeviceRow, OutboxRow, RolloutRow
from rollout_rig import Bench, bench, published

pytestmark = pytest.mark.both_databases

__all__ = ["bench", "published"]


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
    assert (shown.state, shown.overtaken_by) == ("paused", second)
    assert bench.show(second).overtaken_by is None
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
