"""Which bundle of a release fits a device, or why none does. Looks at the inventory only."""

from dataclasses import dataclass

from edgepack.messages import Inventory
from edgepack.trust import DeviceFacts, TargetInfo, misfit

__all__ = ["Release", "Resolution", "resolve"]

SMALLEST_FIRST = ("w4", "int8", "w8", "fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class Release:
    """All variants of one model version; each is a target of the image repository."""

    name: str
    version: str
    variants: tuple[TargetInfo, ...] = ()

    @property
    def id(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """The variant for a device; None with the reason if there is none."""

    variant: TargetInfo | None
    reason: str = ""


def resolve(release: Release, inventory: Inventory) -> Resolution:
    """Return the variant of RELEASE for a device with INVENTORY.

    Fits by the same rule the device applies. The device's own order of runtimes decides, then
    the smaller precision.
    """
    if not inventory.runtimes:
        return Resolution(None, "the device has reported no runtime")
    facts = DeviceFacts(inventory.runtimes, inventory.arch, frozenset(inventory.cpu_features))
    fitting, reasons = [], []
    for variant in release.variants:
        if problem := misfit(variant.model, facts):
            reasons.append(problem[1])
        else:
            fitting.append(variant)
    if not fitting:
        why = "; ".join(dict.fromkeys(reasons))
        return Resolution(None, why or f"{release.id} has no variant")
    order = list(inventory.runtimes)
    return Resolution(min(fitting, key=lambda v: _rank(v, order)))


def _rank(variant: TargetInfo, runtimes: list[str]) -> tuple[int, int, str]:
    model = variant.model
    return runtimes.index(model.runtime), SMALLEST_FIRST.index(model.precision), variant.path
