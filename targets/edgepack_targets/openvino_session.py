"""OpenVINO on a device: loads and runs an IR. Never imports a converter."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack.manifest import Manifest
from edgepack_targets import kept
from edgepack_targets.binding import Binding
from edgepack_targets.interface import Effective, NativeTensor, Placement
from edgepack_targets.session import (
    BoundSession,
    check_runtime,
    no_device,
    unreadable,
    unsupported_precision,
)
from edgepack_targets.silence import no_telemetry

with no_telemetry():
    import openvino as ov

__all__ = ["describe", "load", "natives", "sound"]

QUANTIZE = "FakeQuantize"
FOLLOWERS = {"Add", "Multiply", "Relu", "Clamp", "PRelu", "Gelu", "Swish", "Sigmoid", "Tanh"}
# What a manifest calls a precision and what the plugin reports for it.
PRECISIONS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}
DTYPES = {
    ov.Type.f32: "float32", ov.Type.f16: "float16", ov.Type.f64: "float64",
    ov.Type.boolean: "bool", ov.Type.i8: "int8", ov.Type.u8: "uint8", ov.Type.i16: "int16",
    ov.Type.u16: "uint16", ov.Type.i32: "int32", ov.Type.u32: "uint32", ov.Type.i64: "int64",
    ov.Type.u64: "uint64",
}  # fmt: skip


class OpenVinoSession(BoundSession):
    """A compiled IR with one inference request."""

    def __init__(self, compiled: ov.CompiledModel, binding: Binding, effective: Effective) -> None:
        super().__init__(binding, effective)
        self._request = compiled.create_infer_request()
        self._ports = {name: compiled.output(name) for name in binding.output_names}

    def _infer(self, native: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        # Inputs are read in place. Outputs lie in the request, which reuses them, so they are
        # copied; OpenVINO's own copy takes twice as long as the call of a small model.
        results = self._request.infer(native, share_inputs=True, share_outputs=True)
        return {name: results[port].copy() for name, port in self._ports.items()}

    def _release(self) -> None:
        del self._request, self._ports


def load(
    model_dir: Path, manifest: Manifest, version: str, threads: int | None, place: Placement
) -> OpenVinoSession:
    """Return a session on MODEL_DIR/model.xml; see `interface.Target.load`."""
    check_runtime(manifest, "openvino", version)
    core = ov.Core()
    device = _device(core, place)
    model = _read(core, model_dir)
    described = natives(model)
    config = _config(manifest, threads, place)
    try:
        usable = _known(config, core.get_property(device, "SUPPORTED_PROPERTIES"))
        alone = (threads or len(os.sched_getaffinity(0))) == 1 or place.hint == "throughput"
        model = sound(model, alone=alone)
        facts = {key: str(value) for key, value in usable.items()}
        facts |= {"version": version, "device": device, "alone": str(alone)}
        compiled = kept.compiled(
            place.kept,
            facts,
            lambda at: core.compile_model(model, device, usable | {"CACHE_DIR": str(at or "")}),
        )
    except RuntimeError as error:
        raise unreadable("OpenVINO", model_dir / "model.xml", error) from error
    effective = _effective(compiled, version)
    if effective.precision != manifest.target.execution_precision:
        raise unsupported_precision(manifest, effective.precision)
    return OpenVinoSession(compiled, Binding(manifest, described), effective)


def describe(model_dir: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the native inputs and outputs of MODEL_DIR/model.xml."""
    return natives(_read(ov.Core(), model_dir))


def natives(model: ov.Model) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the inputs and outputs of MODEL."""
    return [_native(port) for port in model.inputs], [_native(port) for port in model.outputs]


def _read(core: ov.Core, model_dir: Path) -> ov.Model:
    path = model_dir / "model.xml"
    try:
        return core.read_model(path, model_dir / "model.bin")
    except (RuntimeError, OSError) as error:
        raise unreadable("OpenVINO", path, error) from error


def _device(core: ov.Core, place: Placement) -> str:
    """Return the device of PLACE as OpenVINO calls it.

    Raises:
        UnsupportedError: It is not there.
    """
    there = [name.partition(".")[0] for name in core.available_devices]
    if place.device == "AUTO":
        # Not OpenVINO's own AUTO: that begins on the CPU, changes later, and says no precision.
        return "GPU" if "GPU" in there else "CPU"
    if place.device not in there:
        raise no_device("OpenVINO", place.device, dict.fromkeys(there))
    return place.device


def _config(manifest: Manifest, threads: int | None, place: Placement) -> dict[str, Any]:
    wanted = manifest.target.execution_precision
    if wanted not in PRECISIONS:
        raise unsupported_precision(manifest, "f32")
    # Without the precision hint the plugin takes bf16 or f16 wherever the CPU has it.
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[wanted],
        "PERFORMANCE_HINT": place.hint.upper(),
    }
    if place.hint == "latency":
        config["NUM_STREAMS"] = 1
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    return config


def _known(config: Mapping[str, Any], supported: Collection[str]) -> dict[str, Any]:
    """Return what of CONFIG a plugin that knows SUPPORTED takes; not all have threads."""
    return {key: value for key, value in config.items() if key in supported}


def sound(model: ov.Model, *, alone: bool) -> ov.Model:
    """Return MODEL, changed so that the CPU plugin answers it rightly.

    On one thread OpenVINO 2026.4 compiles int8 dense layers with nothing but a Relu between
    them into one kernel, which answers 0. It does not where somebody else reads what is between
    them, so there is one more output, behind the model's own. (To switch that compiler off
    spoils models whose layers have two readers.)

    Args:
        model: As it was read.
        alone: Whether a call may be computed by one thread: one is wanted, or streams.
    """
    if alone:
        between = [n.input_value(0) for n in model.get_ops() if n.get_type_name() == QUANTIZE]
        found = [port for port in between if _comes_from_dense(port.get_node())]
        if found:
            model.add_outputs(found)
    return model


def _comes_from_dense(node: Any) -> bool:
    """Say whether NODE is a dense layer or does nothing but follow one."""
    while node.get_type_name() != "MatMul":
        if node.get_type_name() not in FOLLOWERS:
            return False
        node = node.input_value(0).get_node()
    return True


def _effective(compiled: ov.CompiledModel, version: str) -> Effective:
    known = compiled.get_property("SUPPORTED_PROPERTIES")

    def ask(name: str, otherwise: Any) -> Any:
        return compiled.get_property(name) if name in known else otherwise

    # A plugin without the property computes in 16 bits.
    hint = ask("INFERENCE_PRECISION_HINT", ov.Type.f16)
    precision = next((name for name, kind in PRECISIONS.items() if kind == hint), str(hint))
    threads = int(ask("INFERENCE_NUM_THREADS", 0))
    devices = ",".join(compiled.get_property("EXECUTION_DEVICES"))
    tuned = str(getattr(mode := ask("PERFORMANCE_HINT", ""), "name", mode)).lower()
    return Effective("openvino", version, precision, devices, threads, tuned)


def _native(port: Any) -> NativeTensor:
    # A tensor may have several names in no fixed order; the first by alphabet is ours.
    name = min(port.get_names())
    kind = port.get_element_type()
    if kind not in DTYPES:
        raise UnsupportedError(
            f"`{name}` is a {kind.get_type_name()}", why="only numeric tensors are supported",
            reason="unsupported_dtype",
        )  # fmt: skip
    sizes = (-1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return NativeTensor(name, tuple(sizes), DTYPES[kind])
