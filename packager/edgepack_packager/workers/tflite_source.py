"""Steps on a ready TFLite model: look at what it is, take it as it is, and ask LiteRT.

It is packaged byte for byte. What it would answer elsewhere is judged against what LiteRT, the
runtime that it was made for, answers here.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgepack.errors import EdgepackError, IntegrityError, UnsupportedError, UsageError
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.ready import (
    answer_samples,
    corrupt,
    precision_of,
    random,
    stateful,
    tensors,
)
from edgepack_targets import registry
from edgepack_targets.tflite_plain import plain

__all__ = ["open", "reference"]

MAGIC = b"TFL3"
KIND = "a TFLite model"
STATE = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
RANDOM = {"RANDOM_UNIFORM", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"}


def open(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:  # noqa: A001
    """Copy the source to OUT/model.tflite; return its tensors and the `precision` it has already.

    OUT/plain.tflite is the same model for converters that read less of the format.

    Raises:
        UsageError: no TFLite model, or `--shape` names an input that is not there.
        UnsupportedError: operators that are not built in (all are named), state, randomness, or
            another shape than the model's own.
    """
    source = Path(args["source"])
    say("opening the model")
    _check_magic(source)
    shutil.copyfile(source, out / "model.tflite")
    target = registry.find("tflite")
    try:
        inputs, outputs = target.describe(out)
    except IntegrityError as error:
        raise _unreadable(source, error.why) from error
    _refuse(source)
    _check_shapes(args["shapes"], {native.name: native.shape for native in inputs})
    (out / "plain.tflite").write_bytes(plain(source.read_bytes()))
    applied = target.applied(out)
    return {
        "inputs": tensors(inputs),
        "outputs": tensors(outputs),
        "precision": precision_of(applied, integer_activations=applied["quantized_operators"] > 0),
        "versions": installed_versions(["ai-edge-litert"]),
    }


def reference(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Write LiteRT's answers to the samples in `args["samples"]` to OUT/outputs.npz."""
    from edgepack_targets import tflite_session

    say("asking the source model")
    interpreter = tflite_session.open_model(Path(args["source"]), 1)
    inputs, outputs = tflite_session.tensors(interpreter)

    def answer(sample: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, array in sample.items():
            interpreter.set_tensor(int(inputs[name]["index"]), array)
        interpreter.invoke()
        return {name: interpreter.get_tensor(int(d["index"])) for name, d in outputs.items()}

    answer_samples(args, out, list(inputs), answer)
    return {"versions": installed_versions(["ai-edge-litert"])}


def _unreadable(source: Path, why: str) -> EdgepackError:
    """Return the error for a model that LiteRT does not take, with all operators it lacks."""
    if "ops_custom" not in why:
        return corrupt(source, KIND, why)
    # LiteRT names only the first; the file is sound, or it would not have come so far.
    custom = sorted(name for name, own in _operators(source) if own)
    return UnsupportedError(
        f"LiteRT does not have {len(custom)} of the model's operators",
        why=f"missing: {', '.join(custom)}",
        fix="export the model with built-in operators only",
        reason="unsupported_operator",
    )


def _refuse(source: Path) -> None:
    found = {name for name, _ in _operators(source)}
    if found & STATE or _has_variables(source):
        raise stateful(found & STATE or {"a tensor that outlives the call"})
    if found & RANDOM:
        raise random(found & RANDOM)


def _operators(source: Path) -> set[tuple[str, bool]]:
    """Return every kind of operator in SOURCE and whether it is a custom one."""
    model = _read(source)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes = [
        (one.customCode.decode(errors="replace"), True)
        if one.customCode
        else (names.get(max(one.builtinCode, one.deprecatedBuiltinCode), "unknown"), False)
        for one in model.operatorCodes
    ]
    return {codes[op.opcodeIndex] for graph in model.subgraphs for op in graph.operators}


def _has_variables(source: Path) -> bool:
    return any(tensor.isVariable for g in _read(source).subgraphs for tensor in g.tensors)


def _read(source: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(source.read_bytes())


def _check_magic(source: Path) -> None:
    with source.open("rb") as file:
        head = file.read(8)
    if head[4:] != MAGIC:
        why = "the file is empty" if not head else f"it does not say {MAGIC.decode()} at byte 4"
        raise corrupt(source, KIND, why)


def _check_shapes(asked: dict[str, list[int]], own: dict[str, tuple[int, ...]]) -> None:
    for name, shape in asked.items():
        if name not in own:
            raise UsageError(
                f"--shape names an input that is not there: {name}",
                fix=f"inputs are: {', '.join(own)}",
                reason="unknown_input",
            )
        if tuple(shape) != own[name]:
            raise UnsupportedError(
                f"input {name} has the shape {list(own[name])}, and a ready TFLite model keeps it",
                fix="leave --shape out, or build from the model it came from",
                reason="dynamic_shape" if min(shape) < 0 else "bad_shape",
            )
