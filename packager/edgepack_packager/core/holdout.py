"""What a search may see and what it is judged on, and how much that can tell. Pure numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Paired", "paired", "resolution_note", "split"]

Rows = NDArray[np.intp]
# Two-sided, 95 %.
NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Paired:
    """How many samples only the source got right, and how many only the artefact."""

    lost: int
    gained: int
    samples: int

    @property
    def drop(self) -> float:
        """Fall of the share of right answers."""
        return (self.lost - self.gained) / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the drop on samples like these (Wald with half a count added).

        Agresti and Min, Statistics in Medicine 24 (2005): unlike the plain one, it does not
        shrink to nothing where no sample differs.
        """
        size = self.samples + 2
        centre = (self.lost - self.gained) / size
        spread = math.sqrt(max(0.0, self.lost + self.gained + 1 - size * centre**2)) / size
        return centre - NORMAL * spread, centre + NORMAL * spread


def split(labels: Mapping[str, NDArray[Any]], count: int, seed: int) -> tuple[Rows, Rows]:
    """Return the rows to search on and the rows to judge on: disjoint halves in rising order.

    Balanced by class where `labels` holds one whole number per sample; else drawn evenly.

    Args:
        labels: Of the evaluation set, by name.
        count: Number of samples.
        seed: The same seed gives the same halves.
    """
    source = np.random.default_rng(seed)
    order = source.permutation(count)
    classes = _classes(labels, count)
    if classes is not None:
        # A stable sort of the shuffled rows puts the members of each class side by side.
        order = order[np.argsort(classes[order], kind="stable")]
    # Every second one: each class falls in two halves, and odd ones go left and right in turn.
    return np.sort(order[0::2]), np.sort(order[1::2])


def _classes(labels: Mapping[str, NDArray[Any]], count: int) -> NDArray[Any] | None:
    given = labels.get("labels")
    if given is None or given.size != count or not np.issubdtype(given.dtype, np.integer):
        return None
    return given.reshape(-1)


def paired(reference: NDArray[Any], this: NDArray[Any], labels: NDArray[Any]) -> Paired:
    """Count the samples on which two rows of decisions differ in being right.

    Args:
        reference: The decision of the source, (samples,).
        this: The decision of the artefact, (samples,).
        labels: The truth, (samples,).
    """
    before, after = reference == labels, this == labels
    return Paired(int((before & ~after).sum()), int((~before & after).sum()), len(labels))


def resolution_note(pair: Paired, limit: float) -> str | None:
    """Return a warning if the samples cannot rule out a drop beyond LIMIT; None if they can."""
    _, high = pair.interval
    if high <= limit:
        return None
    _, perfect = Paired(0, 0, pair.samples).interval
    told = (
        f"on {pair.samples} samples the drop is {pair.drop:.4f} ({pair.lost} lost, "
        f"{pair.gained} gained); 95 % interval up to {high:.4f}"
    )
    if perfect > limit:
        return f"the holdout is too small to resolve --max-drop {limit:g}: {told}"
    return f"the holdout does not rule out a drop beyond --max-drop {limit:g}: {told}"
