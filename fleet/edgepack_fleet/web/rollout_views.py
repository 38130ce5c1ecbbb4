"""Rollouts as the REST interface tells them."""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy.orm import Session

from edgepack_fleet import store
from edgepack_fleet.adapters.tables import RolloutRow
from edgepack_fleet.core.model import LIVE
from edgepack_fleet.core.overtaking import Line
from edgepack_fleet.web import schemas
from edgepack_fleet.web.rollout_story import Gauge, Stage, track

__all__ = ["rollout", "rollouts"]


def rollouts(session: Session, rows: Sequence[RolloutRow], now: float) -> list[schemas.Rollout]:
    """Return the rollouts of ROWS at NOW (Unix seconds)."""
    ahead = store.overtakers(session, [row for row in rows if row.state in LIVE])
    return [_rollout(session, row, ahead.get(row.id), now) for row in rows]


def rollout(session: Session, rollout_id: str, now: float) -> schemas.Rollout | None:
    """Return one rollout at NOW (Unix seconds); None if there is none of that id."""
    row = session.get(RolloutRow, rollout_id)
    return rollouts(session, [row], now)[0] if row else None


def _rollout(session: Session, row: RolloutRow, first: Line | None, now: float) -> schemas.Rollout:
    found = track(session, row, now)
    gates = [str(gate) for gate in found.rollout.policy.gates]
    return schemas.Rollout(
        id=row.id,
        release=row.release,
        group=row.group_id,
        state=found.rollout.state,
        reason=row.reason,
        overtaken_by=first.rollout if first else None,
        plan=row.waves,
        policy=row.policy | {"gates": gates},
        priority=row.priority,
        approved_by=row.approved_by,
        waves=[_wave(stage) for stage in found.stages],
        devices=[schemas.Member(**asdict(part)) for part in found.parts],
        failures=[schemas.Failure(reason=r, devices=list(ids)) for r, ids in found.failures],
        created=row.created,
        updated=row.updated,
    )


def _wave(stage: Stage) -> schemas.Wave:
    return schemas.Wave(
        size=stage.size,
        done=stage.done,
        failed=stage.failed,
        pending=stage.pending + stage.busy,
        gates=[_gate(gauge) for gauge in stage.gates],
    )


def _gate(gauge: Gauge) -> schemas.GateReading:
    reading = gauge.reading
    return schemas.GateReading(
        gate=str(reading.gate),
        verdict="waived" if gauge.waived else reading.verdict,
        value=reading.value,
        measured=reading.measured,
        wanted=reading.wanted,
        said=reading.said,
    )
