"""Limits of latency, memory and size, and where they were judged. Pure.

What counts is the device. Its numbers come as a profile: the document that a benchmark printed
there. Without one for this variant the host's own numbers are judged, and the verdict says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgepack.errors import BudgetError
from edgepack_packager.core.proof import Measured
from edgepack_packager.core.recipe import Budgets, Variant

__all__ = ["Profile", "Verdict", "find_profile", "judge"]


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured elsewhere: a bundle, its numbers (ms at p50, 10^6 bytes), the machine."""

    bundle: str
    """`name@version`."""
    digest: str
    target: str
    precision: str
    latency_ms: float
    peak_rss_mb: float
    machine: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The numbers that were held against the limits, and whose they are."""

    judged_on: Literal["device", "host"]
    machine: str
    latency_ms: float
    peak_rss_mb: float
    bundle: str = ""
    """Of a device: the bundle that was measured there, `name@version`."""
    digest: str = ""
    limited: bool = True
    """Whether latency or memory had a limit at all."""

    def of(self, digest: str) -> bool:
        """Say whether the very bundle with DIGEST was measured."""
        return self.judged_on == "host" or self.digest == digest

    @property
    def note(self) -> str:
        """Return where the numbers come from, as part of a sentence."""
        if self.judged_on == "host":
            return f"measured on this host ({self.machine}), not on a device"
        return f"measured on a device ({self.machine}) with {self.bundle}"


def find_profile(
    profiles: Sequence[Profile], name: str, variant: Variant, digest: str = ""
) -> Profile | None:
    """Return the profile of the bundle DIGEST, else the last one of NAME in this VARIANT."""
    same = [p for p in profiles if digest and p.digest == digest]
    alike = [
        p
        for p in profiles
        if p.bundle.partition("@")[0] == name
        and (p.target, p.precision) == (variant.target, variant.precision)
    ]
    found = same or alike
    return found[-1] if found else None


def judge(
    measured: Measured,
    fp32: Measured,
    budgets: Budgets,
    *,
    name: str,
    variant: Variant,
    machine: str,
    profiles: Sequence[Profile] = (),
    digest: str = "",
) -> Verdict:
    """Hold an artefact against BUDGETS; return what was judged.

    Args:
        measured: The artefact on this host.
        fp32: The fp32 artefact of the same target on this host.
        budgets: The limits.
        name: Of the model.
        variant: Of the artefact.
        machine: This host, for the message.
        profiles: Of devices.
        digest: Of the bundle, if it is known already.

    Raises:
        BudgetError: one limit is exceeded.
    """
    profile = find_profile(profiles, name, variant, digest)
    limited = budgets.max_latency_ms or budgets.max_rss_mb or budgets.fail_if_slower
    verdict = replace(_verdict(measured, profile, machine), limited=bool(limited))
    limits = (
        ("p50 latency", verdict.latency_ms, budgets.max_latency_ms, "ms", "max_latency"),
        ("peak memory", verdict.peak_rss_mb, budgets.max_rss_mb, "MB", "max_rss"),
    )
    for what, value, limit, unit, reason in limits:
        _check(what, value, limit, unit, reason, verdict.note)
    size = measured.model_bytes / 1e6
    _check("model size", size, budgets.max_size_mb, "MB", "max_size", "the files of the model")
    if budgets.fail_if_slower:
        plain = find_profile(profiles, name, Variant(variant.target, "fp32"))
        _check_speed(measured, fp32, profile, plain, machine)
    return verdict


def _verdict(measured: Measured, profile: Profile | None, machine: str) -> Verdict:
    if profile is None:
        return Verdict("host", machine, measured.p50, measured.peak_rss_mb)
    return Verdict(
        "device", profile.machine, profile.latency_ms, profile.peak_rss_mb, profile.bundle,
        profile.digest,
    )  # fmt: skip


def _check(what: str, value: float, limit: float | None, unit: str, reason: str, why: str) -> None:
    if limit is not None and value > limit:
        raise BudgetError(
            f"{what} is {value:.3g} {unit}, more than the {limit:g} {unit} allowed",
            why=why,
            fix="a lower precision, a smaller model, or a higher limit",
            reason=reason,
        )


def _check_speed(
    measured: Measured, fp32: Measured, profile: Profile | None, plain: Profile | None, machine: str
) -> None:
    """Compare with fp32 on the device if both were measured there, else on this host."""
    this, base, where = measured.p50, fp32.p50, f"measured on this host ({machine})"
    if profile and plain and profile.machine == plain.machine:
        this, base = profile.latency_ms, plain.latency_ms
        where = f"measured on a device ({profile.machine})"
    if this > base:
        raise BudgetError(
            f"slower than fp32: {this:.3g} ms against {base:.3g} ms", why=where, reason="slower"
        )
