"""Steps on the host: convert to a target's fp32 model, quantise it. The plugins do the work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack_packager.workers.arrays import read_arrays
from edgepack_packager.workers.probe import installed_versions
from edgepack_targets import registry
from edgepack_targets.interface import MACHINES, NativeTensor, Quantization, Target
from edgepack_targets.quantization import require_effect

__all__ = ["annotations", "convert", "describe", "diagnose", "quantize"]

SOURCES = {
    "saved_model": "saved_model",
    "onnx": "model.onnx",
    "tflite": "model.tflite",
    "openvino": "model.xml",
}
TOOLS = {
    "openvino": ["openvino", "nncf"],
    "tflite": ["ai-edge-litert", "ai-edge-quantizer"],
    "onnx": ["onnx", "onnxruntime"],
    "onnx-mobile": ["onnx", "onnxruntime"],
}


def convert(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Convert what the step before left in `args["from"]` to OUT, in fp32.

    `args["shapes"]`, by native name, are given where the opening step left a batch open.
    `args["annotations"]` are facts for the model's metadata; `args["arch"]` is the machine, for
    targets that tell machines apart. Their result says in `arch` and `cpu_features` what the
    manifest has to ask for.
    """
    target = registry.find(args["target"])
    source_format = args["source_format"]
    say(f"converting for {target.name}")
    source = Path(args["from"]) / SOURCES[source_format]
    settings = {"arch": args.get("arch")} if target.capability().archs else {}
    shapes = {name: tuple(shape) for name, shape in (args.get("shapes") or {}).items()}
    known = target.convert(source, source_format, out, shapes=shapes, **settings) or {}
    _annotate(target, out, args)
    result = _describe(target, out)
    result["applied"] |= known
    if known.get("arch"):
        result["arch"] = [MACHINES[known["arch"]]]
    return result | {"cpu_features": list(known.get("cpu_features", ()))}


def quantize(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the fp32 model in `args["from"]` to OUT as `args["how"]` says.

    `args["how"]` holds fields of `Quantization`; without it, static int8 with `args["seed"]`.
    `args["calibration"]` is an npz by native name, in native layout; None where none is needed.

    Raises:
        UsageError: `how` has unknown settings.
        UnsupportedError: the target cannot express it, or nothing was quantised.
    """
    target = registry.find(args["target"])
    how = _how(args.get("how") or {"precision": "int8", "seed": args.get("seed", 0)})
    say(f"quantising for {target.name}: {how.precision}")
    samples = read_arrays(args["calibration"]) if args.get("calibration") else None
    done = target.quantize(Path(args["from"]), out, how, samples)
    _annotate(target, out, args)
    result = _describe(target, out) | {"calibration": done}
    if how.io == "int8":
        # Sessions speak the source's floats, whatever the file has.
        plain = _describe(target, Path(args["from"]))
        result |= {side: plain[side] for side in ("inputs", "outputs")}
    require_effect(target.name, how, result["applied"])
    return result


def diagnose(args: dict[str, Any], _: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Compare the layers of `args["fp32"]` and of the quantised `args["from"]`, worst first.

    Returns `layers`: name, operator and loss of each; see `edgepack_targets.interface.Layer`.
    """
    target = registry.find(args["target"])
    say(f"comparing layers for {target.name}")
    samples = read_arrays(args["calibration"])
    layers = target.diagnose(Path(args["fp32"]), Path(args["from"]), samples)
    return {"layers": [[layer.name, layer.operator, layer.loss] for layer in layers]}


def annotations(args: dict[str, Any], _: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return as `annotations` the facts that the file `args["source"]` of `args["kind"]` carries.

    They are those of `edgepack_targets.annotation.facts_of`; none if the kind has no place for
    them.
    """
    if args["kind"] not in {"onnx", "tflite", "openvino"}:
        return {"annotations": {}}
    say("reading the model's own metadata")
    return {"annotations": registry.find(args["kind"]).annotations(Path(args["source"]))}


def _annotate(target: Target, out: Path, args: dict[str, Any]) -> None:
    """Write the annotations into the model; one that is built from another has them already."""
    if args.get("annotations") and not target.capability().built_from:
        target.annotate(out, args["annotations"])


def _how(fields: dict[str, Any]) -> Quantization:
    try:
        return msgspec.convert(fields, Quantization)
    except msgspec.ValidationError as error:
        raise UsageError(
            "these settings of quantisation are not known", why=str(error), reason="bad_settings"
        ) from error


def describe(target: Target, model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the native inputs and outputs of a model that was just converted.

    Raises:
        UnsupportedError: the runtime cannot load it: an operator that it does not have.
    """
    try:
        return target.describe(model_dir)
    except IntegrityError as error:
        raise UnsupportedError(
            f"the runtime of target {target.name} cannot load this model",
            why=error.why,
            fix="replace the operator, or leave this target out",
            reason="unsupported_operator",
        ) from error


def _describe(target: Target, model_dir: Path) -> dict[str, Any]:
    inputs, outputs = describe(target, model_dir)
    return {
        "inputs": [[n.name, list(n.shape), n.dtype] for n in inputs],
        "outputs": [[n.name, list(n.shape), n.dtype] for n in outputs],
        "applied": dict(target.applied(model_dir)),
        "versions": installed_versions(TOOLS.get(target.name, [])),
    }
