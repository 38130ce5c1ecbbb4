"""LiteRT on a device: loads and runs a .tflite file. Never imports a converter or TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack.manifest import Manifest
from edgepack_targets.binding import Binding
from edgepack_targets.interface import Effective, NativeTensor, Placement
from edgepack_targets.session import BoundSession, check_runtime, only_cpu, only_f32, unreadable

__all__ = ["Scale", "describe", "load", "natives", "open_model", "scale_of", "tensors"]

Details = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How a quantised tensor stands for floats: `(steps - zero) * step`."""

    step: np.float32
    zero: np.float32
    dtype: np.dtype[Any]

    def quantized(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the float32 ARRAY in steps; what lies outside their range is clipped."""
        limits = np.iinfo(self.dtype)
        steps = np.nan_to_num(np.rint(array / self.step) + self.zero)
        return np.clip(steps, limits.min, limits.max).astype(self.dtype)

    def floats(self, steps: NDArray[Any]) -> NDArray[np.float32]:
        """Return STEPS as float32."""
        return (steps.astype(np.float32) - self.zero) * self.step


class TfLiteSession(BoundSession):
    """An interpreter; tensors are addressed by the names of the model's signature.

    A model may have int8 inputs and outputs where its manifest, which speaks for the source,
    has float32: then the session quantises and dequantises by the model's own scales, so that
    the same arrays work for every variant.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        binding: Binding,
        effective: Effective,
        scales: Mapping[str, Scale],
    ) -> None:
        super().__init__(binding, effective)
        inputs, outputs = tensors(interpreter)
        self._inputs = {name: int(detail["index"]) for name, detail in inputs.items()}
        self._outputs = {name: int(outputs[name]["index"]) for name in binding.output_names}
        self._interpreter, self._scales = interpreter, scales

    def _infer(self, native: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        interpreter, scales = self._interpreter, self._scales
        for name, array in native.items():
            given = scales[name].quantized(array) if name in scales else array
            interpreter.set_tensor(self._inputs[name], given)
        interpreter.invoke()
        answers = {name: interpreter.get_tensor(index) for name, index in self._outputs.items()}
        if scales:
            return {n: scales[n].floats(a) if n in scales else a for n, a in answers.items()}
        return answers

    def _release(self) -> None:
        del self._interpreter


def load(
    model_dir: Path, manifest: Manifest, version: str, threads: int | None, place: Placement
) -> TfLiteSession:
    """Return a session on MODEL_DIR/model.tflite; see `interface.Target.load`."""
    check_runtime(manifest, "tflite", version)
    only_f32(manifest)
    only_cpu("tflite", place)
    interpreter = open_model(model_dir / "model.tflite", threads)
    scales = _float_scales(manifest, interpreter)
    inputs, outputs = natives(interpreter)
    binding = Binding(manifest, (_as_floats(inputs, scales), _as_floats(outputs, scales)))
    effective = Effective("litert", version, "f32", "CPU (XNNPACK)", threads or 0)
    return TfLiteSession(interpreter, binding, effective, scales)


def describe(model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the native inputs and outputs of MODEL_DIR/model.tflite."""
    return natives(open_model(model_dir / "model.tflite", 1))


def open_model(path: Path, threads: int | None, *, keep_all: bool = False) -> Interpreter:
    """Return an interpreter on PATH with its tensors allocated: an unknown batch is 1.

    Args:
        path: A .tflite file.
        threads: None: the runtime's choice.
        keep_all: Keep every tensor readable after a call, which takes memory.

    Raises:
        IntegrityError: PATH is no model, or one that this runtime cannot run.
        UnsupportedError: It has several signatures.
    """
    try:
        interpreter = Interpreter(
            model_path=str(path),
            num_threads=threads,
            experimental_preserve_all_tensors=keep_all,
        )
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


def tensors(interpreter: Interpreter) -> tuple[Details, Details]:
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
    inputs, outputs = tensors(interpreter)
    return _list(inputs), _list(outputs)


def scale_of(detail: Mapping[str, Any]) -> Scale | None:
    """Return the scale of a tensor that is quantised as a whole, else None."""
    found, dtype = detail["quantization_parameters"], np.dtype(detail["dtype"])
    if dtype.kind not in "iu" or len(found["scales"]) != 1:
        return None
    return Scale(np.float32(found["scales"][0]), np.float32(found["zero_points"][0]), dtype)


def _float_scales(manifest: Manifest, interpreter: Interpreter) -> dict[str, Scale]:
    """Return the scales of the quantised inputs and outputs that MANIFEST has as float32."""
    specs = (*manifest.inputs, *manifest.outputs)
    floats = {spec.binding.native_name for spec in specs if spec.dtype == "float32"}
    return {
        name: scale
        for side in tensors(interpreter)
        for name, detail in side.items()
        if name in floats and (scale := scale_of(detail)) is not None
    }


def _as_floats(natives: list[NativeTensor], scales: Mapping[str, Scale]) -> list[NativeTensor]:
    return [replace(n, dtype="float32") if n.name in scales else n for n in natives]


def _list(details: Details) -> list[NativeTensor]:
    return [
        NativeTensor(
            name, tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name
        )
        for name, detail in details.items()
    ]
