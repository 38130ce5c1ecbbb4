"""Gates: what the devices of a wave must show. Pure rules over measured values.

A gate is judged by the value that nine of ten devices are not worse than: with fewer than ten
devices by the worst one. An average would hide the one kind of box on which a model is bad.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from edgepack.errors import UsageError
from edgepack_fleet.core import members as of
from edgepack_fleet.core.model import Gate, Member, Metric, Missing, Operator, Rollout

__all__ = ["Reading", "gauge", "judge_wave", "parse_gate", "waiver"]

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
METRICS: tuple[str, ...] = get_args(Metric)
SHARES = frozenset({"install", "drift"})
"""Metrics that are a share of devices."""
TAIL = 0.9
MAX_DEVICES = 1_000_000
_GATE = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([0-9.eE+-]{1,20})\s*(?:,(.*))?", re.ASCII)

Verdict = Literal["holds", "breached", "missing"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a gate says of a wave."""

    gate: Gate
    wave: int
    verdict: Verdict
    value: float | None
    measured: int
    wanted: int

    @property
    def said(self) -> str:
        """Return it as part of a sentence."""
        gate = self.gate
        if self.verdict == "missing" or self.value is None:
            return f"{gate.metric} is known of {self.measured} of {self.wanted} devices"
        return f"{gate.metric} is {self.value:.3g}, wanted is {gate.op} {gate.limit:g}"


def parse_gate(text: str) -> Gate:
    """Return the gate of TEXT such as `p95_ratio<=1.2,on_missing=skip,min_devices=5`.

    Raises:
        UsageError: it cannot be read, or there is no such metric.
    """
    found = _GATE.fullmatch(text)
    if found is None:
        raise _bad_gate(text, "it is METRIC OPERATOR NUMBER[,on_missing=...][,min_devices=N]")
    metric, op, limit, rest = found.groups()
    if metric not in METRICS:
        raise _bad_gate(text, f"metrics are {', '.join(METRICS)}")
    options = dict(_option(text, part) for part in rest.split(",")) if rest is not None else {}
    return Gate(
        cast("Metric", metric),
        cast("Operator", op),
        _number(text, limit),
        cast("Missing", options.get("on_missing", "wait")),
        int(options.get("min_devices", 1)),
    )


def _number(text: str, limit: str) -> float:
    try:
        number = float(limit)
    except ValueError:
        raise _bad_gate(text, f"{limit!r} is not a number") from None
    if not math.isfinite(number):
        raise _bad_gate(text, "the limit must be finite")
    return number


def _option(text: str, part: str) -> tuple[str, str]:
    name, _, value = (word.strip() for word in part.partition("="))
    if name == "on_missing" and value in get_args(Missing):
        return name, value
    digits = value.isascii() and value.isdigit() and len(value) <= 7
    if name == "min_devices" and digits and 0 < int(value) <= MAX_DEVICES:
        return name, value
    raise _bad_gate(text, f"{part.strip()!r} is not on_missing=wait|fail|skip or min_devices=N")


def _bad_gate(text: str, why: str) -> UsageError:
    fix = 'write e.g. --gate "p95_ratio<=1.2" or --gate "agreement>=0.95,on_missing=skip"'
    return UsageError(f"not a gate: {text!r}", why=why, fix=fix, reason="bad_gate")


def waiver(reading: Reading) -> str:
    """Return what stands for READING in the list of what an operator accepted."""
    return f"{reading.wave}:{reading.gate.metric}"


def judge_wave(
    rollout: Rollout, members: Sequence[Member], wave: int, now: float
) -> tuple[Reading, ...]:
    """Return what every gate says of WAVE once it has finished; nothing before, nor if waived.

    MEMBERS are those that count. What is missing when the soak is over, and may not be, is a
    breach; so is what is missing for longer than the policy waits.
    """
    inside = of.counted(rollout, members, wave)
    end = of.ended(rollout, inside)
    if end is None:
        return ()
    readings = (_read(gate, wave, inside, end, now, rollout) for gate in rollout.policy.gates)
    return tuple(r for r in readings if waiver(r) not in rollout.waived)


def gauge(
    rollout: Rollout, members: Sequence[Member], wave: int, now: float
) -> tuple[Reading, ...]:
    """Return what every gate would say of WAVE now, whether it has finished or not: to be shown.

    What is missing stays `missing` as long as its wave runs. MEMBERS are those that count. Empty
    for a wave of which no device was reached.
    """
    inside = of.counted(rollout, members, wave)
    if not inside:
        return ()
    end = of.ended(rollout, inside)
    since = math.inf if end is None else end
    return tuple(_read(gate, wave, inside, since, now, rollout) for gate in rollout.policy.gates)


def _read(
    gate: Gate, wave: int, inside: Sequence[Member], end: float, now: float, rollout: Rollout
) -> Reading:
    values = _values(gate, inside, rollout)
    wanted = min(gate.min_devices, len(inside))
    if len(values) < wanted:
        verdict = _missing(gate, end, now, rollout)
        return Reading(gate, wave, verdict, None, len(values), wanted)
    value = _worst(gate, values)
    verdict = "holds" if OPERATORS[gate.op](value, gate.limit) else "breached"
    return Reading(gate, wave, verdict, value, len(values), wanted)


def _missing(gate: Gate, end: float, now: float, rollout: Rollout) -> Verdict:
    soaked = now >= end + rollout.policy.soak_s
    if gate.on_missing == "skip":
        return "holds"
    if gate.on_missing == "fail" and soaked:
        return "breached"
    return (
        "breached" if now > end + rollout.policy.soak_s + rollout.policy.gate_wait_s else "missing"
    )


def _values(gate: Gate, inside: Sequence[Member], rollout: Rollout) -> list[float]:
    if gate.metric == "install":
        done = [m for m in inside if of.finished(m, rollout.policy) and m.status != "CANCELED"]
        return [float(m.status == "SUCCEEDED") for m in done]
    return [m.measured[gate.metric] for m in inside if gate.metric in m.measured]


def _worst(gate: Gate, values: Sequence[float]) -> float:
    """Return the share, or the value that nine of ten devices do not do worse than."""
    if gate.metric in SHARES:
        return sum(values) / len(values)
    ordered = sorted(values, reverse=gate.op in {">=", ">"})
    return ordered[math.ceil(TAIL * len(ordered)) - 1]
