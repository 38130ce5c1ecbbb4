"""The file of alert rules and of whom to tell: read and checked. Opens nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from edgepack.errors import UsageError
from edgepack_fleet.core.alerts import Rule, Severity

__all__ = ["METRICS", "AlertConfig", "Mail", "MqttTopic", "read_alerts"]

METRICS: Mapping[str, str] = {
    "offline_share": "share of a group's devices that are not connected",
    "error_rate": "errors of all that was asked, by release and group, last 15 minutes",
    "p95_ratio": "p95 of the last 15 minutes to that of the day before, by release and group",
    "drift_features": "features that drift from the baseline, by release, last 6 hours",
    "rollback_rate": "ways back of all updates, by release, last day",
    "certificate_days": "days until the first certificate of a group's devices ends",
    "disk_free_share": "free share of the fleet's disk",
    "broker_up": "1 with a link to the broker, else 0",
}
"""Every metric, and what it says."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
Duration = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,6}[smhd]$")]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class _Rule(msgspec.Struct, forbid_unknown_fields=True, rename={"duration": "for"}):
    name: Name
    metric: str
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    duration: Duration = "5m"
    severity: Severity = "warning"
    repeat: Duration = "4h"
    missing: Duration = "1h"


class Mail(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename={"sender": "from"}):
    """A mail server and who gets mail."""

    host: str
    sender: str
    to: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=50)]
    port: Port = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    """`none` only to this machine."""
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    severity: Severity = "warning"
    """The least that is told."""


class MqttTopic(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A broker of the site and a topic."""

    host: str
    topic: str = "edgepack/alerts"
    port: Port = 8883
    tls: bool = True
    """Without it only to this machine."""
    user: str = ""
    password_file: str = ""
    ca_file: str = ""
    severity: Severity = "info"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    rules: list[_Rule] = []
    defaults: bool = True
    """Whether the rules that come with the fleet count; one of the same name replaces its own."""
    mail: Mail | None = None
    mqtt: MqttTopic | None = None


@dataclass(frozen=True, slots=True)
class AlertConfig:
    """What is watched, and who is told beside webhooks."""

    rules: Sequence[Rule]
    mail: Mail | None = None
    mqtt: MqttTopic | None = None


def read_alerts(found: Any, defaults: Any, where: str) -> AlertConfig:
    """Return what FOUND, a document of YAML, says; DEFAULTS is the document of the fleet.

    Raises:
        UsageError: a key is unknown, a rule is nonsense, or a password would cross a network in
            clear text (`bad_alerts`).
    """
    said, ours = _converted(found or {}, where), _converted(defaults, "defaults")
    rules = {rule.name: rule for rule in ours.rules} if said.defaults else {}
    rules |= {rule.name: rule for rule in said.rules}
    for channel, clear in ((said.mail, "none"), (said.mqtt, False)):
        if channel and channel.tls == clear and channel.host not in {"localhost", "127.0.0.1"}:
            raise _bad(where, f"{channel.host} is another machine: it needs TLS")
    return AlertConfig([_rule(rule, where) for rule in rules.values()], said.mail, said.mqtt)


def _converted(document: Any, where: str) -> _File:
    try:
        return msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise _bad(where, str(error)) from error


def _rule(said: _Rule, where: str) -> Rule:
    if said.metric not in METRICS:
        raise _bad(where, f"{said.name}: metrics are {', '.join(METRICS)}")
    if (said.above is None) == (said.below is None):
        raise _bad(where, f"{said.name}: give either `above` or `below`")
    up = said.above is not None
    limit = said.above if said.above is not None else said.below or 0.0
    clear = limit if said.clear is None else said.clear
    if clear > limit if up else clear < limit:
        raise _bad(where, f"{said.name}: `clear` lies beyond the limit")
    return Rule(
        name=said.name,
        metric=said.metric,
        op=">" if up else "<",
        limit=limit,
        clear=clear,
        for_s=_seconds(said.duration),
        severity=said.severity,
        repeat_s=_seconds(said.repeat),
        missing_s=_seconds(said.missing),
    )


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    return float(found[1]) * UNITS[found[2]] if found else 0.0


def _bad(where: str, why: str) -> UsageError:
    return UsageError(
        f"{where} is no file of alert rules",
        why=why,
        fix="see docs/reference/monitoring.md",
        reason="bad_alerts",
    )
