"""A step of the `onnx2tf` toolchain: ONNX to TFLite in fp32.

onnx2tf guesses which axes are channels, and a wrong guess still converts. So what it made is
asked at once, beside onnxruntime, in the very layout that the driver will bind by shape; where
shapes alone cannot tell the layout, the tensor keeps the axes of the source. Quantises nothing:
onnx2tf takes a quantised ONNX and gives nonsense, so that is refused.
"""

import io
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack_packager.workers.onnx2tf_pooling import plain_average_pools
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.tf import save_frozen, to_tflite

__all__ = ["tflite"]

Array = NDArray[Any]
Order = tuple[int, ...]
DOMAINS = {"", "ai.onnx", "com.microsoft"}
BODIES = {"If", "Loop", "Scan", "SequenceMap"}
QUANTISED = re.compile("uantizeLinear|^QLinear|^DynamicQuantize|Integer$|^QGemm$|NBits$")
LAYOUTS = ((0, 2, 3, 1), (0, 3, 1, 2))
"""NHWC for NCHW and back: what a binding by shape tries first, as in `core.binding`."""
OPSET = 13
TOLERANCE = 1e-3
SAMPLE_PICTURES = ("calibration_image_sample_data_20x128x128x3_float32.npy", (20, 128, 128, 3))
"""What onnx2tf downloads for models of pictures, unless it lies in the working directory."""
TOOLS = ("onnx2tf", "tensorflow", "onnx", "onnxruntime")


def tflite(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Convert `args["from"]`/model.onnx, which has static shapes, to OUT/model.tflite.

    Raises:
        UnsupportedError: a quantised or dynamic model, operators or types that TFLite or onnx2tf
            does not have (all of them are named), or an answer that differs from the source's.
    """
    import onnx

    say("converting to TFLite")
    source = onnx.load(Path(args["from"]) / "model.onnx")
    _refuse(source)
    model = _modern(source)
    faces = _neutral_names(model)
    with tempfile.TemporaryDirectory(prefix="edgepack-onnx2tf-") as desk, chdir(desk):
        _prepare(Path(desk))
        question = _Question.of(model)
        function, specs = _converted(model, question)
        save_frozen(function, specs, Path(desk) / "saved_model")
        content = to_tflite(Path(desk) / "saved_model")
    (out / "model.tflite").write_bytes(_renamed(content, faces))
    return {"versions": installed_versions(TOOLS)}


def _modern(model: Any) -> Any:
    """Return MODEL as onnx2tf reads it right: constants folded, and no softmax of old opsets."""
    import onnx
    import onnxsim

    own = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), OPSET)
    if own < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    # onnx2tf would run it as a command, which nobody finds in an environment that was moved.
    simple, same = onnxsim.simplify(model)
    return plain_average_pools(simple if same else model)


# -- what cannot be converted


def _refuse(model: Any) -> None:
    kinds = {(node.domain, node.op_type) for node in model.graph.node}
    quantised = sorted(kind for _, kind in kinds if QUANTISED.search(kind))
    if quantised:
        raise UnsupportedError(
            "a quantised ONNX model cannot become TFLite",
            why=f"onnx2tf would convert {', '.join(quantised)} wrongly and not say so",
            fix="build from the fp32 model with --precision int8: TFLite quantises it itself",
            reason="quantized_source",
        )
    missing = sorted(filter(None, (_missing(domain, kind) for domain, kind in kinds)))
    if missing:
        raise UnsupportedError(
            f"TFLite cannot have {len(missing)} of the model's operators",
            why=f"onnx2tf does not know: {', '.join(missing)}",
            fix="replace them in the model, or leave target tflite out",
            reason="unsupported_operator",
        )
    for value in model.graph.input:
        if any(not size.dim_value for size in value.type.tensor_type.shape.dim):
            raise UnsupportedError(
                f"input {value.name} keeps a dynamic axis, and a TFLite model is static",
                fix="give --shape with a size for every axis, or leave target tflite out",
                reason="dynamic_shape",
            )


def _missing(domain: str, kind: str) -> str:
    """Return the operator's full name if it cannot be converted."""
    known = domain in DOMAINS and kind not in BODIES and find_spec(f"onnx2tf.ops.{kind}")
    return "" if known else f"{domain or 'ai.onnx'}:{kind}"


# -- conversion


@dataclass(frozen=True, slots=True)
class _Question:
    """Samples for the model, and what onnxruntime answers to them; both in order."""

    inputs: list[Array]
    answers: list[Array]

    @classmethod
    def of(cls, model: Any) -> "_Question":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        given = {value.name: _sample(rng, value) for value in model.graph.input}
        return cls(list(given.values()), session.run(None, given))


def _sample(rng: np.random.Generator, value: Any) -> Array:
    import onnx

    kind = value.type.tensor_type
    shape = [size.dim_value for size in kind.shape.dim]
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if dtype.kind == "f":
        return rng.uniform(0, 1, shape).astype(dtype)
    # Small numbers: an integer is more often an index than a pixel.
    return rng.integers(0, 2, shape).astype(dtype)


def _converted(model: Any, question: _Question) -> tuple[Any, dict[str, Any]]:
    """Return a function of one tensor per input, and its specs, that answers like MODEL.

    The second try keeps the axes of every input: onnx2tf takes any three or four of them for
    a picture, which a sequence or a table is not.
    """
    names = [value.name for value in model.graph.input]
    try:
        return _checked(_keras(model, []), question, turn_unclear=True)
    except UnsupportedError:
        return _checked(_keras(model, names), question, turn_unclear=False)


def _unclear(shape: Sequence[int]) -> bool:
    """Say whether SHAPE stays the same when its channels move to the end."""
    return len(shape) > 2 and len(set(shape[1:])) == 1 and shape[1] > 1


def _keras(model: Any, keep: list[str]) -> Any:
    """Return what onnx2tf makes of MODEL; inputs in KEEP keep their axes."""
    import onnx

    onnx.save(model, "source.onnx")
    told = io.StringIO()
    try:
        with redirect_stdout(told):
            import onnx2tf

            return onnx2tf.convert(
                input_onnx_file_path="source.onnx",
                keep_shape_absolutely_input_names=keep or None,
                not_use_onnxsim=True,
                disable_model_save=True,
                non_verbose=True,
            )
    except (Exception, SystemExit) as error:  # it ends the process where it gives up
        raise UnsupportedError(
            "onnx2tf cannot convert this model to TFLite",
            why=_complaint(told.getvalue()) or str(error).strip().partition("\n")[0],
            fix="leave target tflite out, or build it from the framework the model came from",
            reason="converter_failed",
        ) from error


def _complaint(told: str) -> str:
    """Return the errors in what onnx2tf printed, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", told)
    lines = [line for line in plain.splitlines() if "ERROR" in line]
    return "; ".join(line.replace("ERROR:", "").strip() for line in lines[:4])[:400]


def _checked(keras: Any, question: _Question, *, turn_unclear: bool) -> tuple[Any, dict[str, Any]]:
    """Return KERAS as a function whose tensors bind by shape, after asking it QUESTION.

    With `turn_unclear`, inputs whose shape does not tell the layout are turned inside: to
    onnx2tf their last axis is the channels, to whoever feeds them it is the second.
    """
    import tensorflow as tf

    if len(keras.inputs) != len(question.inputs):
        raise _wrong(f"{len(question.inputs)} inputs became {len(keras.inputs)}")
    given = [_moved(a, tuple(t.shape)) for a, t in zip(question.inputs, keras.inputs, strict=True)]
    ways = [_to_last(a.ndim) if turn_unclear and _unclear(a.shape) else None for a in given]

    def ask(tensors: list[Any]) -> list[Any]:
        pairs = zip(tensors, ways, strict=True)
        return _flat(keras([t if way is None else tf.transpose(t, way) for t, way in pairs]))

    answers = [np.asarray(a) for a in ask(given)]
    if len(answers) != len(question.answers):
        raise _wrong(f"{len(question.answers)} outputs became {len(answers)}")
    turns = [_turn(w, a) for w, a in zip(question.answers, answers, strict=True)]
    specs = {
        f"in_{i}": tf.TensorSpec(array.shape, array.dtype, name=f"in_{i}")
        for i, array in enumerate(given)
    }

    def serve(**tensors: Any) -> dict[str, Any]:
        values = ask([tensors[name] for name in specs])
        pairs = zip(values, turns, strict=True)
        return {
            f"out_{i}": tf.identity(value) if turn is None else tf.transpose(value, turn)
            for i, (value, turn) in enumerate(pairs)
        }

    return tf.function(serve, autograph=False).get_concrete_function(**specs), specs


def _to_last(rank: int) -> Order:
    """Return the order of axes that puts the second one last."""
    return (0, *range(2, rank), 1)


def _flat(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def _moved(array: Array, shape: tuple[int, ...]) -> Array:
    """Return ARRAY with its axes in the order that gives SHAPE."""
    order = next((o for o in _orders(array.ndim) if _shape(array, o) == shape), None)
    if order is None:
        raise _wrong(f"an input {list(array.shape)} became {list(shape)}")
    return np.ascontiguousarray(array.transpose(order))


def _turn(wanted: Array, answer: Array) -> Order | None:
    """Return the turn that ANSWER needs before its shape says which axis is which, or None.

    Raises:
        UnsupportedError: in no order of axes does it hold what is WANTED.
    """
    orders = [o for o in _orders(wanted.ndim) if _shape(wanted, o) == answer.shape]
    if not orders:
        raise _wrong(f"an output {list(wanted.shape)} became {list(answer.shape)}")
    right = next((o for o in orders if _close(wanted.transpose(o), answer)), None)
    if right is None:
        worst = float(np.abs(wanted.transpose(orders[0]).astype(float) - answer).max())
        raise _wrong(f"an output is off by up to {worst:.3g}")
    # By its shape alone the driver would take the first order.
    return None if right == orders[0] else tuple(int(axis) for axis in np.argsort(right))


def _orders(rank: int) -> Iterator[Order]:
    identity = tuple(range(rank))
    yield identity
    yield from (layout for layout in sorted(LAYOUTS) if len(layout) == rank)
    if rank <= 5:
        yield from permutations(identity)


def _shape(array: Array, order: Order) -> tuple[int, ...]:
    return tuple(array.shape[axis] for axis in order)


def _close(wanted: Array, answer: Array) -> bool:
    size = float(np.abs(wanted).max(initial=0))
    return bool(np.allclose(wanted, answer, rtol=0, atol=TOLERANCE * max(size, 1e-6)))


def _wrong(why: str) -> UnsupportedError:
    return UnsupportedError(
        "onnx2tf converts this model to TFLite wrongly",
        why=f"{why}, against onnxruntime on the same input",
        fix="leave target tflite out, or build it from the framework the model came from",
        reason="converted_wrong",
    )


# -- the surroundings that onnx2tf expects


def _prepare(desk: Path) -> None:
    """Put pictures where it looks before it downloads some."""
    name, shape = SAMPLE_PICTURES
    np.save(desk / name, np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32))


# -- names


def _neutral_names(model: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Call MODEL's inputs in_0, ... and its outputs out_0, ...; return their own names by these.

    TensorFlow takes few names as they are: `a/b:0` would come back as something else.
    """
    graph = model.graph
    inputs = {value.name: f"in_{i}" for i, value in enumerate(graph.input)}
    outputs = {value.name: f"out_{i}" for i, value in enumerate(graph.output)}
    new = inputs | outputs
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [new.get(name, name) for name in field]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new.get(value.name, value.name)
    back = {short: name for name, short in inputs.items()}
    return back, {short: name for name, short in outputs.items()}


def _renamed(content: bytes, names: tuple[dict[str, str], dict[str, str]]) -> bytes:
    """Return the TFLite model CONTENT whose signature has the NAMES of the source."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    (signature,) = model.signatureDefs
    for side, own in zip((signature.inputs, signature.outputs), names, strict=True):
        for tensor in side:
            tensor.name = own[tensor.name.decode()].encode()
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
