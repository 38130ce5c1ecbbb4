"""Alerts as the overview shows them: those that are open, and what has been told. Reads only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.alert_tables import AlertRow
from edgepack_fleet.adapters.tables import ChangeRow
from edgepack_fleet.core.alert_rules import METRICS
from edgepack_fleet.core.alerts import Rule
from edgepack_fleet.core.units import measured

__all__ = ["Open", "Told", "history", "open_alerts"]

RANKS = {"critical": 0, "warning": 1, "info": 2}
TYPES = ("edgepack.alert.firing", "edgepack.alert.resolved")
HISTORY = 20


@dataclass(frozen=True, slots=True)
class Open:
    """An alert that is pending or fires."""

    row: AlertRow
    about: str
    """What its metric says."""
    reading: str
    """Its value, with its unit; empty: nothing was measured."""
    link: str
    """Where it can be looked into."""


@dataclass(frozen=True, slots=True)
class Told:
    """That an alert fired or ended."""

    at: float
    """Unix seconds."""
    over: bool
    rule: str
    labels: Mapping[str, str]
    reason: str
    """Why it ended, if not because its value is back."""
    link: str


def open_alerts(session: Session, rules: Sequence[Rule]) -> list[Open]:
    """Return the alerts that are not over: those that fire first, then the most severe."""
    rows = session.scalars(select(AlertRow).where(AlertRow.state.in_(("firing", "pending"))))
    metrics = {rule.name: rule.metric for rule in rules}
    found = [_open(row, metrics.get(row.rule, "")) for row in rows]
    return sorted(
        found, key=lambda a: (a.row.state != "firing", RANKS.get(a.row.severity, 3), -a.row.since)
    )


def history(session: Session) -> list[Told]:
    """Return what has been told of alerts last, newest first."""
    query = select(ChangeRow).where(ChangeRow.type.in_(TYPES)).order_by(ChangeRow.id.desc())
    return [_told(row.type, row.time, row.data) for row in session.scalars(query.limit(HISTORY))]


def _open(row: AlertRow, metric: str) -> Open:
    reading = "" if row.value is None else measured(row.value, metric)
    return Open(row, METRICS.get(metric, ""), reading, _link(row.labels))


def _told(kind: str, at: float, data: Mapping[str, Any]) -> Told:
    labels = data["labels"]
    reason = str(data.get("reason") or "")
    return Told(at, kind == TYPES[1], data["rule"], labels, reason, _link(labels))


def _link(labels: Mapping[str, str]) -> str:
    """Return the devices that an alert is about; of the fleet itself, the overview."""
    asked = {name: labels[name] for name in ("group", "release") if labels.get(name)}
    return f"/devices?{urlencode(asked)}" if asked else "/"
