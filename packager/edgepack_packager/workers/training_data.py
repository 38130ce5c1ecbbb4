"""Samples to fine-tune on, and the part of them that only judges. Numpy; trains nothing."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_packager.workers.arrays import read_arrays

__all__ = [
    "Lessons",
    "Wanted",
    "are_probabilities",
    "bad_training_data",
    "check_classes",
    "only_output",
    "read_lessons",
]

HELD_OUT = 5
LEAST = 20
Wanted = Mapping[str, tuple[Sequence[int], str]]
"""Of each input of a model: the shape (-1: any; the first axis counts samples) and the dtype."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """Samples by input name, first axis = samples, and the rows that are held out."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any]
    seen: NDArray[np.int64]
    held_out: NDArray[np.int64]


def read_lessons(path: str, wanted: Wanted, seed: int) -> Lessons:
    """Return what is in PATH: an npz with an array per input in WANTED, and `labels`.

    Every fifth sample, in an order that SEED decides, is held out. Labels of whole numbers come
    as int64.

    Raises:
        UsageError: an array is missing or is none of numbers, inputs have another shape or type
            than the model's or are not finite, lengths differ, or there are too few samples.
    """
    arrays = _numbers(path)
    missing = sorted({*wanted, "labels"} - arrays.keys())
    if missing:
        why = f"missing: {', '.join(missing)}; there: {', '.join(sorted(arrays))}"
        raise bad_training_data("the training data does not fit the model", why)
    counts = {name: len(np.atleast_1d(arrays[name])) for name in (*wanted, "labels")}
    if len(set(counts.values())) > 1 or min(counts.values()) < LEAST:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        what = f"training needs at least {LEAST} samples, as many in each array"
        raise bad_training_data(what, said)
    for name, (shape, dtype) in wanted.items():
        _check_input(name, arrays[name], list(shape), dtype)
    order = np.random.default_rng(seed).permutation(counts["labels"])
    cut = len(order) // HELD_OUT
    inputs = {name: arrays[name] for name in wanted}
    labels = arrays["labels"]
    labels = labels.astype(np.int64) if labels.dtype.kind in "iub" else labels
    return Lessons(inputs, labels, order[cut:], order[:cut])


def _numbers(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in PATH, in the byte order of this machine."""
    try:
        found = read_arrays(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise bad_training_data("the training data cannot be read", said) from error
    for name, array in found.items():
        if array.dtype.kind not in "iubf":
            why = f"`{name}` is {array.dtype}"
            raise bad_training_data("the training data are not numbers", why)
    return {name: array.astype(array.dtype.newbyteorder("=")) for name, array in found.items()}


def _check_input(name: str, array: NDArray[Any], shape: list[int], dtype: str) -> None:
    sizes = list(array.shape[1:])
    fits = len(sizes) == len(shape) - 1 and all(
        want in {-1, size} for want, size in zip(shape[1:], sizes, strict=True)
    )
    if not fits or array.dtype.name != dtype:
        raise bad_training_data(
            f"training input `{name}` does not fit the model",
            f"it takes {dtype} of shape {['samples', *shape[1:]]}, and is given {array.dtype} of "
            f"{list(array.shape)}",
            f"prepare it as the model is fed, e.g. {name}.astype('{dtype}')",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise bad_training_data(
            f"training input `{name}` holds NaN or infinity",
            f"{bad} of {array.size} values are not finite",
            "leave these samples out",
        )


def are_probabilities(values: NDArray[Any]) -> bool:
    """Return whether each row of VALUES (samples, classes) is shares that sum to one."""
    sums_to_one = np.allclose(values.sum(axis=-1), 1, atol=1e-4)
    return bool(sums_to_one and (values >= 0).all())


def check_classes(labels: NDArray[Any], outputs: dict[str, tuple[int, ...]]) -> None:
    """Check that LABELS are classes of the only one of OUTPUTS, shapes (samples, classes) by name.

    Raises:
        UsageError: several outputs, another shape, or labels that are no classes.
    """
    _, shape = only_output(outputs)
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not whole or labels.min() < 0 or labels.max() >= shape[1]:
        raise bad_training_data(
            "the labels of the training data are not classes of the model",
            f"classes are 0 to {shape[1] - 1}; labels are {labels.dtype} of shape "
            f"{list(labels.shape)}, {labels.min()} to {labels.max()}",
        )


def only_output(outputs: dict[str, tuple[int, ...]]) -> tuple[str, tuple[int, ...]]:
    """Return the name and shape (samples, classes) of the only one of OUTPUTS.

    Raises:
        UsageError: there are several, or it has another shape.
    """
    own = "give a PyTorch module a loss of its own: loss: file.py:function"
    if len(outputs) != 1:
        what = f"the model has {len(outputs)} outputs: {', '.join(outputs)}"
        raise bad_training_data(what, "what to learn from several outputs is not known", own)
    ((name, shape),) = outputs.items()
    if len(shape) != 2:
        what = f"output {name} has the shape {list(shape)}"
        raise bad_training_data(what, "labels belong to an output (samples, classes)", own)
    return name, shape


def bad_training_data(what: str, why: str, fix: str = "") -> UsageError:
    """Return an error about the training data."""
    fix = fix or "train.npz: one array per input, first axis = samples, and `labels`"
    return UsageError(what, why=why, fix=fix, reason="bad_training_data")
