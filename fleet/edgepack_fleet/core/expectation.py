"""What reports about a model may say: edges and names that are known. Pure.

Sums of many devices are only as good as the oddest of them. So edges and names are not taken from
who reports, but from what is agreed on and from what was published; what else comes is counted
where it has no name, or left out, and told of by its reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgepack.counting import CONFIDENCE_EDGES, OTHER

__all__ = ["NOTHING", "Expected"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What may be said of a model, beside what may be said of every one."""

    release: str = ""
    """`name@version`."""
    classes: frozenset[str] = frozenset()
    indices: int = 0
    """Classes without a label are told by their index, which is below this."""
    features: Mapping[str, int] = field(default_factory=dict)
    """Bins, by feature."""
    confidence: Sequence[float] = CONFIDENCE_EDGES
    """Edges: those of the baseline, for both to be comparable."""

    def has_class(self, name: str) -> bool:
        """Return whether NAME is a class of the model."""
        if name in self.classes or name == OTHER:
            return True
        index = name.isascii() and name.isdecimal() and len(name) < 10
        return index and str(int(name)) == name and int(name) < self.indices


NOTHING = Expected()
"""Of a model that was not published here: totals, latency and confidence, and no names."""
