"""What is measured of tensors, counted now and then in the bins of the bundle's drift baseline.

A pass over a picture takes as long as a tenth of a small model: a few a second are enough to know
what the model is shown.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack_agent.runner.statistics import Statistics
from edgepack_targets.pipeline.baseline import Baseline
from edgepack_targets.pipeline.sharpness import sharpness

__all__ = ["Moments"]

EVERY_S = 0.5
_OF: dict[str, Callable[[NDArray[Any]], Any]] = {
    "mean": lambda array: array.mean(dtype=np.float64),
    "spread": lambda array: array.std(dtype=np.float64),
    "sharpness": sharpness,
}


class Moments:
    """What is counted of the tensors of one model.

    Args:
        baseline: What the manifest says; None: nothing is counted.
        statistics: Where it is counted.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        baseline: Baseline | None,
        statistics: Statistics,
        clock: Callable[[], float],
    ) -> None:
        known = baseline or Baseline()
        self._wanted = [
            (part, name, moment, histogram.edges)
            for part in ("inputs", "outputs")
            for name, moments in known.moments(part).items()
            for moment, histogram in moments.items()
            if moment in _OF
        ]
        self._statistics, self._clock = statistics, clock
        self._next = 0.0

    def count(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> None:
        """Count the moments of INPUTS and OUTPUTS, by public name, if it is time again."""
        now = self._clock()
        if not self._wanted or now < self._next:
            return
        self._next = now + EVERY_S
        for part, name, moment, edges in self._wanted:
            array = (inputs if part == "inputs" else outputs).get(name)
            if array is None or not array.size:
                continue
            value = _OF[moment](array)
            if value is not None and np.isfinite(value):
                self._statistics.measured(part, name, moment, bisect_right(edges, float(value)))
