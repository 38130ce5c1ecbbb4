"""May the candidate answer, by how it compares with the current model? Pure, the time passed in.

Golden vectors and exam are what somebody thought of beforehand; this is what the device sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.messages import Shadow
from edgepack_agent.core.events import Shadowed

__all__ = ["Seen", "judge", "missing", "read_seen"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of comparing two models so far."""

    samples: int = 0
    """Inputs that both have answered."""
    agreement: float | None = None
    """Mean of how far their answers agree, 0..1; None: there are none."""
    p95_ratio: float | None = None
    """Of the candidate's 95 % latency to the current model's; None: not known."""
    dropped: int = 0
    """Inputs that were due and not compared: the candidate was busy, or they were not for it."""
    reason: str = ""
    """Why the two cannot be compared; empty: they can."""

    def plain(self) -> dict[str, Any]:
        """Return it as the fleet is told; there is a `reason` only where something is missing."""
        told = {
            "samples": self.samples,
            "agreement": self.agreement,
            "p95_ratio": self.p95_ratio,
            "dropped": self.dropped,
        }
        return told | ({"reason": self.reason} if self.reason else {})


def read_seen(raw: Mapping[str, Any]) -> Seen:
    """Return what a candidate's beat says of the comparison."""
    before, after = raw.get("before_ms") or 0.0, raw.get("after_ms")
    return Seen(
        int(raw.get("samples", 0)),
        raw.get("agreement"),
        round(after / before, 4) if before > 0 and after is not None else None,
        int(raw.get("dropped", 0)),
        str(raw.get("reason", "")),
    )


def missing(rule: Shadow, seen: Seen) -> Shadowed:
    """Return the verdict where SEEN is not enough for one."""
    if rule.on_missing == "pass":
        return Shadowed(True, "", seen.plain())
    return Shadowed(False, "shadow_missing", seen.plain())


def judge(rule: Shadow, seen: Seen, elapsed_s: float) -> Shadowed | None:
    """Return the verdict ELAPSED_S seconds after the beginning; None while it is too early."""
    if seen.reason:
        return missing(rule, seen)
    if seen.samples >= rule.min_samples and elapsed_s >= rule.seconds:
        reason = _trouble(rule, seen)
        return Shadowed(not reason, reason, seen.plain())
    if elapsed_s >= max(rule.seconds, rule.deadline_s):
        few = Seen(seen.samples, seen.agreement, seen.p95_ratio, seen.dropped, "too_few")
        return missing(rule, few)
    return None


def _trouble(rule: Shadow, seen: Seen) -> str:
    if rule.min_agreement is not None and (seen.agreement or 0.0) < rule.min_agreement:
        return "shadow_disagrees"
    if rule.max_p95_ratio is not None and (seen.p95_ratio or 0.0) > rule.max_p95_ratio:
        return "shadow_slower"
    return ""
