"""What the update engine hears: an event carries facts into it. Decides nothing."""

from dataclasses import dataclass, field
from typing import Any

from edgepack_agent.core.state import Hold, Job, Model, Phase, Status

__all__ = [
    "Accepting", "Approved", "Booted", "CancelAsked", "Checked", "Clear", "Confirmed", "Damaged",
    "Died", "Downloaded", "Event", "Failed", "Held", "InstallAsked", "JobGone", "JobSeen",
    "JobTaken", "Judged", "Loaded", "OutcomeTaken", "PinAsked", "Retry", "Reverted",
    "RollbackAsked", "Shadowed", "Staged", "Stood", "TimerFired", "Troubled", "Unreachable",
]  # fmt: skip


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
