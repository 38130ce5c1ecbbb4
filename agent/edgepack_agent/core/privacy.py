"""What leaves a device, in words and as the very message. Pure."""

from typing import Any

import msgspec

from edgepack.messages import Telemetry
from edgepack_agent.core.telemetry import Level, Tally

__all__ = ["example", "leaves", "never"]

_ALWAYS = {
    "up/conn": "that it is online, the agent's version, which model runs, its certificate's number",
    "up/evt": "what happened to models (installed, refused, rolled back), with the reason; "
    "what this machine is: processor, memory, disk, installed runtimes",
    "up/job": "how far an update is, and how the new model did in its checks",
    "up/meta, up/blob": "which files of an update are wanted",
    "up/cert": "a request for a new certificate",
}
_TELEMETRY: dict[Level, str] = {
    "health": "counts of inferences and of errors by reason; memory, processor, temperature, "
    "seconds in which the processor was slowed",
    "metrics": "counts of inferences, of errors by reason, of decisions by class; histograms of "
    "latency and confidence; memory, processor, temperature, seconds in which it was slowed",
}
_BEAT = {
    "rss_mb": 61.5,
    "cpu_percent": 12.0,
    "temperature_c": 51.5,
    "throttled": True,
    "stats": {
        "inferences": 3,
        "errors": {"deadline": 1},
        "classes": {"person": 2},
        "latency_ms": {"edges": [5.0, 10.0], "counts": [1, 2, 0]},
        "confidence": {"edges": [0.5], "counts": [1, 2]},
    },
}


def leaves(level: Level) -> dict[str, str]:
    """Return what a device with LEVEL sends, by topic."""
    if level == "off":
        return dict(_ALWAYS)
    events = f"{_ALWAYS['up/evt']}; which measure of the model drifts, and how far"
    return {**_ALWAYS, "up/evt": events, "up/tele": _TELEMETRY[level]}


def never() -> tuple[str, ...]:
    """Return what no level sends."""
    return (
        "pictures, frames, tensors, single answers",
        "addresses and passwords of cameras",
        "keys, the API's token",
    )


def example(level: Level) -> dict[str, Any] | None:
    """Return a row of telemetry as LEVEL sends it, of invented counts; None: it sends none."""
    if level == "off":
        return None
    tally = Tally("person@1.4.0", "sha256:...", 0.0)
    tally.add(_BEAT)
    row: Telemetry = tally.row("b1c2d3e4f5a60718", 42, 0, end=30.0, level=level)
    found: dict[str, Any] = msgspec.to_builtins(row)
    return found
