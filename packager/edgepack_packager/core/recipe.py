"""What the user asked for, validated as far as that needs no file. Reads nothing."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Name, Postprocess, Preprocess, Semver

__all__ = ["Budgets", "ModelCard", "Recipe", "Variant", "parse_shape", "variants"]

TARGETS = ("openvino", "tflite", "onnx")
LATER_TARGETS = ("onnx-mobile",)
PRECISIONS = ("fp32", "int8")
LATER_PRECISIONS = ("fp16", "bf16", "w8", "w4")
Task = Literal["classify", "detect", "segment", "embed", "raw"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True, slots=True)
class Variant:
    """One bundle of a release."""

    target: str
    precision: str

    def __str__(self) -> str:
        return f"{self.target} {self.precision}"


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits that a variant must keep; None: no limit. Milliseconds at p50, megabytes (10^6)."""

    max_latency_ms: float | None = None
    max_rss_mb: float | None = None
    max_size_mb: float | None = None
    fail_if_slower: bool = False


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is said about the model rather than done to it."""

    task: Task | None = None
    labels: tuple[str, ...] = ()
    license: str | None = None
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole build, as asked for.

    Raises:
        UsageError: a name, version or combination that makes no sense.
    """

    name: str
    version: str
    variants: tuple[Variant, ...]
    card: ModelCard
    shapes: dict[str, tuple[int, ...]]
    signature: str | None = None
    metric: str = "top1"
    max_drop: float | None = None
    budgets: Budgets = Budgets()
    calibrated: bool = False
    evaluated: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not _is(Name, self.name):
            raise UsageError(
                f"`{self.name}` cannot be a model's name",
                why="lower-case letters, digits, `.`, `_` and `-` only, at most 64",
                fix="choose one with --name",
                reason="bad_name",
            )
        if not _is(Semver, self.version):
            raise UsageError(
                f"`{self.version}` is not a version",
                fix="use MAJOR.MINOR.PATCH, at most 64 characters",
                reason="bad_version",
            )
        self._check_data()

    def _check_data(self) -> None:
        if any(v.precision == "int8" for v in self.variants) and not self.calibrated:
            raise UsageError(
                "int8 needs calibration data",
                why="ranges of activations are measured on real inputs",
                fix="--calibration calib.npz (one array per input, first axis = samples)",
                reason="no_calibration",
            )
        if self.max_drop is not None and not self.evaluated:
            raise UsageError(
                "--max-drop needs evaluation data", fix="--evaluate val.npz", reason="no_evaluation"
            )
        if self.max_drop is not None and not self.max_drop >= 0:
            raise UsageError("--max-drop must not be negative", reason="bad_max_drop")


def _is(kind: Any, text: str) -> bool:
    """Return whether the manifest takes TEXT as a KIND."""
    try:
        msgspec.convert(text, kind)
    except msgspec.ValidationError:
        return False
    return True


def variants(targets: tuple[str, ...], precisions: tuple[str, ...]) -> tuple[Variant, ...]:
    """Return every pair of TARGETS and PRECISIONS, each once, in the order asked for.

    Raises:
        UnsupportedError: a target or precision that is unknown or not there yet.
    """
    for target in targets:
        _known(target, "target", TARGETS, LATER_TARGETS)
    for precision in precisions:
        _known(precision, "precision", PRECISIONS, LATER_PRECISIONS)
    pairs = (Variant(target, precision) for target in targets for precision in precisions)
    return tuple(dict.fromkeys(pairs))


def _known(word: str, kind: str, known: tuple[str, ...], later: tuple[str, ...]) -> None:
    if word in known:
        return
    what = f"{kind} {word} is not there yet" if word in later else f"there is no {kind} {word}"
    raise UnsupportedError(what, fix=f"choose from: {', '.join(known)}", reason=f"unknown_{kind}")


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the input name and shape of `name=1,32,32,1`.

    Raises:
        UsageError: TEXT does not have that form.
        UnsupportedError: a dynamic axis, or more than one sample at a time.
    """
    name, _, numbers = text.rpartition("=")
    try:
        shape = tuple(int(number) for number in numbers.split(","))
    except ValueError as error:
        shape = ()
        cause: Exception | None = error
    else:
        cause = None
    if not name or not shape or any(size == 0 or size < -1 for size in shape):
        raise UsageError(
            f"--shape {text} cannot be read", fix="--shape name=1,32,32,1", reason="bad_shape"
        ) from cause
    if -1 in shape or shape[0] != 1:
        raise UnsupportedError(
            f"--shape {text}: only static shapes with a batch of 1 can be built yet",
            fix="give every axis a number, the first one 1",
            reason="dynamic_shape",
        )
    return name, shape
