"""Whether calibration data are like what the model will see. Pure; warns with evidence.

Ranges found on pixels of 0..255 for a model that is then given 0..1 leave it one step of 255:
it builds without an error and guesses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_packager.core.binding import Public

__all__ = ["calibration_warnings"]

Arrays = Mapping[str, NDArray[Any]]
APART = 3.0
"""Sizes of typical values that differ by more than this factor come from different scaling."""
NEGATIVE = 0.05
"""Share of the size of values below which a negative minimum is noise, not a shifted scale."""
ENOUGH = 1_000_000
"""Values looked at to find a range."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Between which numbers nearly all values lie; outliers are not seen."""

    low: float
    high: float

    @property
    def size(self) -> float:
        return max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        return f"{self.low + 0:.4g}..{self.high + 0:.4g}"


def calibration_warnings(
    inputs: Sequence[Public], calibration: Arrays, evaluation: Arrays | None = None
) -> list[str]:
    """Return what is odd about the calibration data, one sentence each.

    Args:
        inputs: Of the model.
        calibration: One array per input by public name, first axis = samples.
        evaluation: Inputs like those the model will see, in the same form; other names are
            not looked at. None: there are none.

    Raises:
        UsageError: An input is missing, has another type than the model's, or is not finite.
    """
    _check(inputs, calibration)
    found = []
    for public in inputs:
        array = calibration[public.name]
        found += _sameness(public.name, array)
        other = None if evaluation is None else evaluation.get(public.name)
        if other is not None and other.size and _is_measured(array):
            found += _difference(public.name, _range(array), _range(other))
    return found


def _check(inputs: Sequence[Public], calibration: Arrays) -> None:
    for public in inputs:
        array = calibration.get(public.name)
        if array is None or not array.size:
            raise UsageError(
                f"there are no calibration samples for `{public.name}`",
                fix=f"add an array `{public.name}` of {public.dtype}, first axis = samples",
                reason="bad_calibration",
            )
        if array.dtype.name != public.dtype:
            raise UsageError(
                f"calibration `{public.name}` is {array.dtype}, the model takes {public.dtype}",
                fix="prepare it as the samples that the model is evaluated with",
                reason="bad_calibration",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise UsageError(
                f"calibration `{public.name}` holds NaN or infinity",
                why=f"{bad} of {array.size} values are not finite",
                fix="leave these samples out",
                reason="bad_calibration",
            )


def _sameness(name: str, array: NDArray[Any]) -> list[str]:
    if array.min() == array.max():
        return [f"calibration `{name}` is {array.flat[0]:g} everywhere: it has no range to find"]
    if len(array) > 1 and bool((array == array[:1]).all()):
        return [f"calibration `{name}`: all {len(array)} samples are the same"]
    return []


def _is_measured(array: NDArray[Any]) -> bool:
    """Say whether ARRAY holds quantities; whole numbers beyond 8 bits are rather indices."""
    return array.dtype.kind == "f" or array.dtype.itemsize == 1


def _range(array: NDArray[Any]) -> _Range:
    values = array.reshape(-1)[:: max(1, array.size // ENOUGH)].astype(np.float64)
    low, high = np.percentile(values[np.isfinite(values)], [0.1, 99.9])
    return _Range(float(low), float(high))


def _difference(name: str, calibration: _Range, evaluation: _Range) -> list[str]:
    one, other = sorted((calibration.size, evaluation.size))
    signs = {bool(r.low < -NEGATIVE * r.size) for r in (calibration, evaluation)}
    if other <= APART * one and len(signs) == 1:
        return []
    where = f"calibration `{name}` lies in {calibration}, evaluation in {evaluation}"
    return [f"{where}: were they scaled alike? Ranges are found on the calibration data"]
