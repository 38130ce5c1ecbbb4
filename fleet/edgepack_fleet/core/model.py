"""What the fleet talks about: devices, rollouts, waves, gates. No rules, no storage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgepack.messages import Inventory, JobStatus, Window

__all__ = [
    "FAILURES",
    "HANDING_OUT",
    "LIVE",
    "SERVING",
    "TERMINAL",
    "TO_COME",
    "TURNING_BACK",
    "UNSTARTED",
    "Breach",
    "Device",
    "Gate",
    "JobKind",
    "JobStatus",
    "Member",
    "Metric",
    "Missing",
    "Operator",
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
UNSTARTED: frozenset[str] = frozenset({"draft", "awaiting_approval"})
SERVING: frozenset[str] = frozenset({"running", "completed"})
"""States in which devices get the release: a completed rollout serves those that return late."""
TURNING_BACK: frozenset[str] = frozenset({"reverting", "reverted"})
"""States in which devices get the release they had before; a reverted one serves late returns."""
TO_COME: frozenset[str] = SERVING | UNSTARTED | {"paused"}
"""States in which devices that have not been given the release may still get it."""
HANDING_OUT: frozenset[str] = SERVING | TURNING_BACK
"""States in which a job that waits may be taken up."""
LIVE: frozenset[str] = HANDING_OUT | {"paused"}
"""States in which a rollout still has something to decide."""

Metric = Literal["install", "exam", "p95_ratio", "error_rate", "agreement", "drift", "memory"]
Operator = Literal["<=", ">=", "<", ">"]
Missing = Literal["wait", "fail", "skip"]
Breach = Literal["pause", "cancel", "revert"]
JobKind = Literal["install", "revert"]


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
class Gate:
    """What the devices of a wave must show before the next wave starts."""

    metric: Metric
    op: Operator
    limit: float
    on_missing: Missing = "wait"
    min_devices: int = 1
    """Devices that must have been measured; of a smaller wave, all of them."""

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        text = f"{self.metric}{self.op}{self.limit:g}"
        text += f",on_missing={self.on_missing}" if self.on_missing != "wait" else ""
        return text + (f",min_devices={self.min_devices}" if self.min_devices != 1 else "")


@dataclass(frozen=True, slots=True)
class Policy:
    """When a rollout goes on and when it stops."""

    max_failures: int = 1
    """Stop when this many devices have failed."""
    max_failure_percent: float = 20.0
    """Stop when more than this share of the *finished* devices has failed."""
    min_sample: int = 5
    """Devices that must have finished before the share is looked at."""
    on_breach: Breach = "pause"
    """What stopping means; `revert` gives every device back what it had before."""
    quorum: float = 0.9
    """Share of a wave's reached devices that must finish before the next wave starts."""
    soak_s: float = 0.0
    """Seconds between the end of a wave and the start of the next."""
    gates: tuple[Gate, ...] = ()
    gate_wait_s: float = 86400.0
    """Seconds a gate may wait for measurements after its wave has finished."""
    shadow_s: int = 0
    """Seconds the new model runs beside the old one before it takes over; 0: it does not."""
    timeout_s: float = 900.0
    """Seconds a device that accepted may stay silent about its job."""
    total_s: int = 86400
    """Seconds the work on a device may take in all, deferral not counted."""
    max_defer_s: int = 7 * 86400
    """Seconds a device may put its update off in all."""
    patience_s: float = 60.0
    """Seconds an offline device keeps its place in a wave before another one gets it."""
    probation_s: int = 5
    """Seconds a new model must stay healthy on the device."""
    windows: tuple[Window, ...] = ()
    """When devices may do it; empty: at any time."""
    max_in_flight: int = 200
    """Devices that may have an unfinished job at once."""
    max_per_minute: int = 0
    """Devices that may be given a job within a minute; 0: no limit."""
    max_attempts: int = 3
    """Jobs a device gets if it fails for a reason that may pass."""
    retry_s: float = 300.0
    """Seconds before the second attempt; doubled before every further one."""
    penalty_failures: int = 3
    """A device that failed this often within `penalty_s` is left out; 0: never."""
    penalty_s: float = 86400.0
    overrides: Literal["accept", "replace"] = "replace"
    """What becomes of a model that a person installed at the device."""
    approval: bool = False
    """Whether somebody must approve before it starts."""


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
    waived: frozenset[str] = frozenset()
    """Breached gates that the operator accepted by resuming: `WAVE:METRIC`."""
    standing: str = ""
    """The sentence of the last decision or of the operator."""
    stopped: str = ""
    """The sentence with which it began to turn back; empty: it has not, or it is not known."""


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
    state: str = ""
    """The device's own word for where it is, e.g. `downloading`."""
    kind: JobKind = "install"
    attempt: int = 1
    given: float = 0.0
    """Unix seconds when it got its job."""
    started: float | None = None
    """Unix seconds when it took its job up."""
    has_it: bool = False
    """Whether it runs the release now, as far as it has said."""
    before: str | None = None
    """Path of what it ran before this rollout came; None: not known, or nothing."""
    boxed_until: float = 0.0
    """Unix seconds until which it is left out because it failed too often."""
    override: bool = False
    """Whether it runs what a person installed at the device."""
    taken_by: str = ""
    """Id of a rollout that goes before this one on this device."""
    left: bool = False
    """Whether it is no longer in the group."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Metric to value, as far as it is known of this device with this release."""
