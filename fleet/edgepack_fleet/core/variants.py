"""Which bundle of a release fits a device, or why none does. Looks at the inventory only."""

import re
from dataclasses import dataclass

from edgepack.messages import Inventory
from edgepack_fleet.core.model import Release, Variant

__all__ = ["Resolution", "resolve"]

SMALLEST_FIRST = ("w4", "int8", "w8", "fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class Resolution:
    """The variant for a device; None with the reason if there is none."""

    variant: Variant | None
    reason: str = ""


def resolve(release: Release, inventory: Inventory) -> Resolution:
    """Return the variant of RELEASE for a device with INVENTORY.

    The device's own order of runtimes decides, then the smaller precision.
    """
    if not inventory.runtimes:
        return Resolution(None, "the device has reported no runtime")
    misfits = {v.path: _misfit(v, inventory) for v in release.variants}
    fitting = [v for v in release.variants if not misfits[v.path]]
    if fitting:
        order = list(inventory.runtimes)
        return Resolution(
            min(fitting, key=lambda v: (order.index(v.runtime), _size_rank(v), v.path))
        )
    reasons = sorted({misfit for misfit in misfits.values() if misfit})
    return Resolution(None, "; ".join(reasons) or f"{release.id} has no variant")


def _misfit(variant: Variant, inventory: Inventory) -> str:
    """Return why VARIANT does not fit; empty if it does."""
    installed = inventory.runtimes.get(variant.runtime)
    if installed is None:
        return f"no {variant.runtime} runtime"
    if _numbers(installed) < _numbers(variant.min_runtime):
        return f"{variant.runtime} {installed} is older than {variant.min_runtime}"
    if variant.arch and inventory.arch not in variant.arch:
        return f"needs {' or '.join(variant.arch)}, the device is {inventory.arch or 'unknown'}"
    missing = sorted(set(variant.cpu_features) - set(inventory.cpu_features))
    return f"the CPU lacks {', '.join(missing)}" if missing else ""


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of VERSION: `2026.1.0-rc2` is (2026, 1, 0)."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    # Longer numbers than these are nobody's version; a limit keeps int() cheap on hostile input.
    return tuple(int(part[:9]) for part in release[0].split(".")) if release else ()


def _size_rank(variant: Variant) -> int:
    known = variant.precision in SMALLEST_FIRST
    return SMALLEST_FIRST.index(variant.precision) if known else len(SMALLEST_FIRST)
