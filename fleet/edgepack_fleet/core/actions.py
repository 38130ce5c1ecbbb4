"""What a decision can ask for. Data only; the driver carries it out."""

from dataclasses import dataclass

from edgepack_fleet.core.model import JobKind

__all__ = [
    "Action",
    "Assign",
    "Cancel",
    "Complete",
    "Decision",
    "Pause",
    "Recall",
    "Revert",
    "Reverted",
    "TimeOut",
    "Withdraw",
]


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a device its job: the release, or what it had before."""

    device: str
    target: str
    wave: int
    attempt: int = 1
    kind: JobKind = "install"


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take back the job of a device that has not taken it up."""

    device: str


@dataclass(frozen=True, slots=True)
class Recall:
    """Cancel the job of a device that has taken it up: it goes back by itself."""

    device: str


@dataclass(frozen=True, slots=True)
class TimeOut:
    """End the job of a device that took it up and went silent."""

    device: str
    reason: str = "timed_out"


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop assigning until somebody resumes."""

    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End it; what is under way is stopped, what is done stays."""

    reason: str


@dataclass(frozen=True, slots=True)
class Revert:
    """Begin to give every device back what it had before."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reverted:
    """Everybody who can be reached has what it had before."""

    reason: str


@dataclass(frozen=True, slots=True)
class Complete:
    """Everybody who can be reached has finished."""

    reason: str


Action = Assign | Withdraw | Recall | TimeOut | Pause | Cancel | Revert | Reverted | Complete


@dataclass(frozen=True, slots=True)
class Decision:
    """The actions of one tick, and one sentence on where the rollout stands."""

    actions: tuple[Action, ...]
    reason: str
