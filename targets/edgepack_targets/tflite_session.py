"""LiteRT on a device: loads and runs a .tflite file. Never imports a converter or TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack.manifest import Manifest
from edgepack_targets.binding import Binding
from edgepack_targets.interface import Effective, NativeTensor
from edgepack_targets.session import BoundSession, check_runtime, only_f32, unreadable

__all__ = ["describe", "load", "natives", "open_model"]

Details = dict[str, dict[str, Any]]


class TfLiteSession(BoundSession):
    """An interpreter; tensors are addressed by the names of the model's signature."""

    def __init__(self, interpreter: Interpreter, binding: Binding, effective: Effective) -> None:
        super().__init__(binding, effective)
        inputs, outputs = _details(interpreter)
        self._inputs = {name: int(detail["index"]) for name, detail in inputs.items()}
        self._outputs = {name: int(outputs[name]["index"]) for name in binding.output_names}
        self._interpreter = interpreter

    def _infer(self, native: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        interpreter = self._interpreter
        for name, array in native.items():
            interpreter.set_tensor(self._inputs[name], array)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _release(self) -> None:
        del self._interpreter


def load(model_dir: Path, manifest: Manifest, version: str, threads: int | None) -> TfLiteSession:
    """Return a session on MODEL_DIR/model.tflite; see `interface.Target.load`."""
    check_runtime(manifest, "tflite", version)
    only_f32(manifest)
    interpreter = open_model(model_dir / "model.tflite", threads)
    binding = Binding(manifest, natives(interpreter))
    effective = Effective("litert", version, "f32", "CPU (XNNPACK)", threads or 0)
    return TfLiteSession(interpreter, binding, effective)


def describe(model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the native inputs and outputs of MODEL_DIR/model.tflite."""
    return natives(open_model(model_dir / "model.tflite", 1))


def open_model(path: Path, threads: int | None) -> Interpreter:
    """Return an interpreter on PATH with its tensors allocated: an unknown batch is 1.

    Raises:
        IntegrityError: PATH is no model, or one that this runtime cannot run.
        UnsupportedError: It has several signatures.
    """
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError, OSError) as error:
        raise unreadable("LiteRT", path, error) from error
    signatures = interpreter.get_signature_list()
    if len(signatures) > 1:
        raise UnsupportedError(
            f"{path.name} has {len(signatures)} signatures",
            why=f"they are {', '.join(sorted(signatures))}",
            fix="export the model with one signature",
            reason="several_signatures",
        )
    return interpreter


def _details(interpreter: Interpreter) -> tuple[Details, Details]:
    """Return the tensors of the signature by name; without one, by the tensors' own names."""
    if interpreter.get_signature_list():
        runner = interpreter.get_signature_runner()
        return runner.get_input_details(), runner.get_output_details()
    return (
        {detail["name"]: detail for detail in interpreter.get_input_details()},
        {detail["name"]: detail for detail in interpreter.get_output_details()},
    )


def natives(interpreter: Interpreter) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the inputs and outputs of INTERPRETER by the names of its signature."""
    inputs, outputs = _details(interpreter)
    return _list(inputs), _list(outputs)


def _list(details: Details) -> list[NativeTensor]:
    return [
        NativeTensor(
            name, tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name
        )
        for name, detail in details.items()
    ]
