"""What an update is in, hears and asks for: State | Event | Effect. Decides nothing.

All of it is frozen and holds no file, socket or clock. `State` is what the journal keeps; an
event carries facts into the machine, an effect is a request to whoever runs it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from edgepack.messages import Shadow, Window

__all__ = [
    "Accepting", "Approve", "Approved", "Booted", "CancelAsked", "Check", "Checked", "Clear",
    "Confirm", "Confirmed", "Consider", "Damaged", "Died", "Download", "Downloaded", "Drain",
    "Effect", "Event", "Exam", "Failed", "Halt", "Held", "Hold", "InstallAsked", "Job", "JobGone",
    "JobSeen", "JobTaken", "Judged", "Load", "Loaded", "Log", "Mirror", "Model", "Outcome",
    "OutcomeTaken", "Phase", "PinAsked", "Publish", "Recheck", "Retire", "Retry", "Revert",
    "Reverted", "RollbackAsked", "Shadowed", "Slot", "SlotName", "Stage", "Staged", "Stamp",
    "State", "Status", "Stood", "Switch", "Tell", "TimerFired", "Troubled", "TryLater",
    "Unreachable",
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


# -- events: what happened


@dataclass(frozen=True, slots=True)
class Booted:
    """The agent has started on a journal that holds this state."""


@dataclass(frozen=True, slots=True)
class JobSeen:
    """The fleet has this job for us."""

    job: Job


@dataclass(frozen=True, slots=True)
class JobTaken:
    """The fleet has noted that we are at it."""

    job: str


@dataclass(frozen=True, slots=True)
class JobGone:
    """The fleet has no job for us, or ended this one itself."""

    job: str = ""


@dataclass(frozen=True, slots=True)
class OutcomeTaken:
    """The fleet has noted how the job ended, or does not want to know."""

    job: str


@dataclass(frozen=True, slots=True)
class InstallAsked:
    """A person hands in a bundle that is approved; its blobs are in the store."""

    job: Job
    model: Model


@dataclass(frozen=True, slots=True)
class RollbackAsked:
    """A person wants the previous model back."""

    job: Job


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """A person stops what is under way."""


@dataclass(frozen=True, slots=True)
class Approved:
    """Both repositories agree on this model, it fits, and there is room for it."""

    model: Model


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer; worth another try."""

    reason: str = "unreachable"


@dataclass(frozen=True, slots=True)
class Troubled:
    """A step failed in a way that another try may not meet."""

    reason: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Held:
    """Now is a bad moment."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class Clear:
    """Nothing speaks against an update now."""


@dataclass(frozen=True, slots=True)
class Stood:
    """What the publisher says of the current model: revoked or not, and whether it must stop."""

    digest: str
    revoked: bool
    stop: bool = False
    back: bool = False
    """Whether the previous model may run."""


@dataclass(frozen=True, slots=True)
class PinAsked:
    """A person wants this device to stay with its model; an empty reason: no longer."""

    why: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The pause before another try is over, or the link is back."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A step came to an end that another try will not change."""

    status: Status
    reason: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """Every blob of the candidate is in the store."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A blob in the store is not what it was; it has been removed."""


@dataclass(frozen=True, slots=True)
class Staged:
    """The candidate's slot holds all its files, verified and durable."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The candidate's runner has loaded the model."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What golden vectors and exam say; `score` is None without an exam."""

    golden: bool
    score: float | None = None
    min_score: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shadowed:
    """The candidate has been compared with the current model, or cannot be; SEEN is for all."""

    good: bool
    reason: str = ""
    seen: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Died:
    """The candidate's runner ended without a word: killed, or crashed."""

    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accepting:
    """The candidate's runner answers requests."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The probation is over."""

    good: bool
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The commit is durable everywhere."""


@dataclass(frozen=True, slots=True)
class Reverted:
    """The current model serves alone again."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The deadline of a phase has passed, or (`total`) that of the whole job."""

    phase: Phase
    total: bool = False


Event = (
    Booted | JobSeen | JobTaken | JobGone | OutcomeTaken | InstallAsked | RollbackAsked
    | CancelAsked | Approved | Unreachable | Retry | Failed | Downloaded | Damaged | Staged
    | Loaded | Checked | Died | Accepting | Judged | Confirmed | Reverted | TimerFired
    | Troubled | Held | Clear | PinAsked | Stood | Shadowed
)  # fmt: skip


# -- effects: what is to be done; each may be done twice


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the fleet about the job."""

    outcome: Outcome
    phase: Phase


@dataclass(frozen=True, slots=True)
class Publish:
    """Put an event into the outbox; the bundle is the one active now."""

    type: str
    bundle: str | None
    digest: str | None
    reason: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    once: str = ""
    """What it is told only once about: an effect may run again after a cut."""


@dataclass(frozen=True, slots=True)
class Approve:
    """Ask both repositories, and look whether the model fits and there is room."""

    job: Job


@dataclass(frozen=True, slots=True)
class Consider:
    """Look whether now is a good moment, and post `Clear` or `Held`."""


@dataclass(frozen=True, slots=True)
class Recheck:
    """Look again later, when HOLD may be over."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop the step that is under way; what it has done so far is kept."""


@dataclass(frozen=True, slots=True)
class TryLater:
    """Post `Retry` after a pause."""


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch what is missing of the model."""

    model: Model


@dataclass(frozen=True, slots=True)
class Stage:
    """Verify the blobs and build the slot from them."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Load:
    """Start a runner on the slot; until it is through, the current model answers alone."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Check:
    """Let the candidate answer golden vectors and exam."""

    exam: Exam | None


@dataclass(frozen=True, slots=True)
class Mirror:
    """Let the candidate answer what the current model answers, for nobody, and compare."""

    shadow: Shadow


@dataclass(frozen=True, slots=True)
class Switch:
    """Let the candidate take requests."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Let the old model take no more; watch the new one for this many seconds."""

    probation_s: float
    max_p95_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Confirm:
    """Make the candidate the one that serves: end the old runner, raise floors, clean up."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Revert:
    """Stop all work, end the candidate, let the current model serve; maybe drop the slot."""

    discard: Slot | None


@dataclass(frozen=True, slots=True)
class Retire:
    """Let the model in SLOT answer no more, and remove it."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Log:
    """Note something unexpected."""

    text: str


Effect = (
    Tell | Publish | Approve | TryLater | Download | Stage | Load | Check | Switch | Drain
    | Confirm | Revert | Log | Consider | Recheck | Halt | Retire | Mirror
)  # fmt: skip
