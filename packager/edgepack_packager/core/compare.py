"""What tells two bundles apart: interface, answers, metrics, speed. Pure; runs no model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.manifest import Manifest, TensorSpec
from edgepack_packager.core.documents import Compare, Difference, OutputAgreement
from edgepack_packager.core.holdout import Paired
from edgepack_packager.core.paired import paired_sentence
from edgepack_targets.pipeline.similarity import cosine, top1

__all__ = ["answers_agree", "comparable", "interface_differences", "verdicts"]

Arrays = Mapping[str, NDArray[Any]]
NOISE = 0.05
"""Of a latency, below which nothing is said."""


def interface_differences(a: Manifest, b: Manifest) -> list[Difference]:
    """Return where the public faces of A and B differ; none: each can stand in for the other."""
    found = [*_tensors("input", a.inputs, b.inputs), *_tensors("output", a.outputs, b.outputs)]
    for field in ("task", "labels", "preprocess", "postprocess", "agreement"):
        left, right = getattr(a, field), getattr(b, field)
        if field == "agreement":
            left, right = (left.rule, left.output), (right.rule, right.output)
        if left != right:
            found.append(_difference(field, left, right))
    return found


def _tensors(side: str, a: Sequence[TensorSpec], b: Sequence[TensorSpec]) -> list[Difference]:
    left, right = ({spec.name: _said(spec) for spec in specs} for specs in (a, b))
    names = dict.fromkeys((*left, *right))
    return [
        _difference(f"{side} {name}", left.get(name), right.get(name))
        for name in names
        if left.get(name) != right.get(name)
    ]


def _said(spec: TensorSpec) -> str:
    shape = " x ".join("?" if size < 0 else str(size) for size in spec.shape)
    return f"{spec.dtype} {shape}" + (f" {spec.layout}" if spec.layout else "")


def _difference(what: str, a: object, b: object) -> Difference:
    left, right = (None if side is None else str(side) for side in (a, b))
    return {"what": what, "a": left, "b": right}


def comparable(a: Arrays, b: Arrays) -> list[str]:
    """Return the outputs that both have, in one shape."""
    return [name for name in a if name in b and a[name].shape == b[name].shape and a[name].size]


def answers_agree(a: Arrays, b: Arrays) -> list[OutputAgreement]:
    """Return how far the answers A and B agree, for each output that both have."""
    return [_agreement(name, a[name], b[name]) for name in comparable(a, b)]


def _agreement(name: str, a: NDArray[Any], b: NDArray[Any]) -> OutputAgreement:
    angles = cosine(a, b)
    rows = a.reshape(len(a), -1)
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    same = float((top1(a) == top1(b)).mean()) if rows.shape[1] > 1 else None
    return {
        "name": name,
        "top1": same,
        "cosine": {"lowest": float(angles.min()), "mean": float(angles.mean())},
        "max_abs": float(apart.max()),
    }


def verdicts(document: Compare) -> list[str]:
    """Return DOCUMENT in a few sentences: what B is, beside A."""
    a, b = document["a"], document["b"]
    told = [_ratio("model", b["model_bytes"] / a["model_bytes"], "smaller", "bigger")]
    told.append(_ratio("p50", b["latency_ms"]["p50"] / a["latency_ms"]["p50"], "faster", "slower"))
    paired = document["paired"]
    if paired:
        counts = Paired(paired["lost"], paired["gained"], paired["samples"])
        chance = f", p = {paired['p_value']:.2g}" if counts.drop else ""
        told.append(paired_sentence(counts, "B beside A") + chance)
    told += [
        f"{output['name']}: the same top-1 on {output['top1']:.2%} of the samples"
        for output in (document["agreement"] or {"outputs": []})["outputs"]
        if output["top1"] is not None
    ]
    return told


def _ratio(what: str, ratio: float, less: str, more: str) -> str:
    if abs(ratio - 1) < NOISE:
        return f"{what} of B is about the same ({ratio:.2f} x)"
    return f"{what} of B is {less if ratio < 1 else more} ({ratio:.2f} x)"
