"""Samples to fine-tune on, and the part of them that only judges. Numpy; trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_packager.workers.arrays import read_arrays

__all__ = [
    "Lessons",
    "are_probabilities",
    "bad_training_data",
    "check_classes",
    "only_output",
    "read_lessons",
]

HELD_OUT = 5
LEAST = 20


@dataclass(frozen=True, slots=True)
class Lessons:
    """Samples by input name, first axis = samples, and the rows that are held out."""

    inputs: dict[str, NDArray[Any]]
    labels: NDArray[Any]
    seen: NDArray[np.int64]
    held_out: NDArray[np.int64]


def read_lessons(path: str, names: Sequence[str], seed: int) -> Lessons:
    """Return what is in PATH: an npz with an array per input in NAMES, and `labels`.

    Every fifth sample, in an order that SEED decides, is held out.

    Raises:
        UsageError: an array is missing, or lengths differ, or there are too few samples.
    """
    arrays = read_arrays(path)
    missing = sorted({*names, "labels"} - arrays.keys())
    if missing:
        why = f"missing: {', '.join(missing)}; there: {', '.join(sorted(arrays))}"
        raise bad_training_data("the training data does not fit the model", why)
    counts = {name: len(arrays[name]) for name in (*names, "labels")}
    if len(set(counts.values())) > 1 or min(counts.values()) < LEAST:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        what = f"training needs at least {LEAST} samples, as many in each array"
        raise bad_training_data(what, said)
    order = np.random.default_rng(seed).permutation(counts["labels"])
    cut = len(order) // HELD_OUT
    inputs = {name: arrays[name] for name in names}
    return Lessons(inputs, arrays["labels"], order[cut:], order[:cut])


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
