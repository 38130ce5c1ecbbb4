"""Which requests of the fleet this device answers, and how much it says. Does nothing itself."""

import json
from collections.abc import Collection, Sequence

from edgepack.requests import KINDS
from edgepack_agent.core.telemetry import Level

__all__ = ["MAX_LINES", "REASONS", "newest", "refusal"]

MAX_LINES = 1000
"""Of the log, in one answer."""
REASONS = {
    "unknown_request": "this agent does not know what it is asked",
    "telemetry_off": "with `telemetry.level: off` a device tells nothing but what updates need",
    "not_allowed": "`remote.answers` of the device's configuration does not name it",
    "busy": "too much is asked at once",
    "too_large": "the answer is longer than what is sent",
    "too_late": "nobody waits for the answer any more",
    "no_log": "this process keeps no log",
    "check_failed": "the check itself came to no end",
    "measure_failed": "the measurement came to no end",
    "deadline": "the device did not answer in time",
}
"""Why a request is not answered; those of fetching a model to measure are in `core.reasons`."""


def refusal(kind: str, level: Level, allowed: Collection[str]) -> str:
    """Return why a request of KIND is refused here; empty: it is answered."""
    if kind not in KINDS:
        return "unknown_request"
    if level == "off":
        return "telemetry_off"
    return "" if kind in allowed else "not_allowed"


def newest(lines: Sequence[str], count: int, size: int) -> list[str]:
    """Return at most COUNT of the last LINES, as many as fit into SIZE bytes of JSON."""
    found: list[str] = []
    for line in reversed(lines[-min(count, MAX_LINES) :] if count > 0 else []):
        size -= len(json.dumps(line)) + 2
        if size < 0:
            break
        found.append(line)
    return found[::-1]
