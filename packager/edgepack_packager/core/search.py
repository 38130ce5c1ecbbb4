"""Which variant `--auto` tries next, from what the earlier ones came to. Pure; runs nothing.

    asked -> settings -> mixed -> shrink -> ladder

What was asked for comes first, then settings that cost nothing on the device, then the worst
layers left in float (1, 2, 4, ...), then as few of them as will do, then a higher precision for
the whole model, or for all but the worst layers. The search ends at the first stage where
something keeps the limit; among all that do, the smallest wins. Time is no criterion: it differs
from run to run, and the same input must give the same bundle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from edgepack_targets.interface import Capability, Layer, Quantization
from edgepack_targets.quantization import MEANINGFUL, wanted_options

__all__ = [
    "MAX_ATTEMPTS",
    "Attempt",
    "Diagnose",
    "Found",
    "Goal",
    "Stage",
    "Trial",
    "next_step",
    "search_document",
    "settings_of",
]

MAX_ATTEMPTS = 12
MAX_SETTINGS, MAX_MIXED, MAX_SHRINK = 3, 4, 3
# Metrics are floats: 0.98 - 0.97 must not fail a limit of 0.01.
ROUNDING = 1e-9
Stage = Literal["asked", "settings", "mixed", "shrink", "ladder"]
SETTINGS: tuple[tuple[str, str, Any], ...] = (
    ("smooth", "smooth", True),
    ("bias_full", "bias_correction", "full"),
    ("percentile", "ranges", "percentile"),
    ("entropy", "ranges", "entropy"),
    ("per_tensor", "per_channel", False),
    ("minmax", "ranges", "minmax"),
)
"""Option of the target, field of `Quantization` and its value, what helps most often first."""
LADDER = {
    "w4": ("w8", "fp16", "fp32"),
    "int8": ("w8", "fp16", "fp32"),
    "w8": ("fp16", "fp32"),
    "bf16": ("fp16", "fp32"),
    "fp16": ("fp32",),
}
"""Higher precisions, by the one asked for, the smallest first."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is searched for: the smallest variant that loses no more than LIMIT."""

    asked: Quantization
    capability: Capability
    limit: float
    fp32_bytes: int
    taken: frozenset[str] = frozenset()
    """Precisions that are built for this target anyway: no result of a search."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One variant to build and judge; HOW is None for fp32."""

    how: Quantization | None
    stage: Stage

    @property
    def precision(self) -> str:
        """What the variant's bundle would be called."""
        return self.how.precision if self.how else "fp32"


@dataclass(frozen=True, slots=True)
class Diagnose:
    """Before the next attempt, find out which layers of HOW lose the accuracy."""

    how: Quantization


@dataclass(frozen=True, slots=True)
class Trial:
    """What an attempt came to; DROP is None if it could not be made, ERROR says why."""

    attempt: Attempt
    model_bytes: int = 0
    drop: float | None = None
    p50: float | None = None
    error: str = ""

    def keeps(self, limit: float) -> bool:
        """Whether the variant loses no more than LIMIT."""
        return self.drop is not None and self.drop <= limit + ROUNDING


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search; CHOSEN is None if nothing kept the limit."""

    chosen: Trial | None


def next_step(
    goal: Goal, history: Sequence[Trial], layers: Sequence[Layer] | None
) -> Attempt | Diagnose | Found:
    """Return what to do next.

    Args:
        goal: What is searched for.
        history: What every attempt so far came to, in order.
        layers: What `Diagnose` asked for, worst first; None: nothing was diagnosed yet. Empty:
            it cannot be told, and no layer is left in float.
    """
    if not history:
        return Attempt(goal.asked, "asked")
    if len(history) >= MAX_ATTEMPTS or _passing(goal, history, "asked", "settings"):
        return _found(goal, history)
    best = _best(history)
    steps = (
        _next_setting(goal, history, best),
        _next_mixed(goal, history, best, layers),
        _next_rung(goal, history),
    )
    return next((step for step in steps if step), _found(goal, history))


def _passing(goal: Goal, history: Sequence[Trial], *stages: Stage) -> list[Trial]:
    """Return the trials that keep the limit; all STAGES if none is named."""
    kept = [trial for trial in history if trial.keeps(goal.limit)]
    return [trial for trial in kept if not stages or trial.attempt.stage in stages]


def _found(goal: Goal, history: Sequence[Trial]) -> Found:
    return Found(min(_passing(goal, history), key=lambda t: t.model_bytes, default=None))


def _best(history: Sequence[Trial]) -> Trial | None:
    """Return the whole-model trial that lost least: where layers are looked at."""
    whole = [t for t in history if t.attempt.stage in {"asked", "settings"} and t.drop is not None]
    return min(whole, key=lambda trial: trial.drop or 0.0, default=None)


def _options(goal: Goal) -> frozenset[str]:
    """Return the settings that the target has for what was asked."""
    kind = goal.asked.method if goal.asked.precision == "int8" else goal.asked.precision
    return goal.capability.options & MEANINGFUL[kind]


# -- settings


def _next_setting(goal: Goal, history: Sequence[Trial], best: Trial | None) -> Attempt | None:
    """Return the best so far with one more setting."""
    tried = sum(trial.attempt.stage == "settings" for trial in history)
    if best is None or best.attempt.how is None or tried >= MAX_SETTINGS:
        return None
    left = [one for one in SETTINGS if one[0] in _options(goal) and _free(goal.asked, one[1])]
    if tried >= len(left):
        return None
    _, field, value = left[tried]
    return Attempt(replace(best.attempt.how, **{field: value}), "settings")


def _free(asked: Quantization, field: str) -> bool:
    """Return whether the user left FIELD at its default."""
    return bool(getattr(asked, field) == getattr(Quantization(asked.precision), field))


# -- layers left in float


def _next_mixed(
    goal: Goal, history: Sequence[Trial], best: Trial | None, layers: Sequence[Layer] | None
) -> Attempt | Diagnose | None:
    how = best.attempt.how if best else None
    if how is None or "exclude" not in _options(goal):
        return None
    if layers is None:
        return Diagnose(how)
    names = [layer.name for layer in layers if layer.name not in how.exclude]
    passed = _passing(goal, history, "mixed")
    tried = _excluded(how, history)
    stage: Stage = "shrink" if passed else "mixed"
    following = _fewer(goal, how, names, history) if passed else _more(names, len(tried))
    if following is None:
        return None
    return Attempt(replace(how, exclude=(*how.exclude, *following)), stage)


def _excluded(how: Quantization, history: Sequence[Trial]) -> list[tuple[str, ...]]:
    """Return the layers that each mixed trial left in float beyond those of HOW."""
    mixed = [t.attempt.how for t in history if t.attempt.stage in {"mixed", "shrink"}]
    return [one.exclude[len(how.exclude) :] for one in mixed if one]


def _more(names: Sequence[str], tried: int) -> tuple[str, ...] | None:
    counts = _counts(len(names))
    return tuple(names[: counts[tried]]) if tried < len(counts) else None


def _counts(layers: int) -> list[int]:
    """Return how many of LAYERS to leave in float, attempt by attempt.

    Doubled each time; faster in a deep model, so that the last attempt leaves half of it. One
    layer at least stays quantised: a model without any is the next rung of the ladder.
    """
    ratio = max(2.0, (layers / 2) ** (1 / (MAX_MIXED - 1)))
    wanted = (round(ratio**step) for step in range(MAX_MIXED))
    return sorted({count for count in wanted if 0 < count < layers})


def _fewer(
    goal: Goal, how: Quantization, names: Sequence[str], history: Sequence[Trial]
) -> tuple[str, ...] | None:
    """Return a smaller choice of layers that may do as well; None if there is none to try."""
    mixed = [t for t in history if t.attempt.stage in {"mixed", "shrink"}]
    tried = _excluded(how, history)
    if sum(trial.attempt.stage == "shrink" for trial in mixed) >= MAX_SHRINK:
        return None
    judged = [(e, t.keeps(goal.limit)) for e, t in zip(tried, mixed, strict=True)]
    enough = min((e for e, keeps in judged if keeps), key=len)
    short = [set(e) for e, keeps in judged if not keeps]
    for choice in _smaller(enough, names, tried, short):
        # What lies within a choice that was too small is too small as well.
        if choice and choice not in tried and not any(set(choice) <= one for one in short):
            return choice
    return None


def _smaller(
    enough: tuple[str, ...],
    names: Sequence[str],
    tried: Sequence[tuple[str, ...]],
    short: Sequence[set[str]],
) -> Iterator[tuple[str, ...]]:
    """Yield fewer of the worst layers, halfway to what was too few; then ENOUGH without one."""
    worst = tuple(names[: len(enough)])
    if enough == worst and worst in tried:
        fewest = max((len(one) for one in short if one == set(names[: len(one)])), default=0)
        yield worst[: (fewest + len(worst)) // 2]
    for name in reversed(enough):
        yield tuple(one for one in enough if one != name)


# -- a higher precision


def _next_rung(goal: Goal, history: Sequence[Trial]) -> Attempt | None:
    """Return the next precision; after mixed ones only if they are bigger than it would be."""
    kept = _passing(goal, history)
    smallest = min((trial.model_bytes for trial in kept), default=None)
    if any(trial.attempt.stage == "ladder" for trial in kept):
        return None
    if smallest is not None and smallest * 2 <= goal.fp32_bytes:
        return None
    mixed = _mixed_rung(goal, history)
    if mixed:
        return mixed
    tried = {trial.attempt.precision for trial in history}
    for rung in LADDER.get(goal.asked.precision, ()):
        known = rung in goal.capability.precisions and rung not in tried | goal.taken
        if known and not (rung == "fp32" and kept):
            return Attempt(_whole(goal.asked, rung), "ladder")
    return None


def _mixed_rung(goal: Goal, history: Sequence[Trial]) -> Attempt | None:
    """Return the last rung without the few layers that cost most before, if it has just failed."""
    last, best = history[-1], _best(history)
    how = last.attempt.how
    options = goal.capability.options & MEANINGFUL.get(last.attempt.precision, frozenset())
    if last.attempt.stage != "ladder" or how is None or how.exclude or "exclude" not in options:
        return None
    if best is None or best.drop is None or last.keeps(goal.limit):
        return None
    mixed = [t for t in history if t.attempt.stage == "mixed" and t.drop is not None]
    helped = [t for t in mixed if (t.drop or 0.0) <= best.drop / 2]
    if not helped or helped[0].attempt.how is None:
        return None
    return Attempt(replace(how, exclude=helped[0].attempt.how.exclude), "ladder")


def _whole(asked: Quantization, rung: str) -> Quantization | None:
    """Return RUNG for the whole model; None for fp32, which is what conversions give."""
    if rung == "fp32":
        return None
    return Quantization(rung, seed=asked.seed)  # type: ignore[arg-type]  # a value of LADDER


# -- what the report says


def settings_of(how: Quantization | None) -> dict[str, Any]:
    """Return the settings of HOW that are not the default, for a report."""
    if how is None:
        return {}
    plain = asdict(Quantization(how.precision))
    changed = {name: value for name, value in asdict(how).items() if value != plain[name]}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in changed.items()}


def search_document(goal: Goal, history: Sequence[Trial], chosen: Trial | None) -> dict[str, Any]:
    """Return a search as the report tells it: every attempt, and which one was taken."""
    return {
        "asked": goal.asked.precision,
        "limit": goal.limit,
        "fp32_bytes": goal.fp32_bytes,
        "attempts": [_row(goal, trial) | {"chosen": trial is chosen} for trial in history],
    }


def _row(goal: Goal, trial: Trial) -> dict[str, Any]:
    how = trial.attempt.how
    return {
        "stage": trial.attempt.stage,
        "precision": trial.attempt.precision,
        "settings": settings_of(how),
        "options": sorted(wanted_options(how)) if how else [],
        "model_bytes": trial.model_bytes or None,
        "latency_p50_ms": trial.p50,
        "drop": trial.drop,
        "keeps_limit": trial.keeps(goal.limit),
        "error": trial.error or None,
    }
