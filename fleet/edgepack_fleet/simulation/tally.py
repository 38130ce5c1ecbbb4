"""What a simulation counts."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

__all__ = ["Count", "Result", "Tally"]


@dataclass(slots=True)
class Tally:
    """Counts of all devices together."""

    sent: Counter[str] = field(default_factory=Counter)
    """Messages by kind."""
    heard: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    """Messages that the simulated link has lost, both ways."""
    rows: int = 0
    """Reports and events that devices have made."""
    again: int = 0
    """Of these, how often one was sent once more."""
    released: int = 0
    connects: int = 0
    disconnects: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that the fleet refused, by code."""
    jobs: Counter[str] = field(default_factory=Counter)
    """Ends of jobs that the fleet has taken, by status and reason."""
    checks: Counter[str] = field(default_factory=Counter)
    """Checks of both repositories, by outcome."""
    fetched_bytes: int = 0
    ack_s: list[float] = field(default_factory=list)
    """Seconds from a report to its acknowledgement; a sample."""


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the fleet has counted what the devices did, once each."""

    made: int
    """Inferences of all devices."""
    told: int
    """Of these, in reports that the fleet has acknowledged."""
    counted: int | None
    """Inferences in the fleet's own sums; None: it was not asked."""

    @property
    def exact(self) -> bool:
        """Whether nothing was lost and nothing counted twice."""
        return self.told == self.made == self.counted


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How a simulation ended, as `--json` prints it."""

    schema: Literal["edgepack.simulation/v1"] = "edgepack.simulation/v1"
    devices: int
    seconds: float
    connected_s: float | None
    """Seconds until every device that connects had; None: not all did."""
    states: dict[str, int]
    """Devices by what they do."""
    releases: dict[str, int]
    """Devices by what they run."""
    jobs: dict[str, int]
    messages: dict[str, Any]
    checks: dict[str, int]
    fetched_bytes: int
    ack_ms: dict[str, float]
    count: Count
    exact: bool | None
    rollout: dict[str, Any] | None = None
    fleet: dict[str, str] | None = None
