"""Steps on the host: convert to a target's fp32 model, quantise it. The plugins do the work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepack.errors import IntegrityError, UnsupportedError
from edgepack_packager.workers.arrays import read_arrays
from edgepack_packager.workers.probe import installed_versions
from edgepack_targets import registry
from edgepack_targets.interface import NativeTensor, Target

__all__ = ["convert", "describe", "quantize"]

SOURCES = {"saved_model": "saved_model", "onnx": "model.onnx", "tflite": "model.tflite"}
TOOLS = {
    "openvino": ["openvino", "nncf"],
    "tflite": ["ai-edge-litert", "ai-edge-quantizer"],
    "onnx": ["onnx", "onnxruntime"],
}


def convert(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Convert what the step before left in `args["from"]` to OUT, in fp32."""
    target = registry.find(args["target"])
    source_format = args["source_format"]
    say(f"converting for {target.name}")
    target.convert(Path(args["from"]) / SOURCES[source_format], source_format, out, shapes=None)
    return _describe(target, out)


def quantize(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the fp32 model in `args["from"]` as static int8 to OUT.

    `args["calibration"]` is an npz by native name, in native layout.

    Raises:
        UnsupportedError: nothing was quantised.
    """
    target = registry.find(args["target"])
    say(f"quantising for {target.name}")
    samples = read_arrays(args["calibration"])
    done = target.quantize(Path(args["from"]), out, samples, seed=args["seed"])
    result = _describe(target, out) | {"calibration": done}
    if not result["applied"]["quantized_operators"]:
        raise UnsupportedError(
            f"int8 for {target.name} quantised not a single operator",
            why="the model has none that the quantiser knows",
            fix="build it as fp32",
            reason="nothing_quantized",
        )
    return result


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
