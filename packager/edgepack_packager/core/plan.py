"""From recipe and capabilities to ordered steps, or an error that says why not. Pure.

A step names its toolchain, the worker function that does it and the steps it builds on. Steps
shared by several variants (opening, exporting, one conversion per target) appear once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edgepack.errors import UnsupportedError
from edgepack_packager.core.recipe import Recipe, Variant

__all__ = ["HOST", "Plan", "Route", "Step", "make_plan"]

HOST = "host"


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


@dataclass(frozen=True, slots=True)
class Route:
    """How one variant comes to be: its steps in order; the last one writes the artefact."""

    variant: Variant
    steps: tuple[Step, ...]

    @property
    def artefact(self) -> Step:
        """The step whose output is the model."""
        return self.steps[-1]


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole build: open the source, ask it, then a route per variant."""

    opening: Step
    reference: Step
    routes: tuple[Route, ...]

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Every toolchain besides the host's own environment, once."""
        steps = (self.opening, *(step for route in self.routes for step in route.steps))
        return tuple(dict.fromkeys(s.toolchain for s in steps if s.toolchain != HOST))


OPENING = {
    "keras": Step("export", "tf", "tf.export"),
    "saved_model": Step("export", "tf", "tf.export"),
    "onnx": Step("open", HOST, "onnx_source.normalise"),
}
REFERENCE = {
    "keras": Step("reference", "tf", "tf.reference"),
    "saved_model": Step("reference", "tf", "tf.reference"),
    "onnx": Step("reference", HOST, "onnx_source.reference"),
}
OPENED = {"keras": "saved_model", "saved_model": "saved_model", "onnx": "onnx"}
"""What the opening step leaves for the conversions."""
BRIDGES = {
    ("saved_model", "tflite"): Step("tflite", "tf", "tf.tflite", ("export",)),
    ("saved_model", "onnx"): Step("onnx", "tf", "tf.onnx", ("export",)),
}
"""Steps that turn one source format into another, where no target does it itself."""
MISSING = {
    ("onnx", "tflite"): "it needs the toolchain `onnx2tf`, which is not there yet",
}


def make_plan(
    kind: str, recipe: Recipe, capabilities: Mapping[str, tuple[str, ...]]
) -> tuple[Plan, dict[Variant, UnsupportedError]]:
    """Return the plan, and why each variant that has no place in it cannot be built.

    Args:
        kind: Of the source: `keras`, `saved_model` or `onnx`.
        recipe: What was asked for.
        capabilities: Source formats that each target can convert, by target name.
    """
    routes: list[Route] = []
    refused: dict[Variant, UnsupportedError] = {}
    for variant in recipe.variants:
        try:
            routes.append(_route(kind, variant, capabilities[variant.target]))
        except UnsupportedError as error:
            refused[variant] = error
    return Plan(OPENING[kind], REFERENCE[kind], tuple(routes)), refused


def _route(kind: str, variant: Variant, formats: tuple[str, ...]) -> Route:
    steps = _conversion(kind, variant.target, formats)
    if variant.precision == "int8":
        quantize = Step(
            f"{variant.target}-int8", HOST, "convert.quantize", (steps[-1].id,), variant.target
        )
        steps = (*steps, quantize)
    return Route(variant, steps)


def _conversion(kind: str, target: str, formats: tuple[str, ...]) -> tuple[Step, ...]:
    """Return the steps to the fp32 model of TARGET: directly, or over one bridge."""
    opened, opening = OPENED[kind], OPENING[kind].id
    if opened in formats:
        return (_convert(target, opened, opening),)
    for (source, middle), bridge in BRIDGES.items():
        if source == opened and middle in formats:
            return (bridge, _convert(target, middle, bridge.id))
    raise UnsupportedError(
        f"there is no route from {kind} to {target}",
        why=MISSING.get((opened, target), "no installed target or toolchain can do it"),
        fix=f"leave out --target {target}, or build from a Keras model or SavedModel",
        reason="no_route",
    )


def _convert(target: str, source_format: str, needs: str) -> Step:
    return Step(f"{target}-fp32", HOST, "convert.convert", (needs,), target, source_format)
