"""Where the update engine is: `State` and what it is made of. Decides nothing.

Frozen, without a file, socket or clock. It is what the journal keeps. What the engine hears is in
`core.events`, what it asks for in `core.effects`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from edgepack.messages import Shadow, Window

__all__ = [
    "Exam", "Hold", "Job", "Model", "Outcome", "Phase", "Slot", "SlotName", "Stamp", "State",
    "Status",
]  # fmt: skip

Phase = Literal[
    "idle", "offered", "deferred", "checking", "downloading", "verifying", "staged",
    "self_test", "shadow", "switching", "probation", "committed", "rolling_back",
]  # fmt: skip
SlotName = Literal["a", "b"]
Status = Literal["IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED", "CANCELED"]


@dataclass(frozen=True, slots=True)
class Exam:
    """The acceptance exam of a model line; `min_score` is a share in 0..1."""

    sha256: str
    size: int
    min_score: float


@dataclass(frozen=True, slots=True)
class Model:
    """An approved variant: `sha256` and `size` are those of its OCI manifest."""

    release: str
    path: str
    sha256: str
    size: int
    epoch: int = 0
    exam: Exam | None = None

    @property
    def digest(self) -> str:
        """The bundle's digest, `sha256:...`."""
        return f"sha256:{self.sha256}"


@dataclass(frozen=True, slots=True)
class Slot:
    """A place on disk and the model in it."""

    name: SlotName
    model: Model


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done: from the fleet, or (`local`) from a person at the device."""

    id: str
    release: str
    target: str
    probation_s: float = 5.0
    timeout_s: float = 3600.0
    """Seconds that checking and downloading may come no step further."""
    local: bool = False
    total_s: float = 86400.0
    """Seconds the work may take in all, deferral not counted."""
    max_defer_s: float = 7 * 86400.0
    """Seconds it may be deferred in all."""
    windows: tuple[Window, ...] = ()
    max_p95_ratio: float | None = None
    """Of the new model's 95 % latency to the old one's; None: the device's own rule."""
    shadow: Shadow | None = None
    """How it is compared with the old one before it answers; None: it is not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. Kept until the fleet has taken it."""

    job: str
    status: Status
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment: which boot of the device, seconds since then, and the wall clock."""

    boot: str
    up: float
    wall: float


@dataclass(frozen=True, slots=True)
class Hold:
    """Why an update has to wait, and until which Unix time, as far as that is known."""

    reason: str
    until: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """Where the update engine is; all of it survives a power cut."""

    phase: Phase = "idle"
    current: Slot | None = None
    """Committed: what this device runs."""
    previous: Slot | None = None
    """What it ran before, still on disk."""
    job: Job | None = None
    candidate: Slot | None = None
    result: Outcome | None = None
    """Why it is rolling back."""
    outcome: Outcome | None = None
    """Of the last job, while the fleet has not taken it."""
    ended: str = ""
    """The last job that ended here: it is not begun again."""
    boots: int = 0
    """Restarts since the candidate was first loaded."""
    repairs: int = 0
    """Downloads that had to be repeated because what was on disk was damaged."""
    deaths: int = 0
    """Times the candidate's runner ended by itself."""
    exposed: bool = False
    """Whether the candidate has answered requests."""
    shadow: dict[str, Any] = field(default_factory=dict)
    """What came of comparing the candidate with the current model; empty: it was not yet."""
    exam: dict[str, Any] = field(default_factory=dict)
    """What the candidate got in the exam of its line: `score`, `min_score`; empty: not taken."""
    hold: Hold | None = None
    """Why it is deferred."""
    pinned: str = ""
    """Why this device stays with the model it has; empty: it does not."""
    tries: int = 0
    """Steps of this job that were repeated because of trouble that may pass."""
    revoked: str = ""
    """Digest of the model whose revocation the fleet has been told of."""
    steps: int = 0
    """Phases entered with a candidate: a job that goes round in circles is ended."""
    worked_s: float = 0.0
    deferred_s: float = 0.0
    stamp: Stamp | None = None
    """When the two before were true."""
