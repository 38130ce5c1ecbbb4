"""From recipe and capabilities to ordered steps, or an error that says why not. Pure.

A step names its toolchain, the worker function that does it and the steps it builds on. Steps
shared by several variants (opening, exporting, one conversion per target) appear once.

    source --compress--> source' --open--> opened --bridge--> --convert--> fp32 --quantize--> done
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from edgepack.errors import EdgepackError, UnsupportedError, UsageError
from edgepack_packager.core.recipe import Recipe, Variant
from edgepack_targets.interface import Capability, Quantization
from edgepack_targets.quantization import require_expressible

__all__ = [
    "BRIDGES",
    "HOST",
    "KINDS",
    "Finish",
    "Plan",
    "Route",
    "SourceRoute",
    "Step",
    "make_plan",
]

HOST = "host"
TORCH, TF, ONNX2TF = "torch", "tf", "onnx2tf"


@dataclass(frozen=True, slots=True)
class Step:
    """One worker call: FUNCTION of TOOLCHAIN on what the steps NEEDS wrote."""

    id: str
    toolchain: str
    function: str
    needs: tuple[str, ...] = ()
    target: str = ""
    source_format: str = ""
    """What a conversion reads."""
    how: Quantization | None = None
    """What a quantisation does."""
    arch: str | None = None


@dataclass(frozen=True, slots=True)
class SourceRoute:
    """What can be done with one kind of source."""

    opening: Step
    reference: Step
    opened: str
    """The format that the opening step leaves for the conversions."""
    compress: Step | None = None
    """What prunes, clusters, factorises, distils or trains it; None: nothing does."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last conversion of a target that is built from another one's model."""

    target: str
    source_format: str
    arch: str | None

    def after(self, step: Step) -> Step:
        """Return the step that turns what STEP wrote into the target's own format."""
        name = f"{self.target}-{step.id}"
        return Step(
            name, HOST, "convert.convert", (step.id,), self.target, self.source_format,
            arch=self.arch,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Route:
    """How one variant comes to be: to fp32, down to its precision, into its format."""

    variant: Variant
    conversion: tuple[Step, ...]
    quantization: Step | None = None
    finish: Finish | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in order; the last one writes the artefact."""
        made = (*self.conversion, *([self.quantization] if self.quantization else []))
        return (*made, self.finish.after(made[-1])) if self.finish else made

    @property
    def artefact(self) -> Step:
        """The step whose output is the model."""
        return self.steps[-1]

    @property
    def plain(self) -> "Route":
        """The same route without lowering the precision: the baseline of this variant."""
        return Route(Variant(self.variant.target, "fp32"), self.conversion, None, self.finish)

    def quantized(self, how: Quantization, label: str) -> "Route":
        """Return this route with another quantisation, whose step is called LABEL."""
        target = self.conversion[-1].target
        step = Step(label, HOST, "convert.quantize", (self.conversion[-1].id,), target, how=how)
        variant = Variant(self.variant.target, how.precision)
        return Route(variant, self.conversion, step, self.finish)


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole build: open the source, ask it, then a route per variant."""

    source: SourceRoute
    compresses: bool
    routes: tuple[Route, ...]

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Every toolchain besides the host's own environment, once."""
        steps = [self.source.opening, self.source.reference]
        steps += [self.source.compress] if self.compresses and self.source.compress else []
        steps += [step for route in self.routes for step in route.steps]
        return tuple(dict.fromkeys(s.toolchain for s in steps if s.toolchain != HOST))


def _source(opening: Step, reference: Step, opened: str, compress: str = "") -> SourceRoute:
    made = Step("compress", opening.toolchain, compress) if compress else None
    return SourceRoute(opening, reference, opened, made)


EXPORTED_BY_TORCH = _source(
    Step("export", TORCH, "torch_source.export"),
    Step("reference", TORCH, "torch_source.reference"),
    "torch",
    "torch_compress.compress",
)
KINDS: dict[str, SourceRoute] = {
    "keras": _source(
        Step("export", TF, "tf.export"),
        Step("reference", TF, "tf.reference"),
        "saved_model",
        "keras_compress.compress",
    ),
    "saved_model": _source(
        Step("export", TF, "tf.export"), Step("reference", TF, "tf.reference"), "saved_model"
    ),
    "torch_module": EXPORTED_BY_TORCH,
    "torch_program": EXPORTED_BY_TORCH,
    "torchscript": _source(
        Step("export", TORCH, "torch_source.script_to_onnx"),
        Step("reference", TORCH, "torch_source.reference"),
        "onnx",
        "torch_compress.compress",
    ),
    "onnx": _source(
        Step("open", HOST, "onnx_source.normalise"),
        Step("reference", HOST, "onnx_source.reference"),
        "onnx",
        "onnx_compress.compress",
    ),
    "tflite": _source(
        Step("open", HOST, "tflite_source.open"),
        Step("reference", HOST, "tflite_source.reference"),
        "tflite",
    ),
    "openvino": _source(
        Step("open", HOST, "openvino_source.open"),
        Step("reference", HOST, "openvino_source.reference"),
        "openvino",
    ),
}
"""By kind of source."""
BRIDGES: dict[tuple[str, str], Step] = {
    ("saved_model", "tflite"): Step("tflite", TF, "tf.tflite"),
    ("saved_model", "onnx"): Step("onnx", TF, "tf.onnx"),
    ("torch", "tflite"): Step("tflite", TORCH, "torch_source.tflite"),
    ("torch", "onnx"): Step("onnx", TORCH, "torch_source.onnx"),
    ("onnx", "tflite"): Step("tflite", ONNX2TF, "onnx2tf_bridge.tflite"),
    ("tflite", "onnx"): Step("onnx", TF, "tf.onnx_from_tflite"),
}
"""Steps that turn one opened format into another, where no target does it itself."""


READY = frozenset({"onnx", "tflite", "openvino"})
"""Kinds of source whose files may be in a lower precision already."""
LOWERED = frozenset({"int8", "w8", "w4"})
"""Precisions below which no other one can be had."""


def make_plan(
    kind: str,
    recipe: Recipe,
    capabilities: Mapping[str, Capability],
    *,
    precision: str | None = "fp32",
) -> tuple[Plan, dict[Variant, EdgepackError]]:
    """Return the plan, and why each variant that has no place in it cannot be built.

    Args:
        kind: Of the source, one of `KINDS`.
        recipe: What was asked for.
        capabilities: What each target can do, by target name.
        precision: That the source has already; None: not known yet, because only opening a
            ready model tells.
    """
    source = KINDS[kind]
    routes: list[Route] = []
    refused: dict[Variant, EdgepackError] = {}
    for variant in recipe.variants:
        try:
            routes.append(_route(kind, variant, recipe, capabilities, precision))
        except (UnsupportedError, UsageError) as error:
            refused[variant] = error
    return Plan(source, bool(recipe.compression), tuple(routes)), refused


def _route(
    kind: str,
    variant: Variant,
    recipe: Recipe,
    capabilities: Mapping[str, Capability],
    precision: str | None,
) -> Route:
    """Return the route of VARIANT; its precision is lowered in the target it is built from."""
    capability = capabilities[variant.target]
    base, finish = variant.target, None
    if capability.built_from:
        base = capability.built_from
        finish = Finish(variant.target, base, recipe.arch)
    conversion = tuple(_conversion(kind, base, capabilities[base].sources))
    plain = Route(Variant(variant.target, "fp32"), conversion, None, finish)
    how = recipe.quantization(variant.precision)
    if precision in LOWERED or (precision == "fp16" and variant.precision in {"fp16", "fp32"}):
        return _ready(variant, plain, precision)
    if how is None:
        return plain
    # A ready model may be int8 already, and then needs no data.
    unknown = precision is None and kind in READY
    _check(variant.target, how, capability, calibrated=recipe.calibrated or unknown)
    return plain.quantized(how, f"{base}-{variant.precision}")


def _ready(variant: Variant, plain: Route, precision: str) -> Route:
    """Return the route from a source that is in PRECISION already: nothing is left to lower."""
    if variant.precision == precision:
        return replace(plain, variant=variant)
    raise UnsupportedError(
        f"the source is {precision} already, so there is no {variant} of it",
        why="what was thrown away cannot be had back",
        fix=f"--precision {precision}, or build from the model before its precision was lowered",
        reason="already_quantized",
    )


def _conversion(kind: str, target: str, formats: tuple[str, ...]) -> Iterator[Step]:
    """Yield the steps to the fp32 model of TARGET: directly, or over one bridge."""
    opened, opening = KINDS[kind].opened, KINDS[kind].opening.id
    if opened in formats:
        yield _convert(target, opened, opening)
        return
    for (source, middle), bridge in BRIDGES.items():
        if source == opened and middle in formats:
            yield Step(bridge.id, bridge.toolchain, bridge.function, (opening,))
            yield _convert(target, middle, bridge.id)
            return
    raise UnsupportedError(
        f"there is no route from {kind} to {target}",
        why="no installed target or toolchain can do it",
        fix="edgepack doctor shows the routes; build from the model this one was made of",
        reason="no_route",
    )


def _convert(target: str, source_format: str, needs: str) -> Step:
    return Step(f"{target}-fp32", HOST, "convert.convert", (needs,), target, source_format)


def _check(target: str, how: Quantization, capability: Capability, *, calibrated: bool) -> None:
    """Refuse before anything runs what TARGET cannot express, or what has no data."""
    require_expressible(target, capability, how)
    if how.precision == "int8" and how.method == "static" and not calibrated:
        raise UsageError(
            "int8 needs calibration data",
            why="ranges of activations are measured on real inputs",
            fix="--calibration calib.npz (one array per input, first axis = samples)",
            reason="no_calibration",
        )
