"""The rollout engine on a real database and director: ways back, attempts, decisions, history."""

from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text

from edgepack import messages
from edgepack.errors import UsageError
from edgepack_fleet import jobrows
from edgepack_fleet.adapters.tables import DecisionRow, DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core.gates import parse_gate
from edgepack_fleet.core.model import Policy
from edgepack_fleet.replaying import made_of
from edgepack_fleet.rollouts import Plan
from edgepack_fleet.web.rollout_counts import briefs
from edgepack_fleet.web.rollout_story import consequence, track
from rollout_rig import Bench, bench, published, to_revision

__all__ = ["bench", "published"]


def succeed(bench: Bench, *devices: str) -> None:
    for device in devices:
        bench.set(device, "SUCCEEDED")
        with bench.database.write() as session:
            found = session.get_one(DeviceRow, device)
            newest = select(JobRow).where(JobRow.device_id == device)
            job = session.scalars(newest.order_by(JobRow.created.desc(), JobRow.attempt.desc()))
            found.bundle = job.first().release  # type: ignore[union-attr]


def newest(bench: Bench, device: str) -> JobRow:
    with bench.database.read() as session:
        query = select(JobRow).where(JobRow.device_id == device)
        found = session.scalars(query.order_by(JobRow.created.desc(), JobRow.attempt.desc()))
        job = found.first()
    assert job is not None
    return job


def test_a_breached_gate_gives_every_device_back_what_it_had(bench: Bench) -> None:
    bench.add("a", "b")
    bench.create(waves="100%")
    bench.tick()
    succeed(bench, "a", "b")
    bench.tick()
    gates = (parse_gate("agreement>=0.9"),)
    second = bench.create("digits@2.0.0", "100%", gates=gates, on_breach="revert")
    bench.tick()
    assert jobrows.job_message(newest(bench, "a")).release == "digits@2.0.0"
    assert newest(bench, "a").terms["shadow"] == {"seconds": 60}
    succeed(bench, "a", "b")
    with bench.database.write() as session:
        for job in session.scalars(select(JobRow).where(JobRow.rollout_id == second)):
            job.detail = {"shadow": {"samples": 50, "agreement": 0.4}}
        session.get_one(DeviceRow, "b").online = False
    bench.tick()
    assert bench.show(second).state == "reverting"
    assert "agreement is 0.4" in bench.show(second).reason
    bench.tick()
    with bench.database.read() as session:
        half = track(session, session.get_one(RolloutRow, second), bench.now)
    assert consequence("cancel", half, overtaken=False) == (
        "It ends for good. On the way back: 1 device, to be told to stop. Back: 0 devices. "
        "Whoever still has digits@2.0.0 keeps it."
    )
    back = newest(bench, "a")
    assert (back.release, back.kind, back.attempt) == ("digits@1.0.0", "revert", 2)
    assert back.id != f"{second}-a", "the device knows that job as ended"
    assert "digits/1.0.0" in bench.wanted("a")
    succeed(bench, "a")
    bench.tick()
    shown = bench.show(second)
    assert (shown.state, shown.reason) == (
        "reverted",
        (
            "Reverted: in wave 1 agreement is 0.4, wanted is >= 0.9. 1 device is back on the"
            " release before; 1 is out of reach and goes back when it returns."
        ),
    )
    assert [(wave.done, wave.failed, wave.pending) for wave in shown.waves] == [(2, 0, 0)]
    assert [(d.id, d.status, d.way) for d in shown.devices] == [
        ("a", "SUCCEEDED", "revert"), ("b", "SUCCEEDED", "install"),
    ]  # fmt: skip
    assert [(gate.verdict, gate.value) for gate in shown.waves[0].gates] == [("breached", 0.4)]
    with bench.database.read() as session:
        (brief,) = briefs(session, [session.get_one(RolloutRow, second)])
    assert [(wave.size, wave.done) for wave in brief.waves] == [(2, 2)]
    with bench.database.write() as session:
        session.get_one(DeviceRow, "b").online = True
    bench.tick()
    assert newest(bench, "b").release == "digits@1.0.0", "who was out of reach goes back later"
    with bench.database.read() as session:
        made = made_of(session, second)
    assert [one.same for one in made if not one.by] == [True] * sum(not one.by for one in made)
    assert {a["do"] for one in made for a in one.actions} >= {"assign", "revert", "reverted"}


@pytest.mark.parametrize("action", ["revert", "cancel"])
def test_what_had_stopped_it_is_told_after_a_person_has_ended_it(bench: Bench, action: str) -> None:
    bench.add("a")
    rollout = bench.create(waves="100%")
    bench.tick()
    bench.set("a", "FAILED", "exam_below_limit")
    bench.tick()
    getattr(bench.rollouts, action)(rollout, by="alice")
    bench.tick()
    stopped = "1 of 1 finished devices failed (exam_below_limit); the limit is 1"
    assert f"by alice. It was paused: {stopped}." in bench.show(rollout).reason


def test_another_attempt_is_another_job_and_too_many_failures_leave_a_device_out(
    bench: Bench,
) -> None:
    bench.add("a")
    rollout = bench.create(waves="100%", retry_s=10.0, max_attempts=9, penalty_failures=2)
    bench.tick()
    first = newest(bench, "a").id
    bench.set("a", "FAILED", "unreachable")
    bench.tick(5)
    assert newest(bench, "a").id == first
    bench.tick(5)
    second = newest(bench, "a")
    assert (second.attempt, second.status) == (2, "QUEUED")
    assert second.id != first
    bench.set("a", "FAILED", "unreachable")
    bench.tick(3600)
    assert newest(bench, "a").id == second.id, "it is left out for a day"
    bench.tick(86400)
    assert newest(bench, "a").attempt == 3
    assert bench.show(rollout).state == "running"


def test_somebody_approves_and_it_is_written_down_who(bench: Bench) -> None:
    bench.add("a")
    plan = Plan("digits@1.0.0", "lab", "100%", Policy(approval=True), draft=True)
    rollout = bench.rollouts.plan(plan, by="operator")
    bench.tick()
    assert bench.show(rollout).state == "draft"
    with pytest.raises(UsageError, match="is draft"):
        bench.rollouts.approve(rollout)
    bench.rollouts.start(rollout)
    bench.tick()
    assert bench.jobs(rollout) == {}
    assert bench.show(rollout).reason == "Waiting: somebody must approve it."
    bench.rollouts.approve(rollout, by="alice")
    bench.tick()
    assert bench.jobs(rollout) == {"a": "QUEUED"}
    assert bench.show(rollout).approved_by == "alice"
    with bench.database.read() as session:
        said = [(row.sentence, row.by) for row in session.scalars(select(DecisionRow)) if row.by]
    assert said == [("created", "operator"), ("started", "operator"), ("approved", "alice")]


def test_the_higher_priority_goes_first_and_the_other_says_so(bench: Bench) -> None:
    bench.add("a")
    high = bench.rollouts.plan(Plan("digits@2.0.0", "lab", "100%", priority=5))
    low = bench.create(waves="100%")
    bench.tick()
    assert bench.jobs(high) == {"a": "QUEUED"}
    assert bench.jobs(low) == {}
    assert bench.show(low).reason == f"Waiting: {high} goes before digits@1.0.0 on these devices."


def test_a_rehearsal_changes_nothing(bench: Bench) -> None:
    bench.add("a", "b")
    parts = bench.rollouts.rehearse(Plan("digits@1.0.0", "lab", "1"))
    assert [(p.device, p.wave, p.why) for p in parts] == [
        ("a", 0, ""), ("b", None, "the waves end before it"),
    ]  # fmt: skip
    with bench.database.read() as session:
        assert session.scalars(select(DecisionRow)).all() == []
        assert session.scalars(select(JobRow)).all() == []


def test_windows_and_limits_reach_the_device(bench: Bench) -> None:
    bench.add("a")
    window = messages.Window(start="22:00", end="04:00", zone="Europe/Berlin")
    bench.create(waves="100%", windows=(window,), total_s=600, max_defer_s=60)
    bench.tick()
    job = jobrows.job_message(newest(bench, "a"))
    assert (job.windows, job.total_s, job.max_defer_s) == ((window,), 600, 60)


@pytest.mark.both_databases
def test_the_migration_goes_both_ways_with_data(bench: Bench, tmp_path: Path) -> None:
    bench.add("a", "b")
    rollout = bench.create(waves="100%", retry_s=0.0)
    bench.tick()
    bench.set("a", "FAILED", "unreachable")
    succeed(bench, "b")
    bench.tick()
    assert newest(bench, "a").attempt == 2
    with bench.database.engine.begin() as connection:
        assert connection.scalar(text("SELECT COUNT(*) FROM jobs")) == 3
    to_revision("0002", bench.database)
    with bench.database.engine.connect() as plain:
        rows = plain.execute(text("SELECT device_id, status FROM jobs ORDER BY device_id")).all()
        assert rows == [("a", "QUEUED"), ("b", "SUCCEEDED")]
    (index,) = (
        found
        for found in inspect(bench.database.engine).get_indexes("jobs")
        if found["name"] == "ux_jobs_one_open"
    )
    assert any(name.endswith("_where") for name in index["dialect_options"])
    bench.database.migrate()
    assert bench.jobs(rollout) == {"a": "QUEUED", "b": "SUCCEEDED"}
    assert newest(bench, "a").terms == {}
    bench.tick()
    assert bench.show(rollout).state == "running"
