"""What the fleet talks about: devices, rollouts and their waves. No rules, no storage."""

from dataclasses import dataclass, field
from typing import Literal

from edgepack.messages import Inventory, JobStatus

__all__ = [
    "FAILURES",
    "LIVE",
    "SERVING",
    "TERMINAL",
    "Device",
    "JobStatus",
    "Member",
    "Policy",
    "Rollout",
    "RolloutState",
    "Wave",
]

RolloutState = Literal[
    "draft",
    "awaiting_approval",
    "running",
    "paused",
    "reverting",
    "reverted",
    "completed",
    "cancelled",
]

FAILURES: frozenset[str] = frozenset({"FAILED", "TIMED_OUT", "REJECTED"})
TERMINAL: frozenset[str] = FAILURES | {"SUCCEEDED", "CANCELED"}
SERVING: frozenset[str] = frozenset({"running", "completed"})
"""States in which devices get the release: a completed rollout serves those that return late."""
LIVE: frozenset[str] = SERVING | {"paused"}
"""States in which a rollout still has something to decide."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device, as far as a decision about it goes."""

    id: str
    group: str
    online: bool = False
    seen: float = 0.0
    """Unix seconds (fleet clock) of its last message."""
    inventory: Inventory = field(default_factory=Inventory)


@dataclass(frozen=True, slots=True)
class Wave:
    """How many devices have the release once this wave is done, the earlier waves included."""

    amount: int
    percent: bool = False

    def __str__(self) -> str:
        """Return it as it is written on the command line: `10%` or `3`."""
        return f"{self.amount}%" if self.percent else str(self.amount)


@dataclass(frozen=True, slots=True)
class Policy:
    """When a rollout goes on and when it stops."""

    max_failures: int = 1
    """Pause when this many devices have failed."""
    max_failure_percent: float = 20.0
    """Pause when more than this share of the *finished* devices has failed."""
    min_sample: int = 5
    """Devices that must have finished before the share is looked at."""
    quorum: float = 0.9
    """Share of a wave's reached devices that must finish before the next wave starts."""
    soak_s: float = 0.0
    """Seconds between the end of a wave and the start of the next."""
    timeout_s: float = 900.0
    """Seconds a device that accepted may stay silent about its job."""
    patience_s: float = 60.0
    """Seconds an offline device keeps its place in a wave before another one gets it."""
    probation_s: int = 5
    """Seconds a new model must stay healthy on the device."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One release on its way to one group."""

    id: str
    group: str
    release: str
    """`name@version`."""
    waves: tuple[Wave, ...]
    state: RolloutState = "running"
    policy: Policy = field(default_factory=Policy)
    forgiven: frozenset[str] = frozenset()
    """Devices whose failure the operator accepted by resuming; they count nowhere any more."""


@dataclass(frozen=True, slots=True)
class Member:
    """One device's part in one rollout."""

    device: Device
    target: str | None = None
    """Path of the variant it has, or would get; None: none fits it."""
    wave: int | None = None
    """Index of the wave it was given the release in; None: not yet."""
    status: JobStatus = "QUEUED"
    reason: str = ""
    since: float = 0.0
    """Unix seconds of the last word on its job; never earlier than the fleet has listened."""
