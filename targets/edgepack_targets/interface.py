"""What a target is: the typed protocols that every plugin follows. Imports no runtime, no numpy.

A `Target` names a runtime. On a device it loads a model and gives a `Session`; on a host it
also converts and quantises, in a process of its own. Everything outside this package speaks
public tensors (the source's names, shapes and layouts); what a runtime calls them is its
`NativeTensor`s, and the manifest's bindings join the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.manifest import Manifest

__all__ = [
    "DEFAULT",
    "MACHINES",
    "MODEL_FILES",
    "Applied",
    "Capability",
    "Device",
    "Effective",
    "Hint",
    "Layer",
    "NativeTensor",
    "Placement",
    "Quantization",
    "Session",
    "SourceFormat",
    "Target",
]

SourceFormat = Literal["saved_model", "onnx", "tflite", "openvino"]

Device = Literal["CPU", "GPU", "NPU", "AUTO"]
Hint = Literal["latency", "throughput"]

MODEL_FILES = {
    "openvino": ("model.xml", "model.bin"),
    "tflite": ("model.tflite",),
    "onnx": ("model.onnx",),
    "onnx-mobile": ("model.ort", "required_operators.config"),
}
"""The files of a model directory, by runtime; the first is the one that is opened."""

MACHINES = {"arm64": "aarch64", "arm": "armv7l", "amd64": "x86_64"}
"""What a manifest calls the machines that `--arch` names."""


@dataclass(frozen=True, slots=True)
class NativeTensor:
    """An input or output as the runtime knows it; -1 is a dynamic axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Effective:
    """What a session really runs with, asked of the runtime after loading."""

    runtime: str
    version: str
    precision: str
    """Of what is not quantised: `f32`, `bf16` or `f16`."""
    device: str
    """Device or execution provider, as the runtime calls it."""
    threads: int
    """0: the runtime chose and does not say."""
    hint: str = ""
    """What it was tuned for, `latency` or `throughput`; empty: the runtime knows no such thing."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a session is to run: the machine's choice, never the model's."""

    device: Device = "CPU"
    """`AUTO`: a graphics processor that the runtime can use, else the CPU. Never NPU: it computes
    in other precisions. One that is not there is an error, no other one is taken for it."""
    hint: Hint = "latency"
    """What the runtime tunes for, if it knows the difference."""
    kept: Path | None = None
    """Directory of this model for what the runtime compiles of it; None: nothing is kept."""


DEFAULT = Placement()


@dataclass(frozen=True, slots=True)
class Capability:
    """What a target can do on a host."""

    sources: tuple[SourceFormat, ...]
    precisions: tuple[str, ...]
    max_calibration: int
    """Samples used at most; of more, a seeded choice is taken."""
    options: frozenset[str] = frozenset()
    """What of `Quantization` it can express, for one precision at least: `dynamic`,
    `per_tensor`, `minmax`, `entropy`, `percentile`, `smooth`, `bias_full`, `bias_none`,
    `exclude`, `int8_io`. What it cannot is refused, never ignored."""
    built_from: str = ""
    """The target whose finished model this one's `convert` takes; precisions are lowered there."""
    archs: tuple[str, ...] = ()
    """Machines it tells apart, the default first; `convert` then takes one of them as `arch`."""
    same_bytes: bool = True
    """Whether the same input gives the same bytes; if not, it still gives the same answers."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a model is made smaller; names a precision and, for int8, the settings of the method.

    A setting that the target, or the precision, cannot express is an error.
    """

    precision: Literal["fp16", "bf16", "int8", "w8", "w4"]
    method: Literal["static", "dynamic"] = "static"
    """Of int8: `static` calibrates the ranges of activations, `dynamic` finds them in each call."""
    per_channel: bool = True
    """Whether each output channel of a weight has its own scale."""
    ranges: Literal["default", "minmax", "entropy", "percentile"] = "default"
    """How calibration turns what it saw into a range; `default` is the target's own choice."""
    smooth: bool = False
    """Move the spread of activations into the weights first (SmoothQuant)."""
    bias_correction: Literal["fast", "full", "none"] = "fast"
    """What is done about the mean error; targets that correct nothing take `fast` for none."""
    exclude: tuple[str, ...] = ()
    """Layers that stay in float, by the names that `Target.diagnose` gives."""
    io: Literal["float", "int8"] = "float"
    """Type of the model's native inputs and outputs; public tensors are the source's anyway."""
    seed: int = 0
    """Of the choice of samples when there are more than the target uses."""
    cpu_features: tuple[str, ...] = ()
    """What the manifest will require, e.g. `avx512_vnni`."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What quantisation did to the output of one layer."""

    name: str
    """Stable; what `Quantization.exclude` takes."""
    operator: str
    """Its kind, as the format calls it."""
    loss: float
    """||q - f|| / ||f|| over all samples, as it is in the whole quantised model."""


class Applied(TypedDict):
    """What is really in an artefact, counted in the artefact itself."""

    operators: int
    """Operators that compute something; (de)quantisation is not counted."""
    quantized_operators: int
    """Of these, the ones that read int8 data."""
    int8_weights: int
    """Numbers of weights stored as int8 (biases and scales are not weights)."""
    float_weights: int
    """Numbers of weights stored as floats."""
    int8_share: float
    """`int8_weights` in all weights; 0 without weights."""
    float16_weights: int
    """Of `float_weights`, the ones stored in 16 bits."""
    int4_weights: int
    """Numbers of weights stored as int4."""
    sparsity: float
    """Share of weights, of whatever type, that are zero; 0 without weights."""


class Session(Protocol):
    """A loaded model. `run` may be called from several threads; calls may wait for each other."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs for INPUTS, both by public name, in public shapes and layouts.

        Nothing is converted silently: a uint8 image for a float32 input is an error. The
        arrays returned are the caller's own.

        Raises:
            UsageError: A name is missing or unknown, or a shape or dtype differs.
        """
        ...

    @property
    def effective(self) -> Effective:
        """What the session really runs with."""
        ...

    def close(self) -> None:
        """Give the memory back; harmless to call again. `run` raises RuntimeError afterwards."""
        ...


class Target(Protocol):
    """One runtime: what a model can run on."""

    @property
    def name(self) -> str:
        """The name used in `--target`, bundles and manifests."""
        ...

    @property
    def extra(self) -> str:
        """The extra of the edgepack distribution that installs the runtime."""
        ...

    def version(self) -> str:
        """Return the version of the installed runtime, without importing it.

        Raises:
            UnsupportedError: It is not installed; the message names the extra.
        """
        ...

    def capability(self) -> Capability:
        """Return what the target can do on a host."""
        ...

    def load(
        self,
        model_dir: Path,
        manifest: Manifest,
        *,
        threads: int | None = None,
        place: Placement = DEFAULT,
    ) -> Session:
        """Load the model in MODEL_DIR with the manifest's bindings and execution precision.

        Raises:
            UnsupportedError: The runtime is missing or too old, or cannot run the precision; or
                it does not have the device (reason `no_device`).
            IntegrityError: The model cannot be read or is not the one the manifest describes.
        """
        ...

    def describe(self, model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
        """Return the native inputs and outputs of the model in MODEL_DIR, in its order.

        Raises:
            IntegrityError: The model cannot be read.
        """
        ...

    def convert(
        self,
        source: Path,
        source_format: str,
        out_dir: Path,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Mapping[str, Any] | None:
        """Write SOURCE as an fp32 model to OUT_DIR. Host only; run it in a fresh process.

        Args:
            source: File or SavedModel directory.
            source_format: One of `capability().sources`.
            out_dir: An existing directory.
            shapes: Static shapes by the source's native input name; an unknown batch that is
                not given becomes 1.

        Returns:
            What is known of the model and not counted in it, for the report; None: nothing.

        Raises:
            UnsupportedError: No such route, or an operator or shape that it cannot take.
            UsageError: SOURCE cannot be read, or SHAPES do not fit it.
        """
        ...

    def quantize(
        self,
        model_dir: Path,
        out_dir: Path,
        how: Quantization,
        calibration: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, Any]:
        """Write the fp32 model in MODEL_DIR to OUT_DIR as HOW says. Host only.

        Args:
            model_dir: What `convert` wrote.
            out_dir: An existing directory.
            how: The precision and its settings.
            calibration: One array per native input, in native layout, first axis = samples;
                needed by static int8 only.

        Returns:
            What was done, for the manifest: `method`, `samples`, `seed`, `tools`.

        Raises:
            UsageError: CALIBRATION does not fit the model, or a layer to exclude is not there.
            UnsupportedError: The target cannot express HOW, nothing could be quantised, the
                converter is missing or cannot take the model.
        """
        ...

    def diagnose(
        self, fp32_dir: Path, quantized_dir: Path, samples: Mapping[str, NDArray[Any]]
    ) -> list[Layer]:
        """Return what quantisation did to each layer, the worst first. Host only.

        Args:
            fp32_dir: What `convert` wrote.
            quantized_dir: What `quantize` made of it.
            samples: As for `quantize`.

        Raises:
            UsageError: SAMPLES do not fit the model.
        """
        ...

    def applied(self, model_dir: Path) -> Applied:
        """Return what is really in the model in MODEL_DIR. Host only."""
        ...

    def annotate(self, model_dir: Path, facts: Mapping[str, Any]) -> None:
        """Write FACTS into the model in MODEL_DIR as its format's own metadata. Host only.

        Nothing that computes is changed, and the same facts give the same bytes. Facts that
        the model already carries are replaced.

        Args:
            model_dir: A finished model; its files are replaced.
            facts: See `annotation`: JSON values only.

        Raises:
            UnsupportedError: The format has no place for them; the message says where to write.
        """
        ...

    def annotations(self, model: Path) -> dict[str, Any]:
        """Return the facts in the model file MODEL, ours or by the format's conventions.

        Whoever wrote it: only facts of the right form are returned, so maybe none. Host only.

        Raises:
            IntegrityError: MODEL cannot be read.
        """
        ...
