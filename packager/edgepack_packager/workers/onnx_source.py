"""Steps on an ONNX source: make it static and canonical, and ask onnxruntime what it answers.

The answers come from the original file with every graph optimisation off: the nearest thing to
a source framework that ONNX has.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.workers.arrays import read_arrays, write_npz
from edgepack_packager.workers.convert import describe
from edgepack_packager.workers.probe import installed_versions
from edgepack_targets import registry

__all__ = ["normalise", "reference"]


def normalise(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the source with static shapes to OUT/model.onnx; return its tensors.

    Raises:
        UsageError: not an ONNX model, or an unknown axis has no `--shape`.
        UnsupportedError: external data, or an output whose shape is not known.
    """
    source = Path(args["source"])
    say("opening the model")
    _check(source)
    target = registry.find("onnx")
    shapes = {name: tuple(shape) for name, shape in args["shapes"].items()}
    target.convert(source, "onnx", out, shapes=shapes)
    inputs, outputs = describe(target, out)
    return {
        "inputs": [_tensor(native) for native in inputs],
        "outputs": [_tensor(native) for native in outputs],
        "versions": installed_versions(["onnx", "onnxruntime"]),
    }


def reference(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write onnxruntime's answers to the samples in `args["samples"]` to OUT/outputs.npz."""
    import onnxruntime as ort

    say("asking the source model")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(args["source"], options, providers=["CPUExecutionProvider"])
    given = read_arrays(args["samples"])
    samples = {one.name: given[one.name] for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    count = len(next(iter(samples.values())))
    rows = [
        session.run(names, {name: array[i : i + 1] for name, array in samples.items()})
        for i in range(count)
    ]
    answers = {name: np.concatenate([row[k] for row in rows]) for k, name in enumerate(names)}
    write_npz(out / "outputs.npz", answers)
    return {"versions": installed_versions(["onnxruntime"])}


def _check(source: Path) -> None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(source, load_external_data=False)
    except (DecodeError, ValueError, OSError) as error:
        raise _corrupt(source, error) from error
    if any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer):
        raise UnsupportedError(
            f"{source.name} keeps its weights in a second file",
            fix="export one file, e.g. torch.onnx.export(..., external_data=False)",
            reason="external_data",
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise _corrupt(source, error) from error


def _corrupt(source: Path, error: Exception) -> UsageError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return UsageError(f"{source.name} is not an ONNX model", why=why, reason="corrupt_model")


def _tensor(native: Any) -> dict[str, Any]:
    if any(size < 1 for size in native.shape):
        raise UnsupportedError(
            f"tensor {native.name} has a shape that depends on the data: {list(native.shape)}",
            fix="export the model without dynamic axes, or give --shape",
            reason="dynamic_output",
        )
    shape = list(native.shape)
    return {"name": native.name, "key": native.name, "shape": shape, "dtype": native.dtype}
