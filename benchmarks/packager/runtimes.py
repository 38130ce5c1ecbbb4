"""Artefacts in their bare runtimes, as the manuals call them, and in edgepack's own session."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.manifest import (
    Agreement,
    Binding,
    Golden,
    Manifest,
    Provenance,
    Target,
    TensorSpec,
)
from edgepack_targets import registry
from edgepack_targets.interface import NativeTensor

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], NDArray[Any]]


def opened(target: str, artefact: Path) -> Run:
    """Return a function that gives the first output of ARTEFACT for inputs by native name."""
    return {"onnx": _onnx, "openvino": _openvino, "tflite": _tflite}[target](artefact)


def _onnx(artefact: Path) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(artefact), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def _openvino(artefact: Path) -> Run:
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = ov.Core()
    model = core.read_model(artefact)
    # A raw conversion leaves the batch open where the source did; ours is static.
    model.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in model.inputs})
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda inputs: request.infer(inputs, share_inputs=True)[0]


def _tflite(artefact: Path) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(artefact), num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: Arrays) -> NDArray[Any]:
        (array,) = inputs.values()
        interpreter.set_tensor(source["index"], array)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(result["index"]))

    return run


@dataclass(frozen=True)
class Bound:
    """A session of ours with a manifest that calls every tensor what the runtime calls it."""

    manifest: Manifest
    run: Callable[[Arrays], Arrays]


def session(target: str, model_dir: Path) -> Bound:
    """Return edgepack's session on MODEL_DIR, with one thread."""
    plugin = registry.find(target)
    manifest = _manifest(target, *plugin.describe(model_dir))
    return Bound(manifest, plugin.load(model_dir, manifest, threads=1).run)


def _manifest(target: str, inputs: list[NativeTensor], outputs: list[NativeTensor]) -> Manifest:
    return Manifest(
        schema="edgepack.bundle/v1", name="benchmark", version="1.0.0", build_id="0" * 16,
        task="classify",
        target=Target(
            runtime=target, min_runtime="1.0", precision="int8", execution_precision="f32"
        ),
        inputs=tuple(map(_spec, inputs)), outputs=tuple(map(_spec, outputs)),
        agreement=Agreement(rule="top1", output=outputs[0].name),
        golden=Golden(inputs="golden/inputs.npz", outputs="golden/outputs.npz", samples=8),
        provenance=Provenance(source_sha256="0" * 64, source_format="onnx"), files=(),
    )  # fmt: skip


def _spec(native: NativeTensor) -> TensorSpec:
    binding = Binding(native_name=native.name)
    return TensorSpec(name=native.name, shape=native.shape, dtype=native.dtype, binding=binding)
