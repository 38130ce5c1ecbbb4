"""Decisions in the database: kept with their inputs, the newest ones."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import DecisionRow
from edgepack_fleet.core.actions import Decision
from edgepack_fleet.core.record import Packed, actions_as_json

__all__ = ["KEPT", "keep", "note"]

KEPT = 200
"""Decisions of a rollout that are kept, the newest ones."""


def keep(session: Session, rollout: str, decision: Decision, inputs: Packed, now: float) -> None:
    """Keep DECISION of ROLLOUT with its INPUTS; the oldest ones go."""
    session.add(
        DecisionRow(
            rollout_id=rollout,
            at=now,
            by="",
            digest=inputs.digest,
            inputs=inputs.data,
            actions=actions_as_json(decision.actions),
            sentence=decision.reason,
        )
    )
    _forget(session, rollout)


def note(session: Session, rollout: str, what: str, by: str, now: float) -> None:
    """Keep that a person, BY, did WHAT with ROLLOUT."""
    session.add(
        DecisionRow(
            rollout_id=rollout,
            at=now,
            by=by or "operator",
            digest="",
            inputs=b"",
            actions=[],
            sentence=what,
        )
    )


def _forget(session: Session, rollout: str) -> None:
    session.flush()
    kept = (
        select(DecisionRow.id)
        .where(DecisionRow.rollout_id == rollout, DecisionRow.digest != "")
        .order_by(DecisionRow.id.desc())
        .offset(KEPT)
        .limit(1)
    )
    oldest = session.scalar(kept)
    if oldest is not None:
        session.execute(
            delete(DecisionRow).where(
                DecisionRow.rollout_id == rollout,
                DecisionRow.id <= oldest,
                DecisionRow.digest != "",
            )
        )
