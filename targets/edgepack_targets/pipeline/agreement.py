"""Whether two sets of outputs stand for the same decisions. Pure; runs no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack.manifest import Agreement

__all__ = ["Verdict", "agree", "cosine", "top1"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far two sets of outputs agree, under one rule."""

    share: float
    """Share of samples with the same decision, 0..1."""
    cosine: float
    """Cosine similarity of the sample that differs most, -1..1."""
    passed: bool


def agree(rule: Agreement, expected: Mapping[str, Array], got: Mapping[str, Array]) -> Verdict:
    """Compare GOT with EXPECTED, both by public output name, first axis = samples.

    Rule `top1`: the same highest entry; rule `cosine`: a cosine of at least `min_cosine`.
    Passed if enough samples agree and none is further away than `min_cosine`; an answer with
    NaN or infinity agrees with nothing.

    Raises:
        UsageError: An output is missing, or has another shape, or there are no samples.
    """
    left, right = _rows(rule.output, expected, got)
    finite = np.asarray(np.isfinite(np.hstack([left, right])).all(axis=1))
    angles = np.full(len(left), -1.0)
    if finite.any():
        angles[finite] = cosine(left[finite], right[finite])
    same = top1(left) == top1(right) if rule.rule == "top1" else angles >= rule.min_cosine
    share = float((same & finite).mean())
    lowest = float(angles.min())
    return Verdict(share, lowest, share >= rule.min_share and lowest >= rule.min_cosine)


def top1(rows: Array) -> NDArray[np.intp]:
    """Return the index of the highest entry of each sample, the first one of equals."""
    return np.asarray(rows.reshape(len(rows), -1).argmax(axis=1))


def cosine(left: Array, right: Array) -> NDArray[np.float64]:
    """Return the cosine similarity of each sample; two zero vectors are alike, one is not."""
    a, b = (side.reshape(len(side), -1).astype(np.float64) for side in (left, right))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = (a * b).sum(axis=1)
    alike = (a == b).all(axis=1)
    safe = np.where(lengths > 0, lengths, 1.0)
    return np.where(alike, 1.0, np.where(lengths > 0, np.clip(products / safe, -1, 1), 0.0))


def _rows(
    name: str, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if name not in expected or name not in got:
        raise UsageError(f"there is no output `{name}` to compare", reason="bad_output")
    left, right = expected[name], got[name]
    if left.shape != right.shape or not left.size:
        raise UsageError(
            f"`{name}` cannot be compared",
            why=f"one has the shape {left.shape}, the other {right.shape}",
            reason="bad_output",
        )
    flat = (len(left), -1)
    return left.reshape(flat).astype(np.float64), right.reshape(flat).astype(np.float64)
