"""Decisions that were made, each made once more from its inputs. Reads only."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import DecisionRow
from edgepack_fleet.core.record import actions_as_json, unpack
from edgepack_fleet.core.rollout import decide

__all__ = ["Made", "made_of"]

SHOWN = 50


@dataclass(frozen=True, slots=True)
class Made:
    """A decision that was made, and whether it would be made again."""

    at: float
    by: str
    """Who, if it was a person."""
    sentence: str
    actions: list[Any]
    digest: str
    same: bool | None
    """Whether the same inputs lead to the same actions; None: a person decided."""


def made_of(session: Session, rollout: str, limit: int = SHOWN) -> list[Made]:
    """Return the newest decisions of ROLLOUT, newest first, each made once more."""
    rows = session.scalars(
        select(DecisionRow)
        .where(DecisionRow.rollout_id == rollout)
        .order_by(DecisionRow.id.desc())
        .limit(limit)
    )
    return [Made(row.at, row.by, row.sentence, row.actions, row.digest, _same(row)) for row in rows]


def _same(row: DecisionRow) -> bool | None:
    if not row.inputs:
        return None
    try:
        kept = unpack(row.inputs)
    except ValueError:
        return False
    again = decide(kept.rollout, kept.members, kept.now)
    return actions_as_json(again.actions) == row.actions and again.reason == row.sentence
