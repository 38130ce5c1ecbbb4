"""When an alert begins, lasts, is told and ends. A pure state machine: the clock is passed in.

    inactive -> pending -> firing -> resolved -> inactive

A value beyond the limit makes an alert pending; if it stays there for the rule's time, the alert
fires. It ends only when the value is back behind `clear`, so that one at the limit does not flap.
An alert that is told of is told once, again after the rule's `repeat` unless somebody has taken it
up, and once more when it ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Alert", "Reading", "Rule", "Severity", "State", "Told", "step"]

State = Literal["inactive", "pending", "firing", "resolved"]
Told = Literal["firing", "repeat", "resolved"]
Severity = Literal["info", "warning", "critical"]
SHOWN_S = 3600.0
"""Seconds for which an alert that has ended is still shown."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition that somebody should hear of."""

    name: str
    metric: str
    op: Literal[">", "<"]
    limit: float
    clear: float
    """The value that ends it: on the good side of the limit, or the limit itself."""
    for_s: float = 300.0
    """Seconds for which the limit must be exceeded."""
    severity: Severity = "warning"
    repeat_s: float = 4 * 3600.0
    missing_s: float = 3600.0
    """Seconds without a value after which an alert ends."""

    def beyond(self, value: float, limit: float) -> bool:
        """Return whether VALUE is on the bad side of LIMIT."""
        return value > limit if self.op == ">" else value < limit


@dataclass(frozen=True, slots=True)
class Reading:
    """One value: of which metric, and what it is about."""

    metric: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Alert:
    """Where one rule stands with one thing it watches."""

    state: State = "inactive"
    since: float = 0.0
    """Unix seconds at which it came into this state."""
    value: float | None = None
    seen: float = 0.0
    """When there was a value last."""
    told: float | None = None
    """When somebody was told that it fires; None: nobody was."""
    silenced: float = 0.0
    """Nobody is told until then."""
    acknowledged: str = ""
    """Who has taken it up."""


def step(rule: Rule, alert: Alert, value: float | None, now: float) -> tuple[Alert, Told | None]:
    """Return ALERT after a look at VALUE, and what somebody is to be told.

    Args:
        rule: What is wrong.
        alert: How it stood.
        value: What was measured; None: nothing was.
        now: Unix seconds. A clock that was set back makes what waits wait anew, no longer.
    """
    alert = replace(
        alert, since=min(alert.since, now), value=value,
        seen=min(alert.seen, now) if value is None else now,
    )  # fmt: skip
    moved = _moved(rule, alert, now)
    if moved.state == "resolved" and alert.state == "firing":
        # Who was never told that it fires is not told that it ends.
        return moved, "resolved" if moved.told is not None else None
    return _announced(rule, moved, now)


def _moved(rule: Rule, alert: Alert, now: float) -> Alert:
    value = alert.value
    bad = value is not None and rule.beyond(value, rule.limit)
    match alert.state:
        case "inactive" | "resolved" if bad:
            begun = Alert("pending", now, value, now, silenced=alert.silenced)
            return replace(begun, state="firing") if rule.for_s <= 0 else begun
        case "resolved" if now - alert.since >= SHOWN_S:
            return replace(alert, state="inactive", since=now, told=None)
        case "pending" if not bad:
            return replace(alert, state="inactive", since=now)
        case "pending" if now - alert.since >= rule.for_s:
            return replace(alert, state="firing", since=now)
        case "firing" if _over(rule, alert, now):
            return replace(alert, state="resolved", since=now, acknowledged="")
    return alert


def _over(rule: Rule, alert: Alert, now: float) -> bool:
    if alert.value is None:
        return now - alert.seen >= rule.missing_s
    return not rule.beyond(alert.value, rule.clear)


def _announced(rule: Rule, alert: Alert, now: float) -> tuple[Alert, Told | None]:
    if alert.state != "firing" or now < alert.silenced:
        return alert, None
    if alert.told is None:
        return replace(alert, told=now), "firing"
    if not alert.acknowledged and now - min(alert.told, now) >= rule.repeat_s:
        return replace(alert, told=now), "repeat"
    return replace(alert, told=min(alert.told, now)), None
