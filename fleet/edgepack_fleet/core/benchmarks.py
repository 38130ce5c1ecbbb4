"""Which devices measure a release: a few of each class, those first that can do it soon. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.messages import Inventory

__all__ = ["Candidate", "choose", "class_of"]

MB_PER_GB = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that a variant of the release fits."""

    device: str
    variant: str
    """Path of the variant's target."""
    inventory: Inventory
    online: bool
    busy: bool
    """Whether an update of it is open."""
    seen: float


def class_of(candidate: Candidate) -> tuple[str, str, int, tuple[str, ...]]:
    """Return what makes two devices the same for a measurement.

    Returns:
        Variant, architecture, memory in GB, CPU features.
    """
    found = candidate.inventory
    memory = round(found.ram_mb / MB_PER_GB)
    return candidate.variant, found.arch, memory, tuple(sorted(found.cpu_features))


def choose(candidates: Sequence[Candidate], each: int) -> list[Candidate]:
    """Return at most EACH of every class: who is there and idle first, then who was there last."""
    classes = defaultdict(list)
    for candidate in candidates:
        classes[class_of(candidate)].append(candidate)
    found = []
    for members in classes.values():
        ranked = sorted(members, key=lambda c: (not c.online, c.busy, -c.seen, c.device))
        found += ranked[:each]
    return sorted(found, key=lambda c: c.device)
