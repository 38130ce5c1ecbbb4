"""What the update engine asks for: a request to whoever runs it; each may be done twice."""

from dataclasses import dataclass, field
from typing import Any

from edgepack.messages import Shadow
from edgepack_agent.core.state import Exam, Hold, Job, Model, Outcome, Phase, Slot

__all__ = [
    "Approve", "Check", "Confirm", "Consider", "Download", "Drain", "Effect", "Halt", "Load",
    "Log", "Mirror", "Publish", "Recheck", "Retire", "Revert", "Stage", "Switch", "Tell",
    "TryLater",
]  # fmt: skip


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
