"""The REST interface to alerts. Routes only."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from edgepack_fleet.adapters.alert_tables import AlertRow
from edgepack_fleet.core.alert_rules import METRICS
from edgepack_fleet.core.units import measured
from edgepack_fleet.service import Service
from edgepack_fleet.web import paging
from edgepack_fleet.web.guard import PREFIX, Operator, Viewer, Who, service_of
from edgepack_fleet.web.queries import ListQuery
from edgepack_fleet.web.schemas import Model, Page

__all__ = ["router"]

AlertState = Literal["inactive", "pending", "firing", "resolved"]
Severity = Literal["info", "warning", "critical"]
ALERTS: paging.Order = {"since": (AlertRow.since, AlertRow.id)}

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX)


class AlertQuery(ListQuery):
    """Which alerts."""

    sort: Literal["since", "-since"] = "-since"
    state: AlertState | None = None
    severity: Severity | None = None


class Alert(Model):
    """Where a rule stands with one thing it watches."""

    id: str
    rule: str
    severity: Severity
    labels: dict[str, str] = Field(description="What it is about: `group`, `release`; may be empty")
    state: AlertState
    since: float = Field(description="Unix seconds")
    value: float | None = Field(description="The last; null: nothing was measured")
    reading: str = Field(description="The same for people, with its unit; may be empty")
    reason: str = Field(description="Why it has ended; empty: its value is back, or it has not")
    silenced_until: float | None = Field(description="Unix seconds; null: it is not")
    acknowledged_by: str = Field(description="Empty: nobody has taken it up")


class Alerts(Page[Alert]):
    """A page of alerts."""


class AlertRule(Model):
    """A condition that is watched."""

    name: str
    metric: str
    about: str = Field(description="What the metric says")
    op: Literal[">", "<"]
    limit: float
    clear: float = Field(description="Value at which it ends")
    for_s: float = Field(description="Seconds for which the limit must be exceeded")
    severity: Severity
    repeat_s: float
    missing_s: float = Field(description="Seconds without a value after which it ends")


class AlertRules(Model):
    """All rules."""

    items: list[AlertRule]


class Silence(Model):
    """For how long nobody is told."""

    seconds: float = Field(ge=0, le=90 * 86_400, description="0: it is not silenced any more")


@router.get("/alerts", dependencies=[Viewer])
def list_alerts(fleet: Fleet, asked: Annotated[AlertQuery, Query()]) -> Alerts:
    """List alerts that are pending, fire, or have ended within the hour; newest first."""
    filters = [
        (asked.state is not None, AlertRow.state == asked.state),
        (asked.severity is not None, AlertRow.severity == asked.severity),
    ]
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, AlertRow, filters, ALERTS, asked)
    return Alerts(items=[_alert(row, fleet) for row in rows], next=after)


@router.get("/alert-rules", dependencies=[Viewer])
def list_alert_rules(fleet: Fleet) -> AlertRules:
    """List what is watched."""
    return AlertRules(items=[_rule(rule) for rule in fleet.alerts.config.rules])


@router.post("/alerts/{alert}/acknowledge", dependencies=[Operator])
def acknowledge_alert(fleet: Fleet, alert: str, who: Who) -> Alert:
    """Take an alert up: it is not told again until it ends."""
    return _alert(fleet.alerts.acknowledge(alert, by=who), fleet)


@router.post("/alerts/{alert}/silence", dependencies=[Operator])
def silence_alert(fleet: Fleet, alert: str, asked: Silence) -> Alert:
    """Tell nobody of an alert for a while."""
    return _alert(fleet.alerts.silence(alert, asked.seconds), fleet)


def _alert(row: AlertRow, fleet: Service) -> Alert:
    metrics = {rule.name: rule.metric for rule in fleet.alerts.config.rules}
    facts: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("id", "rule", "severity", "labels", "state", "since", "value", "reason")
    }
    return Alert(
        **facts,
        reading="" if row.value is None else measured(row.value, metrics.get(row.rule, "")),
        silenced_until=row.silenced if row.silenced > fleet.now() else None,
        acknowledged_by=row.acknowledged,
    )


def _rule(rule: Any) -> AlertRule:
    names = [name for name in AlertRule.model_fields if name != "about"]
    return AlertRule(about=METRICS[rule.metric], **{name: getattr(rule, name) for name in names})
