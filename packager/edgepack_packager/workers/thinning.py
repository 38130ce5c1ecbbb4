"""Weights with less in them: zeros, shared values, low ranks. Pure numpy; knows no framework.

What the compress steps of every framework compute alike, on arrays in the layout that a caller
says. Trains nothing and removes no channel.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "cluster",
    "distinct",
    "factorise",
    "is_thin",
    "rank_of",
    "smallest",
    "sparsity",
    "tucker",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]
MAX_ROUNDS = 100
LEAST_WIDTH = 16


def smallest(weights: Mapping[str, Array], share: float) -> dict[str, NDArray[np.bool_]]:
    """Return a mask per weight: true for what stays when the smallest SHARE of all goes.

    The limit is one for the whole model, so that layers with much to spare give more. Exactly
    SHARE of the weights goes, whatever ties there are.
    """
    names = list(weights)
    sizes = np.concatenate([np.abs(weights[name]).ravel() for name in names])
    stays = np.ones(len(sizes), dtype=np.bool_)
    gone = round(share * len(sizes))
    stays[np.argsort(sizes, kind="stable")[:gone]] = False
    ends = np.cumsum([weights[name].size for name in names])[:-1]
    parts = zip(names, np.split(stays, ends), strict=True)
    return {name: part.reshape(weights[name].shape) for name, part in parts}


def cluster(weight: Array, count: int) -> Array:
    """Return WEIGHT with at most COUNT different values besides zero, which stays where it is.

    Lloyd's algorithm in one dimension: on sorted values a cluster is a range, so that a round
    costs COUNT look-ups and sums over a range come from running totals.
    """
    values = weight.ravel().astype(np.float64)
    ordered = np.sort(values[values != 0])
    if len(np.unique(ordered)) <= count:
        return weight
    # Evenly spaced starts keep the few large weights, which matter most.
    centres = np.linspace(ordered[0], ordered[-1], count)
    totals = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(MAX_ROUNDS):
        better = _means(ordered, totals, centres)
        if np.array_equal(better, centres):
            break
        centres = better
    nearest = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)]
    return np.where(values != 0, nearest, 0.0).reshape(weight.shape).astype(weight.dtype)


def _means(ordered: Floats, totals: Floats, centres: Floats) -> Floats:
    """Return the mean of the values nearest to each of CENTRES; one without values stays."""
    cuts = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
    edges = np.concatenate([[0], cuts, [len(ordered)]])
    counts = np.diff(edges)
    sums = np.diff(totals[edges])
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), centres))


def is_thin(widths: Sequence[int]) -> bool:
    """Return whether a layer of these WIDTHS (channels in and out) has no rank to spare.

    Ten classes or three colours are not half as many in disguise.
    """
    return min(widths) < LEAST_WIDTH


def rank_of(full: int, share: float) -> int:
    """Return the rank that is SHARE of FULL: at least 1."""
    return max(1, round(full * share))


def factorise(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return (left, right), RANK wide, whose product is nearest to MATRIX (rows, columns)."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank])
    return (left[:, :rank] * root).astype(matrix.dtype), (root[:, None] * right[:rank]).astype(
        matrix.dtype
    )


def tucker(kernel: Array, rank_out: int, rank_in: int) -> tuple[Array, Array, Array]:
    """Return (last, core, first) of KERNEL (out, in, *window), by truncated higher-order SVD.

    `first` (rank_in, in) mixes the channels that come in, `core` (rank_out, rank_in, *window)
    does the convolution, `last` (out, rank_out) mixes what goes out.
    """
    exact = kernel.astype(np.float64)
    last = _directions(exact.reshape(len(exact), -1), rank_out)
    swapped = np.moveaxis(exact, 1, 0)
    first = _directions(swapped.reshape(len(swapped), -1), rank_in)
    core = np.einsum("oi...,or,is->rs...", exact, last, first)
    return last.astype(kernel.dtype), core.astype(kernel.dtype), first.T.astype(kernel.dtype)


def _directions(matrix: Floats, rank: int) -> Floats:
    left, _, _ = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left[:, :rank])


def sparsity(weights: Iterable[Array]) -> float:
    """Return the share of zeros in all WEIGHTS together."""
    known = list(weights)
    total = sum(weight.size for weight in known)
    return sum(int((weight == 0).sum()) for weight in known) / total if total else 0.0


def distinct(weights: Sequence[Array]) -> int:
    """Return the highest number of different values, besides zero, in one of WEIGHTS."""
    return max((len(np.unique(weight[weight != 0])) for weight in weights), default=0)
