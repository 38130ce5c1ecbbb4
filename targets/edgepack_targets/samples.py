"""Calibration samples: checked against a model, chosen by seed, cut one by one.

Knows no quantiser.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_targets.binding import fits, one_sample, samples_text, shape_text
from edgepack_targets.interface import NativeTensor

__all__ = ["Samples"]

Array = NDArray[Any]


class Samples:
    """A choice of calibration samples for a model's native inputs.

    Args:
        inputs: The native inputs.
        arrays: One array per input, first axis = samples; None is none at all.
        limit: Samples taken at most.
        seed: Of the choice when there are more.

    Raises:
        UsageError: A name, shape, dtype or count differs, or there are no samples.
    """

    def __init__(
        self,
        inputs: Sequence[NativeTensor],
        arrays: Mapping[str, Array] | None,
        limit: int,
        seed: int,
    ) -> None:
        arrays = arrays or {}
        total = _check(inputs, arrays)
        order = np.random.default_rng(seed).permutation(total)[:limit]
        self._chosen = np.sort(order)
        self._arrays = {native.name: arrays[native.name] for native in inputs}
        self._batched = {native.name: one_sample(native.shape) != native.shape for native in inputs}

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Yield one sample at a time by native name, with a batch axis of 1 if there is one."""
        for index in self._chosen:
            yield {name: self._cut(name, int(index)) for name in self._arrays}

    def _cut(self, name: str, index: int) -> Array:
        array = self._arrays[name]
        one = array[index : index + 1] if self._batched[name] else array[index]
        return np.asarray(one, order="C")


def _check(inputs: Sequence[NativeTensor], arrays: Mapping[str, Array]) -> int:
    """Return the number of samples, the same in every array."""
    names = {native.name for native in inputs}
    faults = [f"`{name}` is missing" for name in sorted(names - arrays.keys())]
    faults += [f"`{name}` is unknown" for name in sorted(arrays.keys() - names)]
    faults += [
        f"`{native.name}` is {array.dtype} {shape_text(array.shape)}"
        for native in inputs
        if (array := arrays.get(native.name)) is not None and not _fits(array, native)
    ]
    counts = {len(array) for array in arrays.values() if array.ndim}
    if not faults and (len(counts) != 1 or counts == {0}):
        faults = [f"the arrays hold {', '.join(map(str, sorted(counts)))} samples"]
    if faults:
        wanted = (f"{n.name}: {n.dtype} {samples_text(n.shape)}" for n in inputs)
        raise UsageError(
            "the calibration samples do not fit the model",
            why="; ".join(faults),
            fix=f"give exactly {', '.join(wanted)}",
            reason="bad_calibration",
        )
    return counts.pop()


def _fits(array: Array, native: NativeTensor) -> bool:
    return array.dtype.name == native.dtype and fits(array.shape[1:], one_sample(native.shape))
