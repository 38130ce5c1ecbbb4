"""What a source says about itself, where the user says nothing. Pure; flags and recipe win."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from edgepack.manifest import Preprocess
from edgepack_packager.core.binding import Public
from edgepack_packager.core.recipe import ModelCard

__all__ = ["prefilled"]


def prefilled(
    card: ModelCard,
    facts: Mapping[str, Any],
    inputs: Sequence[Public],
    outputs: Sequence[Public],
) -> tuple[ModelCard, list[str]]:
    """Return CARD with what it leaves open taken from FACTS, and a note on each such thing.

    What does not fit the model is left out with a note: a stranger's metadata is no reason to
    fail, and nothing is taken from it silently.

    Args:
        card: What the user said.
        facts: See `edgepack_targets.annotation.facts_of`.
        inputs: Of the model.
        outputs: Of the model; the first one holds the classes.
    """
    notes: list[str] = []
    changes: dict[str, Any] = {}
    if facts.get("labels") and not card.labels:
        labels = tuple(facts["labels"])
        fits = _may_hold(labels, facts, outputs)
        _take(changes, notes, "labels", labels, f"{len(labels)} labels", fits=fits)
    if facts.get("license") and card.license is None:
        _take(changes, notes, "license", facts["license"], f"license {facts['license']}")
    if facts.get("task") and card.task is None:
        _take(changes, notes, "task", facts["task"], f"task {facts['task']}")
    if facts.get("preprocess") and card.preprocess is None:
        rule = _rule(facts["preprocess"])
        _take(
            changes, notes, "preprocess", rule, "preprocessing",
            fits=rule is not None and _feeds(rule, inputs),
        )  # fmt: skip
    return replace(card, **changes), notes


def _take(
    changes: dict[str, Any],
    notes: list[str],
    name: str,
    value: Any,
    what: str,
    *,
    fits: bool = True,
) -> None:
    if fits:
        changes[name] = value
        notes.append(f"{what} taken from the model's own metadata")
    else:
        notes.append(f"{what} in the model's own metadata does not fit the model; not used")


def _may_hold(labels: Sequence[str], facts: Mapping[str, Any], outputs: Sequence[Public]) -> bool:
    """Say whether a classifier with OUTPUTS can have LABELS; of other tasks nothing is known."""
    if facts.get("task", "classify") != "classify":
        return True
    size = 1
    for axis in outputs[0].shape[1:]:
        size *= axis
    return size == len(labels)


def _rule(said: Any) -> Preprocess | None:
    try:
        return msgspec.convert(said, Preprocess)
    except msgspec.ValidationError:
        return None


def _feeds(rule: Preprocess, inputs: Sequence[Public]) -> bool:
    """Say whether an image becomes one of INPUTS by RULE."""
    named = [public for public in inputs if public.name == (rule.input or inputs[0].name)]
    channels = 1 if rule.color == "gray" else 3
    return bool(named) and len(named[0].shape) == 4 and channels in named[0].shape[1:]
