"""The loss of each layer, added up over samples. Knows no runtime."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_targets.interface import Layer

__all__ = ["Losses", "require_layers"]

WORST = 1e6
"""Of a layer that gives NaN or infinity; a finite number, because reports are JSON."""


class Losses:
    """Sums of squares of fp32 outputs and of what a quantised model adds to them."""

    def __init__(self) -> None:
        self._error: dict[str, float] = {}
        self._whole: dict[str, float] = {}

    def add(self, name: str, fp32: NDArray[Any], quantized: NDArray[Any]) -> None:
        """Add one sample's output of layer NAME in both models; other shapes are no match."""
        if fp32.shape != quantized.shape:
            return
        whole, other = (np.asarray(a, np.float64) for a in (fp32, quantized))
        with np.errstate(all="ignore"):
            error = float(np.square(whole - other).sum())
            self._error[name] = self._error.get(name, 0.0) + error
            self._whole[name] = self._whole.get(name, 0.0) + float(np.square(whole).sum())

    def worst_first(self, operators: Mapping[str, str]) -> list[Layer]:
        """Return the layers seen; OPERATORS says of which kind each is."""
        layers = [Layer(name, operators[name], self._loss(name)) for name in self._error]
        return sorted(layers, key=lambda layer: (-layer.loss, layer.name))

    def _loss(self, name: str) -> float:
        error, whole = self._error[name], self._whole[name]
        if not np.isfinite(error) or not np.isfinite(whole):
            return WORST
        # What was 0 and is not any more has lost everything, however little it is.
        return min(float(np.sqrt(error / whole)) if whole else float(error > 0), WORST)


def require_layers(asked: tuple[str, ...], known: Mapping[str, Any]) -> None:
    """Check that every layer in ASKED is KNOWN.

    Raises:
        UsageError: One is not there; the message lists those that are.
    """
    missing = [name for name in asked if name not in known]
    if missing:
        names = list(known)
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        raise UsageError(
            f"the model has no layer `{missing[0]}` to exclude",
            why=f"its layers are {', '.join(names[:20])}{more}",
            fix="take a name from the layer report",
            reason="unknown_layer",
        )
