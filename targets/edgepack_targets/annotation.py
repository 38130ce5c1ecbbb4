"""Facts about a model that travel inside its own file: their form, and what formats call them.

Every format gets all of them as canonical JSON under one key, so that nothing is lost on the way
back, and some under the names that other tools look for. Reads whatever a stranger wrote: what
has not the right form counts as absent. Knows no format's library.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from edgepack import canonical
from edgepack.errors import UsageError
from edgepack.manifest import Manifest, Preprocess, Task

__all__ = [
    "KEY",
    "decode",
    "encode",
    "facts_of",
    "model_info",
    "of_model_info",
    "of_props",
    "props",
]

KEY = "edgepack"
MAX_TEXT = 1 << 20
MAX_LABELS = 100_000
MAX_DIGITS = 10
PIXELS = {"gray": "Gray8", "rgb": "Rgb8", "bgr": "Bgr8"}
RESIZE = {"stretch": "standard", "letterbox": "fit_to_window_letterbox", "crop": "crop"}
TRUE = {"true", "yes", "1"}
# Of pixels in 0..255: (scale, mean, std) of `Preprocess`, by ONNX's name of the range.
RANGES = {
    "NominalRange_0_255": (1.0, 0.0, 1.0),
    "Normalized_0_1": (255.0, 0.0, 1.0),
    "Normalized_1_1": (255.0, 0.5, 0.5),
}


class _Facts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model file says about itself; unknown fields of later versions are ignored."""

    name: str = ""
    version: str = ""
    task: Task | Literal[""] = ""
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    license: str | None = None


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """Return the facts of MANIFEST; what is not known is left out.

    They are `name`, `version`, `task`, `labels`, `preprocess`, the public names of `inputs` and
    `outputs`, and `license`.
    """
    said = _Facts(
        name=manifest.name,
        version=manifest.version,
        task=manifest.task,
        labels=manifest.labels,
        preprocess=manifest.preprocess,
        inputs=tuple(spec.name for spec in manifest.inputs),
        outputs=tuple(spec.name for spec in manifest.outputs),
        license=manifest.license,
    )
    return _plain(said)


def encode(facts: Mapping[str, Any]) -> str:
    """Return FACTS as canonical JSON.

    Raises:
        UsageError: they have not the form of `facts_of`.
    """
    try:
        said = msgspec.convert(dict(facts), _Facts)
        return canonical.dumps(msgspec.to_builtins(said)).decode()
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise UsageError(
            "these facts cannot be written into a model", why=str(error), reason="bad_facts"
        ) from error


def decode(text: str) -> dict[str, Any]:
    """Return the facts in TEXT, canonical JSON or not; none if they have not the right form."""
    if len(text) > MAX_TEXT:
        return {}
    try:
        said = msgspec.json.decode(text, type=_Facts)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return _plain(said)


def props(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return FACTS as ONNX metadata: ours, ONNX's own keys for images, and Ultralytics' keys."""
    said = {KEY: encode(facts)}
    for key in ("task", "license"):
        if facts.get(key):
            said[key] = str(facts[key])
    if facts.get("labels"):
        said["names"] = str(dict(enumerate(facts["labels"])))
    rule = _rule(facts.get("preprocess"))
    if rule:
        said["Image.BitmapPixelFormat"] = PIXELS[rule.color]
        numbers = {(rule.scale, mean, std) for mean in rule.mean for std in rule.std}
        span = [name for name, known in RANGES.items() if {known} == numbers]
        said |= {"Image.NominalPixelRange": span[0]} if span else {}
    return said


def of_props(said: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts in the ONNX metadata SAID."""
    if found := decode(said.get(KEY, "")):
        return found
    facts: dict[str, Any] = {
        "labels": _names(said.get("names", "")),
        "task": {"classify": "classify", "detect": "detect", "segment": "segment"}.get(
            said.get("task", ""), ""
        ),
        "license": said.get("license") or None,
    }
    colors = {theirs: ours for ours, theirs in PIXELS.items()}
    color = colors.get(said.get("Image.BitmapPixelFormat", ""))
    numbers = RANGES.get(said.get("Image.NominalPixelRange", ""))
    if color and numbers:
        scale, mean, std = numbers
        facts["preprocess"] = {
            "input": "", "color": color, "scale": scale, "mean": [mean], "std": [std],
        }  # fmt: skip
    return _known(facts)


def model_info(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return FACTS by the keys that OpenVINO's Model API reads below `model_info`."""
    said: dict[str, str] = {}
    if facts.get("task") == "classify":
        said |= {"model_type": "Classification", "task_type": "classification"}
    if facts.get("labels"):
        # Separated by spaces, so a label has none: the originals are in our own entry.
        said["labels"] = " ".join("_".join(label.split()) for label in facts["labels"])
    rule = _rule(facts.get("preprocess"))
    if rule:
        means, stds = _wide(rule.mean, rule.std)
        said |= {
            "reverse_input_channels": "True" if rule.color == "rgb" else "False",
            "mean_values": " ".join(f"{rule.scale * mean:.9g}" for mean in means),
            "scale_values": " ".join(f"{rule.scale * std:.9g}" for std in stds),
            "resize_type": RESIZE[rule.resize.mode],
            "pad_value": str(rule.resize.pad),
        }
    return said


def of_model_info(said: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts in OpenVINO's MODEL_INFO, given as strings."""
    facts: dict[str, Any] = {"labels": tuple(said.get("labels", "").split())}
    if "Classification" in said.get("model_type", ""):
        facts["task"] = "classify"
    if "mean_values" in said and said.get("embedded_processing", "").lower() not in TRUE:
        modes = {theirs: ours for ours, theirs in RESIZE.items()}
        rgb = said.get("reverse_input_channels", "").lower() in TRUE
        resize = {"mode": modes.get(said.get("resize_type", "standard"), "")}
        facts["preprocess"] = {
            "input": "",
            "color": "rgb" if rgb else "bgr",
            "scale": 1.0,
            "mean": _numbers(said["mean_values"]),
            "std": None if 0 in (stds := _numbers(said.get("scale_values", "1")) or ()) else stds,
            "resize": resize | {"pad": _integer(said.get("pad_value", "0"))},
        }
    return _known(facts)


def _plain(said: _Facts) -> dict[str, Any]:
    """Return SAID as the values that JSON has."""
    return dict(msgspec.json.decode(msgspec.json.encode(said)))


def _rule(said: Any) -> Preprocess | None:
    return msgspec.convert(said, Preprocess) if said else None


def _wide(*columns: tuple[float, ...]) -> list[tuple[float, ...]]:
    """Return COLUMNS with single numbers repeated to the longest of them."""
    size = max(map(len, columns))
    return [column * size if len(column) == 1 else column for column in columns]


def _numbers(text: str) -> list[float] | None:
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _integer(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < MAX_DIGITS else None


def _names(text: str) -> tuple[str, ...]:
    """Return the labels in TEXT, which maps 0, 1, ... to them as Python writes a dict."""
    if len(text) > MAX_TEXT:
        return ()
    try:
        said = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ()
    if not isinstance(said, dict) or len(said) > MAX_LABELS:
        return ()
    if list(said) != list(range(len(said))):
        return ()
    labels = tuple(label for label in said.values() if isinstance(label, str))
    return labels if len(labels) == len(said) else ()


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of FACTS is said and has the right form."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        try:
            found |= _plain(msgspec.convert({key: value}, _Facts))
        except (msgspec.ValidationError, UnicodeEncodeError):
            continue
    return found
