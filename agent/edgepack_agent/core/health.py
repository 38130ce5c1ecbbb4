"""Is the model that runs good? A pure rule over heartbeats, the clock passed in.

A process that is up proves nothing. The new model must keep beating, which its runner does only
while the inference thread makes progress, and must not fail more often than the rule allows.
What clients, sources or a full queue did wrong is not held against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

__all__ = ["FAULTS", "Rule", "Verdict", "Vitals", "beat", "judge"]

FAULTS = frozenset({"runtime_error", "deadline", "non_finite"})
"""Reasons of errors that are the model's or the runtime's own."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked of a model on probation."""

    probation_s: float
    max_silence_s: float = 10.0
    max_error_share: float = 0.1
    min_errors: int = 3
    """Fewer errors than this are chance."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What has been seen since the model began to answer. Times are monotonic seconds."""

    since: float
    last_beat: float
    beats: int = 0
    inferences: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Good, or why not."""

    good: bool
    reason: str = ""


def beat(vitals: Vitals, now: float, inferences: int, errors: Mapping[str, int]) -> Vitals:
    """Return VITALS after a heartbeat at NOW with the counts since the one before."""
    faults = sum(count for reason, count in errors.items() if reason in FAULTS)
    return replace(
        vitals,
        last_beat=now,
        beats=vitals.beats + 1,
        inferences=vitals.inferences + inferences,
        errors=vitals.errors + faults,
    )


def judge(vitals: Vitals, rule: Rule, now: float) -> Verdict | None:
    """Return the verdict at NOW; None while it is too early for one."""
    asked = vitals.inferences + vitals.errors
    if vitals.errors >= rule.min_errors and vitals.errors > rule.max_error_share * asked:
        return Verdict(False, "error_rate")
    if now - vitals.last_beat > rule.max_silence_s:
        return Verdict(False, "no_heartbeat")
    if now - vitals.since >= rule.probation_s and vitals.beats:
        return Verdict(True)
    return None
