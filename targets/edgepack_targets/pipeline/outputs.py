"""Access to the output tensors of a stranger's model: by name, by shape, by value. Decides nothing.

Whatever a model gives that cannot be read is a `UsageError` with the reason `bad_output`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError

__all__ = ["LIMIT", "Outputs", "activated", "bad_output", "finite", "named", "unbatched"]

Array = NDArray[Any]
Outputs = Mapping[str, Array]
LIMIT = 1e9
"""Coordinates beyond this are cut, so that no sum or product of them overflows."""


def bad_output(what: str, why: str) -> UsageError:
    """Return the error for an output that cannot be decoded."""
    return UsageError(
        what, why=why, fix="check `postprocess` in the recipe against the model's outputs",
        reason="bad_output",
    )  # fmt: skip


def named(outputs: Outputs, name: str) -> Array:
    """Return the output NAME.

    Raises:
        UsageError: there is none, or it holds no numbers.
    """
    if name not in outputs:
        raise bad_output(
            f"there is no output `{name}` to decode", f"there are: {', '.join(sorted(outputs))}"
        )
    if outputs[name].dtype.kind not in "fiub":
        raise bad_output(f"output `{name}` cannot be decoded", f"it is {outputs[name].dtype}")
    return outputs[name]


def unbatched(outputs: Outputs, name: str, *ranks: int) -> Array:
    """Return the first sample of the output NAME, which has one of RANKS without a batch axis.

    Axes of size 1 in front of that are dropped.

    Raises:
        UsageError: there is none of that shape.
    """
    array = named(outputs, name)
    while array.ndim > max(ranks) and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise bad_output(
            f"output `{name}` cannot be decoded",
            f"its shape is {list(outputs[name].shape)}, and one picture has {wanted} axes",
        )
    return array


def finite(name: str, array: Array) -> Array:
    """Return ARRAY, of the output NAME.

    Raises:
        UsageError: it holds NaN or infinity.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise bad_output(f"output `{name}` cannot be decoded", "it holds NaN or infinite values")
    return array


def activated(scores: Array, activation: str) -> NDArray[np.float64]:
    """Return SCORES (..., classes) with ACTIVATION applied: `none`, `sigmoid` or `softmax`."""
    logits = scores.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return _activated(logits, activation)


def _activated(logits: NDArray[np.float64], activation: str) -> NDArray[np.float64]:
    if activation == "sigmoid":
        # Of the absolute value, so that no exponential overflows.
        powers = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1.0, powers) / (1.0 + powers))
    if activation == "softmax":
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    return logits
