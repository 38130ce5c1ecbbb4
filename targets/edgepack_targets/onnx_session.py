"""onnxruntime on a device: loads and runs .onnx and .ort. Does not need the `onnx` package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack.manifest import Manifest
from edgepack_targets.binding import Binding
from edgepack_targets.interface import MODEL_FILES, Device, Effective, NativeTensor, Placement
from edgepack_targets.session import BoundSession, check_runtime, no_device, only_f32, unreadable
from edgepack_targets.silence import no_telemetry

with no_telemetry():
    import onnxruntime as ort

__all__ = ["describe", "describe_file", "load", "open_model"]

PROVIDER, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Without it f32 products are made in 10 bits of mantissa on newer graphics processors.
OPTIONS = {CUDA: {"use_tf32": "0"}}
DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(bool)": "bool", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
    "tensor(int16)": "int16", "tensor(uint16)": "uint16", "tensor(int32)": "int32",
    "tensor(uint32)": "uint32", "tensor(int64)": "int64", "tensor(uint64)": "uint64",
}  # fmt: skip
# The C++ severity "error": warnings about graph patterns mean nothing to who runs a device.
QUIET = 3


class OnnxSession(BoundSession):
    """A loaded ONNX or ORT format model."""

    def __init__(
        self, session: ort.InferenceSession, binding: Binding, effective: Effective
    ) -> None:
        super().__init__(binding, effective)
        self._session = session
        self._names = binding.output_names

    def _infer(self, native: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return dict(zip(self._names, self._session.run(self._names, native), strict=True))

    def _release(self) -> None:
        del self._session


def load(
    model_dir: Path,
    manifest: Manifest,
    version: str,
    threads: int | None,
    place: Placement,
    *,
    runtime: str = "onnx",
) -> OnnxSession:
    """Return a session on the model of RUNTIME in MODEL_DIR; see `interface.Target.load`."""
    check_runtime(manifest, runtime, version)
    only_f32(manifest)
    provider = _provider(place.device)
    session = open_model(model_dir / MODEL_FILES[runtime][0], threads or 0, provider)
    providers = session.get_providers()
    if providers[:1] != [provider]:
        # A provider that is missing is replaced without an exception, so the answer is checked.
        raise UnsupportedError(
            f"onnxruntime runs on {providers} here, not on {provider}", reason="wrong_provider"
        )
    binding = Binding(manifest, _describe(session))
    effective = Effective("onnxruntime", version, "f32", providers[0], threads or 0)
    return OnnxSession(session, binding, effective)


def _provider(device: Device) -> str:
    """Return the provider for DEVICE.

    Raises:
        UnsupportedError: onnxruntime has none here.
    """
    if device == "CPU":
        return PROVIDER
    available = ort.get_available_providers()
    if device != "NPU" and CUDA in available:
        return CUDA
    if device == "AUTO":
        return PROVIDER
    raise no_device("onnxruntime", device, ["CPU", "GPU"] if CUDA in available else ["CPU"])


def describe(
    model_dir: Path, runtime: str = "onnx"
) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the native inputs and outputs of the model of RUNTIME in MODEL_DIR."""
    return describe_file(model_dir / MODEL_FILES[runtime][0])


def describe_file(path: Path) -> tuple[list[NativeTensor], list[NativeTensor]]:
    """Return the native inputs and outputs of the model in PATH."""
    return _describe(open_model(path, 1))


def open_model(model: Path | bytes, threads: int, provider: str = PROVIDER) -> ort.InferenceSession:
    """Return onnxruntime's session on MODEL: a file in the format that its name says, or ONNX.

    Raises:
        IntegrityError: MODEL is no such model, or one that this runtime cannot run.
    """
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin would eat the CPU between two frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # On ARM with bf16, f32 products could be made in bf16; the default says no, we insist.
    options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "0")
    try:
        given = model if isinstance(model, bytes) else str(model)
        chosen = [(provider, OPTIONS.get(provider, {}))]
        return ort.InferenceSession(given, options, providers=chosen)
    except Exception as error:  # onnxruntime's errors have no other common base
        what = "the model" if isinstance(model, bytes) else model
        raise unreadable("onnxruntime", what, error) from error


def _describe(session: ort.InferenceSession) -> tuple[list[NativeTensor], list[NativeTensor]]:
    return (
        [_native(tensor) for tensor in session.get_inputs()],
        [_native(tensor) for tensor in session.get_outputs()],
    )


def _native(tensor: Any) -> NativeTensor:
    if tensor.type not in DTYPES:
        raise UnsupportedError(
            f"`{tensor.name}` is a {tensor.type}", why="only numeric tensors are supported",
            reason="unsupported_dtype",
        )  # fmt: skip
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return NativeTensor(tensor.name, shape, DTYPES[tensor.type])
