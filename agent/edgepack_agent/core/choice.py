"""Which model of a mirror fits this device best. A pure rule over what the publisher has signed."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.errors import UnsupportedError, UsageError
from edgepack.trust import DeviceFacts, TargetInfo, misfit

__all__ = ["Wish", "choose"]

_SMALLEST_FIRST = ("w4", "int8", "w8", "fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person wants: a RELEASE (`name@version`), or the newest of the model LINE in use."""

    release: str = ""
    line: str = ""


def choose(offered: Sequence[TargetInfo], facts: DeviceFacts, wish: Wish) -> TargetInfo:
    """Return the variant of OFFERED that fits a device of FACTS best.

    The device's own order of runtimes decides, then the smaller precision: as a fleet would.

    Raises:
        UsageError: what is wished for is not there, or it is not said which of several lines.
        UnsupportedError: none of its variants fits (reason `wrong_hardware`, `wrong_runtime`).
    """
    release = wish.release or _newest(offered, wish.line)
    variants = [t for t in offered if t.model.release == release]
    if not variants:
        there = ", ".join(sorted({t.model.release for t in offered})) or "nothing"
        raise UsageError(
            f"the mirror does not have {release}", why=f"it has {there}", reason="no_release"
        )
    problems = {t.path: misfit(t.model, facts) for t in variants}
    fitting = [t for t in variants if problems[t.path] is None]
    if not fitting:
        reason, why = next(found for found in problems.values() if found)
        raise UnsupportedError(f"no variant of {release} fits this device", why=why, reason=reason)
    return min(fitting, key=lambda t: _rank(t, list(facts.runtimes)))


def _newest(offered: Sequence[TargetInfo], line: str) -> str:
    lines = {t.model.name for t in offered}
    wanted = line if line in lines else next(iter(lines)) if len(lines) == 1 else ""
    if not wanted:
        raise UsageError(
            "it is not said which model to install",
            why=f"the mirror has {', '.join(sorted(lines)) or 'none'}",
            fix="edgepack-agent install DIR --release NAME@VERSION",
            reason="no_release",
        )
    mine = [t.model for t in offered if t.model.name == wanted]
    return max(mine, key=lambda m: _version(m.version)).release


def _rank(target: TargetInfo, runtimes: list[str]) -> tuple[int, int, str]:
    model = target.model
    return runtimes.index(model.runtime), _SMALLEST_FIRST.index(model.precision), target.path


def _version(text: str) -> tuple[tuple[int, ...], bool, str]:
    """Return TEXT, `1.4.0` or `1.4.0-rc.1`, as something that sorts; what is no number is 0."""
    core, _, rest = text.partition("+")[0].partition("-")
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in core.split("."))
    return numbers, not rest, rest
