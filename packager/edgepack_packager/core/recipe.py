"""What the user asked for, validated as far as that needs no file. Reads nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import msgspec

from edgepack.decoders import Postprocess
from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Name, Preprocess, Semver
from edgepack_packager.core.compression import CompressionStep
from edgepack_targets.interface import Quantization

__all__ = [
    "PRECISIONS",
    "Budgets",
    "ModelCard",
    "Recipe",
    "Variant",
    "parse_shape",
    "variants",
]

TARGETS = ("openvino", "tflite", "onnx", "onnx-mobile")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "w8", "w4")
MOBILE = "onnx-mobile"
BF16 = "avx512_bf16"
"""What a CPU must have to multiply bf16; the manifest then asks for it."""
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
    compression: tuple[CompressionStep, ...] = ()
    """What is done to the source before it is converted, in the planner's order."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the int8 quantisation, beyond the defaults: fields of `Quantization`."""
    arch: str | None = None
    """Of an `onnx-mobile` file; None: arm64."""
    auto: bool = False
    calibrated: bool = False
    evaluated: bool = False
    trained: bool = False
    """Whether there is data to train on."""
    seed: int = 0

    def quantization(self, precision: str) -> Quantization | None:
        """Return how PRECISION is reached; None: it is what conversions give anyway."""
        if precision == "fp32":
            return None
        settings: Mapping[str, Any] = self.settings if precision == "int8" else {}
        if precision == "bf16":
            settings = {"cpu_features": (BF16,)}
        return Quantization(precision=cast("Any", precision), seed=self.seed, **settings)

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

    def _searches_twice(self) -> bool:
        """Whether two searches for one target could end at the same variant."""
        return len({v.precision for v in self.variants} - {"fp32"}) > 1

    def _check_data(self) -> None:
        hungry = [step.kind for step in self.compression if step.needs_training]
        faults = (
            (self.max_drop is not None and not self.evaluated, "--max-drop needs evaluation data",
             "--evaluate val.npz", "no_evaluation"),
            (self.max_drop is not None and not self.max_drop >= 0,
             "--max-drop must not be negative", "--max-drop 0.01", "bad_max_drop"),
            (self.auto and self.max_drop is None, "--auto needs a limit to search for",
             "--max-drop 0.01", "auto_without_limit"),
            (self.auto and self._searches_twice(), "--auto finds the precision itself",
             "give one --precision to start from; fp32 may be built beside it", "auto_precisions"),
            (self.auto and all(v.precision == "fp32" for v in self.variants),
             "--auto searches below fp32, and only fp32 is asked for",
             "leave --precision out to start from int8, or leave --auto out", "auto_fp32"),
            (bool(hungry) and not self.trained, f"{', '.join(hungry)} needs data to train on",
             "`train: train.npz` in the recipe, inputs and `labels`; or `epochs: 0`",
             "no_training_data"),
            (bool(self.settings) and all(v.precision != "int8" for v in self.variants),
             "`quantize:` in the recipe says how int8 is reached, and no variant is int8",
             "--precision int8, or leave `quantize:` out", "quantize_without_int8"),
            (self.arch is not None and all(v.target != MOBILE for v in self.variants),
             "--arch is for target onnx-mobile; the files of the others run on every architecture",
             "leave --arch out, or --target onnx-mobile", "arch_without_mobile"),
        )  # fmt: skip
        for wrong, what, fix, reason in faults:
            if wrong:
                raise UsageError(what, fix=fix, reason=reason)


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
        _known(target, "target", TARGETS)
    for precision in precisions:
        _known(precision, "precision", PRECISIONS)
    pairs = (Variant(target, precision) for target in targets for precision in precisions)
    return tuple(dict.fromkeys(pairs))


def _known(word: str, kind: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise UnsupportedError(
            f"there is no {kind} {word}",
            fix=f"choose from: {', '.join(known)}",
            reason=f"unknown_{kind}",
        )


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the input name and shape of `name=1,32,32,1`.

    Raises:
        UsageError: TEXT does not have that form.
        UnsupportedError: another axis than the batch is dynamic, or the batch is neither 1 nor -1.
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
    if -1 in shape[1:] or shape[0] not in {1, -1}:
        raise UnsupportedError(
            f"--shape {text}: only the batch, the first axis, can stay dynamic",
            why="samples are fed one at a time, or as many as there are",
            fix="give every other axis a number; the first one 1, or -1 to keep it dynamic",
            reason="dynamic_shape",
        )
    return name, shape
