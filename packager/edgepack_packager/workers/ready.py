"""What ready models share: the precision they already have, their tensors, one sample at a time.

Runs on the host. Opens nothing itself.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.workers.arrays import read_arrays, write_npz
from edgepack_targets.interface import Applied, NativeTensor

__all__ = ["answer_samples", "corrupt", "precision_of", "random", "stateful", "tensors"]

Array = NDArray[Any]


def precision_of(applied: Applied, *, integer_activations: bool) -> str:
    """Return the precision that a model with these contents has already.

    `integer_activations` tells int8, where operators compute with integers, from w8 and w4,
    where only the weights are stored as such.
    """
    if integer_activations:
        return "int8"
    if applied["int4_weights"] > applied["int8_weights"]:
        return "w4"
    if applied["int8_weights"]:
        return "w8"
    return "fp16" if 2 * applied["float16_weights"] > applied["float_weights"] else "fp32"


def tensors(
    natives: Iterable[NativeTensor], *, dynamic_batch: bool = False
) -> list[dict[str, Any]]:
    """Return NATIVES as an opening step tells them: they are the public tensors, too.

    Raises:
        UnsupportedError: an axis, other than the batch with `dynamic_batch`, has no size.
    """
    return [_tensor(native, dynamic_batch=dynamic_batch) for native in natives]


def _tensor(native: NativeTensor, *, dynamic_batch: bool) -> dict[str, Any]:
    sizes = native.shape[1:] if dynamic_batch and native.shape[:1] == (-1,) else native.shape
    if any(size < 1 for size in sizes):
        raise UnsupportedError(
            f"tensor {native.name} has a shape that depends on the data: {list(native.shape)}",
            fix="export the model without dynamic axes, or give --shape",
            reason="dynamic_output",
        )
    shape = list(native.shape)
    return {"name": native.name, "key": native.name, "shape": shape, "dtype": native.dtype}


def answer_samples(
    args: Mapping[str, Any],
    out: Path,
    inputs: Sequence[str],
    answer: Callable[[dict[str, Array]], Mapping[str, Array]],
) -> None:
    """Write to OUT/outputs.npz what ANSWER says to each sample of `args["samples"]`."""
    given = read_arrays(args["samples"])
    count = len(given[inputs[0]])
    rows = [dict(answer({name: given[name][i : i + 1] for name in inputs})) for i in range(count)]
    answers = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    write_npz(out / "outputs.npz", answers)


def corrupt(source: Path, kind: str, why: str) -> UsageError:
    """Return the error for a file that is no KIND of model."""
    return UsageError(
        f"{source.name} is not {kind} that can be opened",
        why=why[:300],
        fix="check that the file is whole; export or copy it again",
        reason="corrupt_model",
    )


def stateful(operators: Iterable[str]) -> UnsupportedError:
    """Return the error for a model whose answer depends on the calls before."""
    return UnsupportedError(
        "the model keeps state between calls",
        why=f"operators: {', '.join(sorted(set(operators)))}",
        fix="export it without state, with the state as an input and an output",
        reason="stateful",
    )


def random(operators: Iterable[str]) -> UnsupportedError:
    """Return the error for a model that answers the same question in different ways."""
    return UnsupportedError(
        "the model draws random numbers",
        why=f"operators: {', '.join(sorted(set(operators)))}",
        fix="export it for inference, with the random numbers as an input or left out",
        reason="random",
    )
