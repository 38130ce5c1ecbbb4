"""Steps of the `tf` toolchain: open a Keras model or SavedModel, export it once, convert, refer.

Every target starts from one SavedModel with static shapes and a single signature, so that a
source is exported once per build. Quantises nothing and compares nothing.
"""

import json
import logging
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.workers.arrays import read_arrays, write_npz
from edgepack_packager.workers.tf_safety import check_saved_model, unsafe

__all__ = [
    "export", "onnx", "onnx_from_tflite", "open_keras", "reference", "save_frozen", "tflite",
    "to_tflite",
]  # fmt: skip

Say = Callable[[str], None]
Tensors = dict[str, Any]
BATCH = 64
SIGNATURE = "serving_default"
OPSET = "17"
STATE = ("AssignVariable", "AssignAddVariable", "AssignSubVariable", "VarHandleOp")


@dataclass(frozen=True, slots=True)
class Source:
    """An opened model: `call` takes and gives tensors by public name; -1 is an unknown axis."""

    owner: Any
    call: Callable[[Tensors], Tensors]
    inputs: dict[str, tuple[tuple[int, ...], str]]


def export(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Write the source as a SavedModel with static shapes to OUT/saved_model; return its tensors.

    Raises:
        UsageError: the file is broken, or an unknown axis has no `--shape`.
        UnsupportedError: unsafe or custom layers, several signatures, state.
    """
    say("opening the model")
    source = _open(args)
    import tensorflow as tf

    shapes = _static(source, args["shapes"])
    keys = {name: _key(name, "in", i) for i, name in enumerate(source.inputs)}
    specs = {
        keys[name]: tf.TensorSpec(shapes[name], source.inputs[name][1], name=keys[name])
        for name in source.inputs
    }
    names: list[str] = []

    def serve(**tensors: Any) -> Tensors:
        outputs = source.call({name: tensors[key] for name, key in keys.items()})
        names[:] = outputs
        return {_key(name, "out", i): value for i, (name, value) in enumerate(outputs.items())}

    say("exporting")
    function = tf.function(serve, autograph=False).get_concrete_function(**specs)
    _refuse_state(function)
    save_frozen(function, specs, out / "saved_model")
    outputs = function.structured_outputs
    return {
        "inputs": [_tensor(name, keys[name], specs[keys[name]]) for name in source.inputs],
        "outputs": [
            _tensor(name, key, outputs[key])
            for name, key in ((n, _key(n, "out", i)) for i, n in enumerate(names))
        ],
        "versions": _versions(),
    }


def save_frozen(function: Any, specs: Tensors, target: Path) -> None:
    """Save FUNCTION with its weights as constants.

    The TFLite converter leaves variables of a wrapped model as variables that nothing fills:
    its answer is NaN. Constants also make every conversion independent of variable names.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    frozen = convert_variables_to_constants_v2(function)
    order = [tensor.name.partition(":")[0] for tensor in frozen.inputs]
    keys = sorted(function.structured_outputs)

    def serve(**tensors: Any) -> Tensors:
        return dict(zip(keys, frozen(*(tensors[name] for name in order)), strict=True))

    graph = tf.function(serve, autograph=False).get_concrete_function(**specs)
    tf.saved_model.save(tf.Module(), str(target), signatures={SIGNATURE: graph})


def tflite(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Convert the exported SavedModel to OUT/model.tflite in fp32."""
    say("converting to TFLite")
    (out / "model.tflite").write_bytes(to_tflite(_saved(args)))
    return {"versions": _versions()}


def to_tflite(saved_model: Path) -> bytes:
    """Return SAVED_MODEL as TFLite in fp32, with its signature.

    Raises:
        UnsupportedError: operators that TFLite does not have; all of them are named.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(saved_model), signature_keys=[SIGNATURE]
    )
    try:
        return bytes(converter.convert())
    except Exception as error:
        missing = _missing_operators(str(error))
        if not missing:
            raise
        raise UnsupportedError(
            f"TFLite does not have {len(missing)} of the model's operators",
            why=f"missing: {', '.join(missing)}",
            fix="replace them in the model, or leave target tflite out",
            reason="unsupported_operator",
        ) from error


def onnx(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Convert the exported SavedModel to OUT/model.onnx in fp32."""
    import tf2onnx.convert

    say("converting to ONNX")
    source = ("--saved-model", str(_saved(args)), "--signature_def", SIGNATURE, "--tag", "serve")
    _run_tf2onnx(*source, "--output", str(out / "model.onnx"))
    return {"versions": _versions() | {"tf2onnx": tf2onnx.__version__}}


def onnx_from_tflite(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Convert `args["from"]`/plain.tflite to OUT/model.onnx; an int8 model becomes QDQ."""
    import tf2onnx.convert

    say("converting to ONNX")
    source = Path(args["from"]) / "plain.tflite"
    _run_tf2onnx("--tflite", str(source), "--output", str(out / "model.onnx"))
    return {"versions": {"tf2onnx": tf2onnx.__version__}}


def _run_tf2onnx(*words: str) -> None:
    """Run tf2onnx's own command.

    Raises:
        UnsupportedError: operators that ONNX does not have; all of them are named.
    """
    import tf2onnx.convert

    sys.argv = ["tf2onnx", *words, "--opset", OPSET]
    told = _Told()
    logging.getLogger("tf2onnx").addHandler(told)
    tf2onnx.convert.main()
    # What it cannot convert it leaves in the model as it is, with a line in its log.
    missing = sorted(set(re.findall(r"Tensorflow op \[.*?: (\w+)\] is not supported", told.text)))
    if missing:
        raise UnsupportedError(
            f"ONNX does not have {len(missing)} of the model's operators",
            why=f"missing: {', '.join(missing)}",
            fix="replace them in the model, or leave targets onnx and onnx-mobile out",
            reason="unsupported_operator",
        )


class _Told(logging.Handler):
    """Keeps what a library logs."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Add the line."""
        self.text += record.getMessage() + "\n"


def _saved(args: Mapping[str, Any]) -> Path:
    return Path(args.get("saved_model") or Path(args["from"]) / "saved_model")


def _missing_operators(error: str) -> list[str]:
    """Return the operators that the TFLite converter's ERROR says it does not have."""
    lists = re.findall(r"^(?:Flex|Custom) ops: (.+)$", error, re.MULTILINE)
    return sorted({name.strip() for one in lists for name in one.split(",")})


def reference(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Write what the source framework answers to the samples in `args["samples"]`.

    The samples are an npz, one array per public input, first axis = samples. The answers go to
    OUT/outputs.npz, one array per public output.
    """
    source = _open(args)
    given = read_arrays(args["samples"])
    samples = {name: given[name] for name in source.inputs}
    say("asking the source framework")
    count = len(next(iter(samples.values())))
    size = BATCH if all(shape[:1] == (-1,) for shape, _ in source.inputs.values()) else 1
    parts = [_answer(source, samples, start, size) for start in range(0, count, size)]
    answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_npz(out / "outputs.npz", answers)
    return {"versions": _versions()}


def _answer(source: Source, samples: Mapping[str, Any], start: int, size: int) -> Tensors:
    import tensorflow as tf

    batch = {name: tf.constant(array[start : start + size]) for name, array in samples.items()}
    return {name: np.asarray(value) for name, value in source.call(batch).items()}


def _versions() -> dict[str, str]:
    import keras
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "keras": keras.__version__}


def _key(name: str, kind: str, index: int) -> str:
    """Return NAME where TensorFlow takes it as an argument's name, else a neutral one."""
    return name if name.isidentifier() else f"{kind}_{index}"


def _tensor(name: str, key: str, spec: Any) -> dict[str, Any]:
    if None in spec.shape.as_list():
        raise UnsupportedError(
            f"output {name} has a shape that depends on the data: {spec.shape}",
            fix="export the model without dynamic axes",
            reason="dynamic_output",
        )
    return {"name": name, "key": key, "shape": spec.shape.as_list(), "dtype": spec.dtype.name}


def _static(source: Source, wanted: Mapping[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Return a static shape per input: the wanted one, or the own with an unknown batch of 1."""
    unknown = wanted.keys() - source.inputs.keys()
    if unknown:
        raise UsageError(
            f"--shape names an input that is not there: {', '.join(sorted(unknown))}",
            fix=f"inputs are: {', '.join(source.inputs)}",
            reason="unknown_input",
        )
    shapes = {
        name: tuple(wanted.get(name) or _batch_of_one(own))
        for name, (own, _) in source.inputs.items()
    }
    for name, shape in shapes.items():
        _check_shape(name, source.inputs[name][0], shape)
    return shapes


def _batch_of_one(own: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *own[1:]) if own[:1] == (-1,) else own


def _check_shape(name: str, own: tuple[int, ...], chosen: tuple[int, ...]) -> None:
    if min(chosen, default=1) < 1:
        raise UnsupportedError(
            f"the shape of input {name} is not fixed: {list(own)} (-1: unknown)",
            why="only an unknown first axis, the batch, becomes 1 by itself",
            fix=f"give it: --shape {name}=" + ",".join(str(max(size, 1)) for size in chosen),
            reason="unknown_shape",
        )
    sizes = zip(own, chosen, strict=False)
    if len(own) != len(chosen) or any(size not in {-1, want} for size, want in sizes):
        raise UsageError(
            f"--shape {name} does not fit the model",
            why=f"it takes {list(own)} (-1: any), chosen is {list(chosen)}",
            reason="bad_shape",
        )


def _open(args: Mapping[str, Any]) -> Source:
    path = Path(args["source"])
    trust = bool(args.get("trust"))
    if args["kind"] == "keras":
        return open_keras(path, trust=trust)
    return _open_saved(path, args["signature"], trust=trust)


def open_keras(path: Path, *, trust: bool = False) -> Source:
    """Return the Keras model in PATH, opened in safe mode unless TRUST.

    Raises:
        UsageError: it is broken.
        UnsupportedError: it holds code or layers of its own, or does not say its inputs.
    """
    if not trust:
        _refuse_unsafe(path)
    import keras
    import tensorflow as tf

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:
        raise _broken_keras(path, error) from error
    if not getattr(model, "inputs", None):
        raise UnsupportedError(
            f"{path.name} has no fixed inputs",
            why="it is a subclassed model that does not say its input shapes",
            fix="build it with keras.Input, or export a SavedModel with a signature",
            reason="no_inputs",
        )
    names = [tensor.name for tensor in model.inputs]
    outputs = list(getattr(model, "output_names", ())) or ["output"]

    def call(tensors: Tensors) -> Tensors:
        given = tensors[names[0]] if len(names) == 1 else [tensors[name] for name in names]
        values = tf.nest.flatten(model(given, training=False))
        return dict(zip(outputs, values, strict=True))

    shapes = {
        tensor.name: (tuple(-1 if d is None else d for d in tensor.shape), str(tensor.dtype))
        for tensor in model.inputs
    }
    return Source(model, call, shapes)


def _broken_keras(path: Path, error: Exception) -> UsageError | UnsupportedError:
    text = str(error)
    why = text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__
    if "safe_mode" in text or "unsafe" in text.lower():
        return unsafe(path, why)
    if "Could not locate" in text or "Could not deserialize class" in text:
        return UnsupportedError(
            f"{path.name} has a layer of its own",
            why=why,
            fix="export the model as a SavedModel and build from that",
            reason="custom_layer",
        )
    return UsageError(f"{path.name} cannot be opened", why=why, reason="corrupt_model")


def _refuse_unsafe(path: Path) -> None:
    """Look at the configuration without any framework: a Lambda is code."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise UsageError(
            f"{path.name} is not a Keras model file", why=str(error), reason="corrupt_model"
        ) from error
    found = [name for kind, name in _classes(config) if kind in {"Lambda", "__lambda__"}]
    if found:
        raise unsafe(path, f"Lambda layer: {', '.join(sorted(set(found)))}")


def _classes(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        kind = node.get("class_name")
        inner = node.get("config")
        if isinstance(kind, str):
            name = inner.get("name") if isinstance(inner, dict) else None
            yield kind, str(name or "unnamed")
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _classes(value)


def _open_saved(path: Path, wanted: str | None, *, trust: bool) -> Source:
    import tensorflow as tf

    check_saved_model(path, trust=trust)
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        what = f"{path.name} cannot be opened as a SavedModel"
        raise UsageError(what, why=why, reason="corrupt_model") from error
    function = _signature(path, dict(loaded.signatures), wanted)
    inputs = {
        name: (tuple(-1 if d is None else d for d in spec.shape), spec.dtype.name)
        for name, spec in function.structured_input_signature[1].items()
    }

    def call(tensors: Tensors) -> Tensors:
        answers = function(**tensors)
        return {name: answers[name] for name in sorted(answers)}

    return Source(loaded, call, inputs)


def _signature(path: Path, signatures: dict[str, Any], wanted: str | None) -> Any:
    if wanted is None and len(signatures) == 1:
        return next(iter(signatures.values()))
    if (wanted or SIGNATURE) in signatures and (wanted or set(signatures) <= {SIGNATURE, "serve"}):
        return signatures[wanted or SIGNATURE]
    raise UsageError(
        f"{path.name} has the signatures {', '.join(sorted(signatures)) or '(none)'}",
        fix="choose one with --signature NAME",
        reason="signature",
    )


def _refuse_state(function: Any) -> None:
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    found = sorted({node.op for node in nodes if node.op.startswith(STATE)})
    if found:
        raise UnsupportedError(
            "the model keeps state between calls",
            why=f"operators: {', '.join(found)}",
            fix="export it without state",
            reason="stateful",
        )
