"""When an alert begins, lasts, is told and ends. A pure state machine: the clock is passed in.

    inactive -> pending -> firing -> resolved -> inactive

A value beyond the limit makes an alert pending; if it stays there for the rule's time, the alert
fires. It ends only when the value is back behind `clear`, so that one at the limit does not flap.
An alert that is told of is told once, again after the rule's `repeat` unless somebody has taken it
up, and once more when it ends.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Alert", "Reading", "Rule", "Severity", "State", "Told", "nobody_runs", "step"]

State = Literal["inactive", "pending", "firing", "resolved"]
Told = Literal["firing", "repeat", "resolved"]
Severity = Literal["info", "warning", "critical"]
SHOWN_S = 3600.0
"""Seconds for which an alert that has ended is still shown."""
OF_RUNNING = frozenset({"error_rate", "p95_ratio", "drift_features"})
"""Metrics of a release that say how those do that run it. Ways back are told of one nobody runs."""


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
    reason: str = ""
    """Why it has ended; empty: its value is back, or it has not ended."""


def nobody_runs(
    metric: str, labels: Mapping[str, str], running: Collection[tuple[str, str]]
) -> str:
    """Return why METRIC has nothing to say any more; empty if it has.

    Args:
        metric: What is watched.
        labels: What it is about.
        running: Releases, each with a group whose devices run it.
    """
    release, group = labels.get("release"), labels.get("group")
    if metric not in OF_RUNNING or release is None:
        return ""
    if any(runs == release and group in {None, where} for runs, where in running):
        return ""
    return f"no device{f' of {group}' if group else ''} runs {release} any more"


def step(
    rule: Rule, alert: Alert, value: float | None, now: float, over: str = ""
) -> tuple[Alert, Told | None]:
    """Return ALERT after a look at VALUE, and what somebody is to be told.

    Args:
        rule: What is wrong.
        alert: How it stood.
        value: What was measured; None: nothing was.
        now: Unix seconds. A clock that was set back makes what waits wait anew, no longer.
        over: Why there is nothing to watch any more; empty: there is.
    """
    alert = replace(
        alert, since=min(alert.since, now), value=value,
        seen=min(alert.seen, now) if value is None else now,
    )  # fmt: skip
    moved = _closed(alert, now, over) if over else _moved(rule, alert, now)
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
        case "resolved":
            return _forgotten(alert, now)
        case "pending" if not bad:
            return replace(alert, state="inactive", since=now)
        case "pending" if now - alert.since >= rule.for_s:
            return replace(alert, state="firing", since=now)
        case "firing" if _over(rule, alert, now):
            reason = "nothing is measured any more" if alert.value is None else ""
            return replace(alert, state="resolved", since=now, acknowledged="", reason=reason)
    return alert


def _closed(alert: Alert, now: float, reason: str) -> Alert:
    """Return ALERT after there is nothing to watch any more, for a REASON."""
    match alert.state:
        case "firing":
            return replace(alert, state="resolved", since=now, acknowledged="", reason=reason)
        case "pending":
            return replace(alert, state="inactive", since=now)
        case "resolved":
            return _forgotten(alert, now)
    return alert


def _forgotten(alert: Alert, now: float) -> Alert:
    """Return ALERT, which has ended, after it was shown long enough."""
    if now - alert.since < SHOWN_S:
        return alert
    return replace(alert, state="inactive", since=now, told=None, reason="")


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
