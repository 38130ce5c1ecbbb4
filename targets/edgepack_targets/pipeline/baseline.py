"""What a model saw and said when it was built: `drift` of its manifest, checked. Judges nothing."""

from typing import Any

import msgspec

__all__ = ["Baseline", "Counted", "read_baseline"]

MAX_BINS = 1000


class Counted(msgspec.Struct, frozen=True):
    """Counts between edges; one count more than edges, the ends are open."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what no histogram can be.

        Raises:
            ValueError: the edges do not rise, or there are not as many counts as bins.
        """
        rises = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
        if not rises or len(self.counts) != len(self.edges) + 1 or len(self.edges) > MAX_BINS:
            raise ValueError("edges and counts do not belong together")


Moments = dict[str, dict[str, Counted]]
"""By public name of a tensor: its `mean`, `spread` and, of a picture, `sharpness`."""


class Baseline(msgspec.Struct, frozen=True):
    """What there is to compare with."""

    classes: dict[str, int] = {}
    confidence: Counted | None = None
    inputs: Moments = {}
    outputs: Moments = {}

    def moments(self, part: str) -> Moments:
        """Return those of PART, `inputs` or `outputs`."""
        return self.inputs if part == "inputs" else self.outputs

    def histogram(self, feature: str) -> Counted | None:
        """Return that of FEATURE: `confidence`, or `inputs.NAME.mean` and the like."""
        if feature == "confidence":
            return self.confidence
        part, _, rest = feature.partition(".")
        name, _, moment = rest.rpartition(".")
        return self.moments(part).get(name, {}).get(moment)


def read_baseline(drift: dict[str, Any] | None) -> Baseline | None:
    """Return DRIFT, of a manifest, as a baseline; None: there is none that can be used."""
    try:
        return msgspec.convert(drift, Baseline) if drift else None
    except msgspec.ValidationError:
        return None
