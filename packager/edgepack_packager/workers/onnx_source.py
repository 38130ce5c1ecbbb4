"""Steps on an ONNX source: give it shapes and canonical bytes, and ask onnxruntime about it.

The answers come from the source as it is with every graph optimisation off: the nearest thing
to a source framework that ONNX has.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack_packager.workers.convert import describe
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.ready import answer_samples, precision_of, tensors
from edgepack_targets import registry
from edgepack_targets.onnx_convert import at_least
from edgepack_targets.onnx_operators import OLDEST
from edgepack_targets.onnx_reading import load, read_source

__all__ = ["normalise", "reference"]

COMPUTES_INTEGERS = ("QuantizeLinear", "QLinear", "DynamicQuantize")
INTEGER = "Integer"


def normalise(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the source with its shapes to OUT/model.onnx; return its tensors and `precision`.

    Raises:
        UsageError: not an ONNX model, or an unknown axis has no `--shape`.
        UnsupportedError: operators, types or an opset that onnxruntime does not take, or an
            output whose shape is not known.
    """
    say("opening the model")
    target = registry.find("onnx")
    shapes = {name: tuple(shape) for name, shape in args["shapes"].items()}
    target.convert(Path(args["source"]), "onnx", out, shapes=shapes)
    inputs, outputs = describe(target, out)
    dynamic = any(native.shape[:1] == (-1,) for native in inputs)
    return {
        "inputs": tensors(inputs, dynamic_batch=dynamic),
        "outputs": tensors(outputs, dynamic_batch=dynamic),
        "precision": precision_of(
            target.applied(out), integer_activations=_computes_integers(out / "model.onnx")
        ),
        "versions": installed_versions(["onnx", "onnxruntime"]),
    }


def reference(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write onnxruntime's answers to the samples in `args["samples"]` to OUT/outputs.npz."""
    say("asking the source model")
    session = _session(Path(args["source"]))
    names = [one.name for one in session.get_outputs()]

    def answer(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, session.run(names, sample), strict=True))

    answer_samples(args, out, [one.name for one in session.get_inputs()], answer)
    return {"versions": installed_versions(["onnxruntime"])}


def _session(source: Path) -> Any:
    """Return a session on SOURCE, which was read by us: its weights come from its folder only."""
    import onnxruntime as ort

    model = at_least(read_source(source), OLDEST)
    # A newer file format than the runtime's says nothing about the operators in it.
    lowest = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = min(model.ir_version, max(lowest, 10))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors have no other common base
        raise UnsupportedError(
            f"onnxruntime cannot run {source.name}",
            why=(str(error).strip().splitlines() or [type(error).__name__])[-1],
            fix="replace the operator, or export the model again",
            reason="unsupported_operator",
        ) from error


def _computes_integers(path: Path) -> bool:
    kinds = {node.op_type for node in load(path).graph.node}
    return any(kind.startswith(COMPUTES_INTEGERS) or kind.endswith(INTEGER) for kind in kinds)
