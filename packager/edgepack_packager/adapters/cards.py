"""What a user says about a model in files and flags: recipe, labels, preprocessing. Checks form."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from edgepack.decoders import Postprocess
from edgepack.errors import UsageError
from edgepack.manifest import Preprocess
from edgepack_packager.core.compression import CompressionStep, order, parse_step
from edgepack_packager.core.recipe import TASKS, ModelCard, Task
from edgepack_targets.interface import Quantization

__all__ = ["EMPTY", "RecipeFile", "preprocess", "read_labels", "read_recipe", "task"]

EMPTY = ModelCard()
SETTINGS = {one.name for one in fields(Quantization)} - {"precision", "seed", "cpu_features"}
DECODERS = {"classify": "softmax", "segment": "mask", "embed": "embedding"}
SECTIONS = {"task", "labels", "license", "preprocess", "postprocess"}


def task(word: str) -> Task:
    """Return WORD as a task.

    Raises:
        UsageError: there is no such task.
    """
    if word not in TASKS:
        raise UsageError(
            f"there is no task {word}", fix=f"choose from: {', '.join(TASKS)}", reason="bad_task"
        )
    return cast("Task", word)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the labels in PATH, one per line.

    Raises:
        UsageError: unreadable or empty.
    """
    labels = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    if not labels:
        raise UsageError(f"{path} holds no labels", reason="no_labels")
    return labels


def preprocess(said: str) -> Preprocess:
    """Return the preprocessing in SAID: JSON itself, or the path of a YAML or JSON file.

    Raises:
        UsageError: unreadable, or it names an unknown setting.
    """
    text = said if said.lstrip().startswith("{") else _text(Path(said))
    return _preprocess(_load(text, "--preprocess"))


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """What a recipe file says."""

    card: ModelCard = EMPTY
    train: Path | None = None
    compression: tuple[CompressionStep, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the int8 quantisation: fields of `Quantization`."""


def read_recipe(path: Path) -> RecipeFile:
    """Return what the recipe in PATH says; paths in it are relative to it.

    Raises:
        UsageError: unreadable, an unknown key, or a setting that makes no sense.
    """
    recipe = _load(_text(path), str(path))
    _refuse_unknown(recipe, {"model", "steps", "train"}, str(path))
    train = _part(recipe.get("train"), str | None, "train")
    steps = _part(recipe.get("steps") or [], list[dict[str, Any]], "steps")
    for step in steps:
        if len(step) != 1:
            raise UsageError(
                f"a step of {path} has {len(step)} names: {', '.join(map(str, step)) or 'none'}",
                fix="one step to each `- `", reason="bad_recipe",
            )  # fmt: skip
    quantize = [step["quantize"] for step in steps if "quantize" in step]
    if len(quantize) > 1:
        raise UsageError(f"{path} has two `quantize` steps", fix="one", reason="bad_recipe")
    compression = [
        parse_step(step, lambda name: str((path.parent / name).resolve()))
        for step in steps
        if "quantize" not in step
    ]
    return RecipeFile(
        card=_card(recipe.get("model") or {}, path),
        train=path.parent / train if train else None,
        compression=order(compression),
        settings=_settings(quantize[0] if quantize else {}),
    )


def _settings(said: Any) -> dict[str, Any]:
    """Return the settings of `quantize:`, each of the right type."""
    _refuse_unknown(said, SETTINGS, "steps: quantize")
    _part({"precision": "int8"} | said, Quantization, "quantize")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}


def _card(model: Any, path: Path) -> ModelCard:
    _refuse_unknown(model, SECTIONS, f"{path}: model")
    shown = model.get("postprocess")
    return ModelCard(
        task=task(str(model["task"])) if "task" in model else None,
        labels=_labels(model.get("labels"), path),
        license=_part(model.get("license"), str | None, "license"),
        preprocess=_preprocess(model["preprocess"]) if "preprocess" in model else None,
        postprocess=_postprocess(shown, model.get("task")) if shown is not None else None,
    )


def _labels(said: Any, recipe: Path) -> tuple[str, ...]:
    """Return labels given as a list, or as a file beside the recipe."""
    if isinstance(said, str):
        return read_labels(recipe.parent / said)
    if not isinstance(said, list | None):
        raise UsageError(f"{recipe}: labels must be a list or a file", reason="bad_recipe")
    strange = [label for label in said or () if not _is_label(label)]
    if strange:
        raise UsageError(
            f"{recipe}: {strange[0]!r} is no label",
            why="YAML reads an unquoted yes, no, on or off as true or false, and nothing as null",
            fix='put quotes around it: "no"',
            reason="bad_recipe",
        )
    return tuple(str(label) for label in said or ())


def _is_label(said: Any) -> bool:
    """Say whether SAID is a word or number that fits on a line of a labels file."""
    if isinstance(said, bool) or not isinstance(said, str | int | float):
        return False
    return len(str(said).splitlines()) == 1


def _preprocess(said: Any) -> Preprocess:
    # The only input need not be named; which one it is, is known once the model is open.
    given = {"input": ""} | said if isinstance(said, dict) else said
    for key in ("mean", "std"):
        if isinstance(given, dict) and isinstance(given.get(key), int | float):
            given = given | {key: [given[key]]}
    read: Preprocess = _part(given, Preprocess, "preprocess")
    _check_numbers(read)
    return read


def _postprocess(said: Any, task: Any) -> Postprocess:
    given = {"decoder": DECODERS.get(task, "none")} | said if isinstance(said, dict) else said
    read: Postprocess = _part(given, Postprocess, "postprocess")
    return read


def _check_numbers(rule: Preprocess) -> None:
    """Refuse numbers from which no image becomes a finite tensor."""
    channels = 1 if rule.color == "gray" else 3
    faults = [
        f"{name} has {len(values)} numbers for {channels} channels"
        for name, values in (("mean", rule.mean), ("std", rule.std))
        if len(values) not in {1, channels}
    ]
    if not all(map(math.isfinite, (rule.scale, *rule.mean, *rule.std))):
        faults.append("a number is not finite")
    if 0 in (rule.scale, *rule.std):
        faults.append("scale and std divide, so they cannot be 0")
    if faults:
        raise UsageError(
            "the preprocess settings are not right",
            why="; ".join(faults),
            fix="(x / scale - mean) / std: one number per channel, or one for all",
            reason="bad_preprocess",
        )


def _part(said: Any, kind: Any, what: str) -> Any:
    try:
        return msgspec.convert(said, kind)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"the {what} settings are not right", why=str(error), reason=f"bad_{what}"
        ) from error


def _refuse_unknown(section: Any, known: set[str], where: str) -> None:
    if not isinstance(section, dict) or section.keys() - known:
        extra = sorted(map(str, section.keys() - known)) if isinstance(section, dict) else []
        raise UsageError(
            f"{where} is not right",
            why=f"unknown: {', '.join(extra)}" if extra else "it is not a mapping",
            fix=f"known keys: {', '.join(sorted(known))}",
            reason="bad_recipe",
        )


def _load(text: str, where: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith("{") else yaml.load(text, _Strict)  # noqa: S506  a safe loader
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{where} cannot be read", why=str(error), reason="bad_recipe") from error


class _Strict(yaml.SafeLoader):
    """YAML without code, in which a key that is there twice loses nothing silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        known = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in known:
            if known.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read", why=str(error), reason="no_file") from error
