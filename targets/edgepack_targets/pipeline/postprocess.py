"""From output tensors to an answer, by the manifest alone. Runs no model, draws nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Manifest, Postprocess

__all__ = ["Guess", "classify"]


@dataclass(frozen=True, slots=True)
class Guess:
    """One class and how sure the model is of it."""

    index: int
    label: str
    """The class's name, or its index as text where the manifest has none."""
    score: float


def classify(manifest: Manifest, outputs: Mapping[str, NDArray[Any]]) -> tuple[Guess, ...]:
    """Return the best classes of the first sample in OUTPUTS, best first, `top_k` at most.

    Args:
        manifest: Says which output, and whether a softmax is still to be applied.
        outputs: By public name, as a session returns them.

    Raises:
        UnsupportedError: The manifest describes no classifier.
        UsageError: The output is missing or holds no scores.
    """
    rule = _rule(manifest)
    row = _row(rule, outputs)
    # By the raw output: a softmax rounds values that lie close together to one score.
    best = np.argsort(-row, kind="stable")[: rule.top_k]
    scores = row if rule.activation == "none" else _softmax(row)
    return tuple(
        Guess(int(index), _label(manifest, int(index)), float(scores[index])) for index in best
    )


def _rule(manifest: Manifest) -> Postprocess:
    rule = manifest.postprocess
    if rule is None or rule.decoder != "softmax":
        raise UnsupportedError(
            f"{manifest.release} does not classify",
            why="its manifest has no such postprocessing",
            fix="use its raw output tensors",
            reason="no_decoder",
        )
    return rule


def _row(rule: Postprocess, outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    if rule.output not in outputs:
        raise UsageError(f"there is no output `{rule.output}` to decode", reason="bad_output")
    rows = outputs[rule.output].astype(np.float64)
    row = rows[0].ravel() if rows.ndim > 1 else rows
    if not row.size or not np.isfinite(row).all():
        raise UsageError(f"output `{rule.output}` holds no finite scores", reason="bad_output")
    return row


def _softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    # Shifted by the maximum, so that no exponential overflows.
    powers = np.exp(row - row.max())
    return np.asarray(powers / powers.sum())


def _label(manifest: Manifest, index: int) -> str:
    return manifest.labels[index] if index < len(manifest.labels) else str(index)
