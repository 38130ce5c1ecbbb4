"""Samples on disk, checked against a model: one array per input, first axis = samples."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_packager.adapters.folders import read_folder
from edgepack_packager.core.binding import Public
from edgepack_packager.core.recipe import ModelCard
from edgepack_packager.workers.arrays import write_npz
from edgepack_targets.pipeline.npz import read_arrays

__all__ = ["Dataset", "digest_of", "load_arrays", "read_dataset", "synthetic", "write_npz"]

Arrays = Mapping[str, NDArray[Any]]
SYNTHETIC_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples that fit a model; DIGEST depends on names, shapes, types and values only."""

    path: Path
    inputs: Arrays
    labels: Arrays
    digest: str

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))


def load_arrays(path: Path, what: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in the npz PATH.

    Args:
        path: The file.
        what: What it is for the message: `calibration data`.

    Raises:
        UsageError: missing, not an npz, or it holds pickled objects.
    """
    return read_arrays(path, what=what)


def read_dataset(
    path: Path, inputs: Sequence[Public], card: ModelCard, *, what: str, labelled: bool
) -> Dataset:
    """Return the samples in PATH, an npz or a folder of pictures, checked against INPUTS.

    Raises:
        UsageError: names, shapes, types or counts do not fit; empty; NaN or infinite; no labels.
    """
    arrays = (
        read_folder(path, inputs, card, what=what, labelled=labelled)
        if path.is_dir()
        else load_arrays(path, what)
    )
    names = [public.name for public in inputs]
    missing = [name for name in names if name not in arrays]
    rest = {name: array for name, array in arrays.items() if name not in names}
    if missing or (rest and not labelled and set(rest) != {"labels"}):
        raise UsageError(
            f"{what} does not name the model's inputs",
            why=f"it has {sorted(arrays)}, the model has {names}",
            fix="np.savez(path, **{input_name: array}), one array per input",
            reason="dataset_names",
        )
    if labelled and not rest:
        raise UsageError(
            f"{what} has no labels", fix="add an array called `labels`", reason="no_labels"
        )
    for public in inputs:
        _check_array(public, arrays[public.name], what)
    used = {name: arrays[name] for name in names} | (rest if labelled else {})
    _check_counts(used, what)
    return Dataset(path, {n: arrays[n] for n in names}, rest if labelled else {}, digest_of(used))


def _check_array(public: Public, array: NDArray[Any], what: str) -> None:
    wanted = f"(samples, {', '.join(map(str, public.shape[1:]))}) {public.dtype}"
    if array.shape[1:] != public.shape[1:] or str(array.dtype) != public.dtype or not array.ndim:
        raise UsageError(
            f"{what}: `{public.name}` does not fit the model",
            why=f"it is {array.shape} {array.dtype}, the model takes {wanted}",
            fix="bring the samples into the model's shape and type first",
            reason="dataset_shape",
        )
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise UsageError(
            f"{what}: `{public.name}` holds NaN or infinite values",
            why=f"in {int((~np.isfinite(array)).any(axis=tuple(range(1, array.ndim))).sum())} of "
            f"{len(array)} samples",
            fix="clean the samples first",
            reason="dataset_nan",
        )


def _check_counts(arrays: Arrays, what: str) -> None:
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if 0 in counts.values():
        raise UsageError(f"{what} is empty", fix="give at least a few samples", reason="empty")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UsageError(
            f"{what} has arrays of different lengths", why=told, reason="dataset_counts"
        )


def synthetic(inputs: Sequence[Public], seed: int) -> dict[str, NDArray[Any]]:
    """Return a few seeded random samples, for parity where the user gave no data."""
    source = np.random.default_rng(seed)
    return {p.name: _noise(source, (SYNTHETIC_SAMPLES, *p.shape[1:]), p.dtype) for p in inputs}


def _noise(source: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    if np.issubdtype(np.dtype(dtype), np.floating):
        return source.random(shape).astype(dtype)
    return source.integers(0, 2, shape).astype(dtype)


def digest_of(arrays: Arrays) -> str:
    """Return the SHA-256 of ARRAYS in hex: of names, types, shapes and values."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        whole.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()
