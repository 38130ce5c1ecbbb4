"""ORT format on a host: writes a finished ONNX model for one kind of machine, and counts in it.

onnxruntime optimises, writes and reads the format, lists the operators that a reduced build of
it needs, and judges how far phone accelerators would take the model. Nothing of that is ours.
The bytes of an .ort file differ from process to process (onnxruntime lays its tables out in the
order of a randomly seeded hash map); the computation in it does not.
"""

import logging
import math
import struct
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack_targets.cpu import features
from edgepack_targets.interface import MACHINES, MODEL_FILES, Applied
from edgepack_targets.onnx_session import describe_file
from edgepack_targets.session import unreadable
from edgepack_targets.silence import no_telemetry
from edgepack_targets.weights import Stored, int4_values, tally

with no_telemetry():
    import onnxruntime as ort

__all__ = ["applied", "convert"]

FILE, CONFIG = MODEL_FILES["onnx-mobile"]
PROVIDER = "CPUExecutionProvider"
BLOCKED = "NchwcTransformer"
BLOCKED_DOMAIN = "com.microsoft.nchwc"
BLOCKED_NEEDS = "avx512f"
PLUMBING = {
    b"QuantizeLinear", b"DequantizeLinear", b"Constant", b"Identity", b"Cast",
    b"ReorderInput", b"ReorderOutput",
}  # fmt: skip
# Numbers of ONNX's TensorProto.DataType, which the ORT format shares.
KINDS: dict[int, tuple[Any, str]] = {
    1: (np.float32, "float"), 2: (np.uint8, "int8"), 3: (np.int8, "int8"),
    10: (np.float16, "float16"), 11: (np.float64, "float"), 16: (np.uint16, "float16"),
    21: (np.uint8, "int4"), 22: (np.uint8, "int4"),
}  # fmt: skip
INT8 = (2, 3)
FLOAT16 = 10


def convert(
    source: Path,
    source_format: str,
    out_dir: Path,
    shapes: Mapping[str, tuple[int, ...]] | None,
    arch: str,
) -> dict[str, Any]:
    """Write SOURCE, a finished ONNX model, to OUT_DIR for machines of the kind ARCH.

    Returns:
        `arch`; `usability`: by accelerator `yes`, `maybe` or `no`, the verdict of onnxruntime's
        own check; `cpu_features` that the file needs.

    Raises:
        UnsupportedError: no such route or ARCH, or new shapes are asked for.
        UsageError: SOURCE cannot be read.
    """
    _check(source_format, arch)
    _check_shapes(source, shapes or {})
    with tempfile.TemporaryDirectory(prefix="edgepack-ort-") as name:
        part = Path(name) / FILE
        _write(source, part, arch)
        config = _required_operators(part)
        usability = _usability(source, Path(name) / "basic.onnx")
        (out_dir / FILE).write_bytes(part.read_bytes())
    (out_dir / CONFIG).write_text(config)
    needs = [BLOCKED_NEEDS] if BLOCKED_DOMAIN in config else []
    return {"arch": arch, "usability": usability, "cpu_features": needs}


def applied(model_dir: Path) -> Applied:
    """Return what is really in MODEL_DIR/model.ort; see `interface.Target`."""
    graph = _graph(model_dir / FILE)
    kinds = {arg.Name(): _element(arg) for arg in _each(graph, "NodeArgs")}
    workers = [node for node in _each(graph, "Nodes") if node.OpType() not in PLUMBING]
    # A bias is a vector; what has at least two axes is a weight.
    weights = [w for w in _each(graph, "Initializers") if w.DimsLength() > 1]
    return Applied(
        operators=len(workers),
        quantized_operators=sum(1 for node in workers if _reads_int8(node, kinds)),
        **tally(_stored(w) for w in weights if w.DataType() in KINDS),
    )


def _check(source_format: str, arch: str) -> None:
    if source_format != "onnx":
        raise UnsupportedError(
            f"target `onnx-mobile` takes no {source_format}",
            why="it is built from the finished model of target `onnx`",
            reason="no_route",
        )
    if arch not in MACHINES:
        raise UnsupportedError(
            f"target `onnx-mobile` does not know the machine `{arch}`",
            fix=f"choose from: {', '.join(MACHINES)}",
            reason="unknown_arch",
        )


def _check_shapes(source: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse SHAPES that are not those that the finished model has."""
    if not shapes:
        return
    real = {native.name: native.shape for native in describe_file(source)[0]}
    other = [name for name, shape in shapes.items() if real.get(name) != tuple(shape)]
    if other:
        raise UnsupportedError(
            f"target `onnx-mobile` cannot change the shape of {', '.join(other)}",
            why="its source is a finished model",
            fix="give the shapes to target `onnx` and convert what it writes",
            reason="no_route",
        )


def _write(source: Path, part: Path, arch: str) -> None:
    """Optimise SOURCE as for ARCH and write it in ORT format, as onnxruntime's own tool does."""
    half = _holds_float16(source)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.optimized_model_filepath = str(part)
    options.add_session_config_entry("session.save_model_format", "ORT")
    signed = "0" if arch == "amd64" else "1"
    options.add_session_config_entry("session.qdqisint8allowed", signed)
    if half:
        # x86 has no kernels for 16 bits, so onnxruntime converts the weights back, and folding
        # would write them in 32 bits: twice the size, for nothing.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    off = [*([] if _blocked(arch) else [BLOCKED]), *(["ConstantFolding"] if half else [])]
    try:
        with no_telemetry():
            ort.InferenceSession(
                str(source), options, providers=[PROVIDER], disabled_optimizers=off
            )
    except Exception as error:  # onnxruntime's errors have no other common base
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(
            f"onnxruntime cannot write {source} in ORT format",
            why=lines[-1].strip(),
            fix="check the file, and that all of its operators are ones onnxruntime knows",
            reason="bad_model",
        ) from error


def _blocked(arch: str) -> bool:
    """Say whether convolutions may get the blocked layout (NCHWc) of the CPU at hand.

    It makes them about twice as fast on x86, exists nowhere else, and is written for one width
    of vector registers: 16 with AVX-512, else 8. On the other kind of CPU such a file loads and
    gives wrong answers. Only the wider one can be asked for in a manifest, so on a host without
    AVX-512 the file stays portable.
    """
    return arch == "amd64" and BLOCKED_NEEDS in features()


def _holds_float16(source: Path) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(source)
    except (DecodeError, OSError, ValueError) as error:
        raise UsageError(
            f"{source} is not a valid ONNX model", why=str(error), reason="bad_model"
        ) from error
    return any(weight.data_type == FLOAT16 for weight in model.graph.initializer)


def _required_operators(model: Path) -> str:
    """Return the list of operators that a reduced build of onnxruntime needs to run MODEL."""
    tool = import_module("onnxruntime.tools.ort_format_model")
    logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
    listed = model.with_suffix(".config")
    with warnings.catch_warnings():
        # The tool leaves closing the model to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        tool.create_config_from_models([model], listed, False)
    return listed.read_text().replace(str(model), FILE)


def _usability(source: Path, basic: Path) -> dict[str, str]:
    """Return by accelerator what onnxruntime's mobile usability check says of SOURCE."""
    check = import_module("onnxruntime.tools.mobile_helpers.usability_checker")
    models = import_module("onnxruntime.tools.onnx_model_utils")
    models.optimize_model(source, basic)
    model = models.ModelProtoWithShapeInfo(basic).model_with_shape_info
    if not model.graph.node:
        return {}
    coreml = check.check_coreml_partitions
    found = {
        "nnapi": check.check_nnapi_partitions(model, True),
        "coreml_neuralnetwork": coreml(model, True, "coreml_supported_neuralnetwork_ops.md"),
        "coreml_mlprogram": coreml(model, True, "coreml_supported_mlprogram_ops.md"),
    }
    return {name: verdict.suitability().name.lower() for name, verdict in found.items()}


def _graph(path: Path) -> Any:
    """Return the graph in the ORT format model PATH.

    Raises:
        IntegrityError: PATH is no such model.
    """
    # The generated readers find each other only after this package has been imported.
    import_module("onnxruntime.tools.ort_format_model")
    root = import_module("ort_flatbuffers_py.fbs.InferenceSession").InferenceSession
    try:
        data = path.read_bytes()
        if not root.InferenceSessionBufferHasIdentifier(data, 0):
            raise IntegrityError(f"{path} is not in ORT format", reason="model_unreadable")
        return root.GetRootAsInferenceSession(data, 0).Model().Graph()
    except (OSError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise unreadable("onnxruntime", path, error) from error


def _each(graph: Any, part: str) -> Iterator[Any]:
    count = getattr(graph, f"{part}Length")()
    yield from (getattr(graph, part)(index) for index in range(count))


def _element(argument: Any) -> int:
    """Return the number of ARGUMENT's element type; 0 if it is no tensor or has none."""
    kind = argument.Type()
    tensors = import_module("ort_flatbuffers_py.fbs.TypeInfoValue").TypeInfoValue.tensor_type
    if kind is None or kind.ValueType() != tensors:
        return 0
    shaped = import_module("ort_flatbuffers_py.fbs.TensorTypeAndShape").TensorTypeAndShape()
    shaped.Init(kind.Value().Bytes, kind.Value().Pos)
    return int(shaped.ElemType())


def _reads_int8(node: Any, kinds: Mapping[bytes, int]) -> bool:
    return any(kinds.get(node.Inputs(i), 0) in INT8 for i in range(node.InputsLength()))


def _stored(weight: Any) -> Stored:
    dtype, kind = KINDS[weight.DataType()]
    count = math.prod(weight.Dims(axis) for axis in range(weight.DimsLength()))
    raw = np.frombuffer(weight.RawDataAsNumpy().tobytes(), dtype)
    values = int4_values(raw, count) if kind == "int4" else raw
    return Stored(kind, count, int(np.count_nonzero(values == 0)))  # type: ignore[arg-type]
