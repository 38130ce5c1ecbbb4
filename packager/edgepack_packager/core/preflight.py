"""What looks wrong with labelled samples before anything is built on them. Pure; judges numbers.

Labels that no class has are an error. Pictures in another colour order or range than the model
was trained on still score something, and then everything is measured against the wrong baseline:
so the source is asked about altered copies too, and scoring better on those is told.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_packager.core.binding import Public
from edgepack_targets.pipeline.similarity import top1

__all__ = ["Probe", "altered_samples", "check_folders", "check_labels", "preparation_warning"]

Arrays = Mapping[str, NDArray[Any]]
PROBED = 64
BYTE = 255
UNIT = 4.0
"""Pictures whose values stay below this are scaled (0..1, or by mean and spread), not bytes."""
SURE = 3.0
"""Standard deviations by which an altered copy must score better to be told."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Altered copies of the samples ROWS: ALTERED in words, and the inputs."""

    altered: str
    rows: NDArray[np.intp]
    inputs: Arrays


# -- labels


def check_labels(labels: NDArray[Any], samples: int, classes: int) -> None:
    """Check labels for top-1: one whole number for each sample, each the index of a class.

    Raises:
        UsageError: they are one-hot, no whole numbers (`labels_type`), or out of range
            (`labels_range`).
    """
    if labels.size != samples:
        hint = "np.argmax(labels, axis=1)" if labels.shape == (samples, classes) else ""
        raise UsageError(
            f"labels {labels.shape} are not one number for each of {samples} samples",
            why="they look one-hot" if hint else "",
            fix=hint or "give `labels` the shape (samples,)",
            reason="labels_shape",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"labels are {labels.dtype}, not whole numbers",
            why="top-1 compares them with the index of the highest output",
            fix="labels.astype('int64'), or --metric file.py:function for other labels",
            reason="labels_type",
        )
    _check_range(labels.reshape(-1), classes)


def _check_range(labels: NDArray[Any], classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if not wrong.size:
        return
    from_one = labels.min() == 1 and labels.max() == classes
    raise UsageError(
        f"{wrong.size} of {labels.size} labels are not in 0..{classes - 1}",
        why=f"the first one is {wrong[0]}, and the model has {classes} classes"
        + ("; they seem to count from 1" if from_one else ""),
        fix="labels - 1" if from_one else "number the classes in the order of the output",
        reason="labels_range",
    )


def check_folders(labels: NDArray[Any], classes: int) -> None:
    """Check that folders numbered by their order alone are all there: one missing shifts the rest.

    Raises:
        UsageError: there are not as many kinds of LABELS as CLASSES (`folder_classes`).
    """
    there = len(np.unique(labels))
    if there != classes:
        raise UsageError(
            f"there are {there} subfolders for {classes} classes",
            why="without labels they are counted in alphabetical order, so one that is missing "
            "shifts those after it",
            fix="--labels labels.txt, with subfolders named like the labels",
            reason="folder_classes",
        )


# -- pictures


def altered_samples(inputs: tuple[Public, ...], samples: Arrays) -> list[Probe]:
    """Return copies of some SAMPLES as they would be had they been prepared in another way.

    Red and blue swapped, and the range between 0..1 and 0..255 exchanged, of inputs that look
    like pictures: four axes, one of them with 1, 3 or 4 colours. None if nothing does.
    """
    count = len(next(iter(samples.values())))
    rows = np.unique(np.linspace(0, count - 1, min(count, PROBED)).astype(np.intp))
    some = {name: array[rows] for name, array in samples.items()}
    pictures = {p.name: axis for p in inputs if (axis := _colours(p.shape)) is not None}
    found = []
    for name, axis in pictures.items():
        for told, changed in _changes(some[name], axis):
            found.append(Probe(f"{told} in `{name}`", rows, some | {name: changed}))
    return found


def _colours(shape: tuple[int, ...]) -> int | None:
    """Return the axis of the colours in a picture of SHAPE; None: it is none."""
    if len(shape) != 4:
        return None
    return next((axis for axis in (3, 1) if shape[axis] in {1, 3, 4}), None)


def _changes(pictures: NDArray[Any], axis: int) -> list[tuple[str, NDArray[Any]]]:
    changes = []
    if pictures.shape[axis] == 3:
        changes.append(("red and blue swapped", np.flip(pictures, axis)))
    if np.issubdtype(pictures.dtype, np.floating):
        scaled = float(np.abs(pictures).max(initial=0)) < UNIT
        factor, told = (BYTE, "values times 255") if scaled else (1 / BYTE, "values over 255")
        changes.append((told, (pictures * factor).astype(pictures.dtype)))
    return changes


def preparation_warning(
    probes: list[tuple[Probe, NDArray[Any]]], answers: NDArray[Any], labels: NDArray[Any]
) -> str | None:
    """Return a warning about the altered copy that the source gets right clearly more often.

    Args:
        probes: Each with the source's answers to it, of the output that decides.
        answers: The source's answers to the samples as they were given.
        labels: The truth, a whole number for each sample.

    Returns:
        Of the best copy, with numbers; None if no copy is clearly better than what was given.
    """
    given = top1(answers) == labels.reshape(-1)
    told: list[tuple[int, str]] = []
    for probe, altered in probes:
        before, after = given[probe.rows], top1(altered) == labels.reshape(-1)[probe.rows]
        gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
        if gained - lost > SURE * math.sqrt(gained + lost):
            text = (
                f"the source scores {after.mean():.3f} on {len(before)} samples with "
                f"{probe.altered}, and {before.mean():.3f} as they are given: check how they "
                "were prepared"
            )
            told.append((gained - lost, text))
    return max(told)[1] if told else None
