"""Read an ONNX file from anywhere: all weights inside, and nothing that cannot be run.

Weights kept outside are folded in, from the model's own folder only. Converts nothing.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.onnx_operators import refuse_unknown

__all__ = ["load", "opset_of", "read_source"]

RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
}  # fmt: skip
MISSING_WEIGHTS = "export it again; weights kept outside must lie beside it"


def load(path: Path) -> onnx.ModelProto:
    """Return the model in PATH, checked, with its external data folded in.

    Raises:
        UsageError: no ONNX model, or its weights are not in its folder.
    """
    model = _parse(path)
    _check(path, model)
    return model


def read_source(path: Path) -> onnx.ModelProto:
    """Return the model in PATH, a source that somebody wants to build from.

    Raises:
        UsageError: no ONNX model, or its weights are not in its folder.
        UnsupportedError: its opset is too new, onnxruntime lacks some of its operators (all of
            them are named), it takes or gives what is no number, or it draws random numbers.
    """
    model = _parse(path)
    _refuse_new_opset(model)
    refuse_unknown(model)
    _check(path, model)
    _refuse_other_types(model.graph)
    _refuse_randomness(model)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that MODEL is written in; 1 if it says none."""
    return max((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), default=1)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
        _confine(model, path.parent)
        load_external_data_for_model(model, str(path.parent))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise _bad(path, error) from error
    return model


def _check(path: Path, model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise _bad(path, error) from error


def _bad(path: Path, error: Exception) -> UsageError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UsageError(
        f"{path.name} is not a valid ONNX model",
        why=lines[0][:300],
        fix=MISSING_WEIGHTS,
        reason="bad_model",
    )


def _confine(model: onnx.ModelProto, folder: Path) -> None:
    """Check that every external weight lies in FOLDER: a model must not read other files."""
    home = folder.resolve()
    for tensor in _tensors(model):
        if not uses_external_data(tensor):
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        place = home / said.get("location", "")
        if not place.is_file() or not place.resolve().is_relative_to(home):
            raise UsageError(
                f"the weights `{tensor.name}` are not in the model's folder",
                why=f"the model says they are in {said.get('location') or 'no file'}",
                fix="put the file beside the model, or export it as one file",
                reason="external_data",
            )


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of MODEL: weights, constants, those of bodies and functions."""
    yield from _tensors_of(model.graph)
    for function in model.functions:
        yield from _in_nodes(function.node)


def _tensors_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for attribute in (a for node in nodes for a in node.attribute):
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        for body in (attribute.g, *attribute.graphs):
            yield from _tensors_of(body)


def _refuse_new_opset(model: onnx.ModelProto) -> None:
    known = onnx.defs.onnx_opset_version()
    if opset_of(model) > known:
        raise UnsupportedError(
            f"the model is written in opset {opset_of(model)}, which is too new",
            why=f"the installed onnx knows opsets up to {known}",
            fix=f"export it with opset {min(known, 21)}, e.g. opset_version=21",
            reason="opset_too_new",
        )


def _refuse_other_types(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        kind = value.type.WhichOneof("value") or "nothing known"
        text = kind == "tensor_type" and value.type.tensor_type.elem_type == TensorProto.STRING
        if kind != "tensor_type" or text:
            raise UnsupportedError(
                f"`{value.name}` holds {'text' if text else kind.removesuffix('_type')}",
                why="inputs and outputs are tensors of numbers",
                fix="cut the model before or after this tensor",
                reason="tensor_type",
            )


def _refuse_randomness(model: onnx.ModelProto) -> None:
    true = {one.name for one in model.graph.initializer if _is_true(one)}
    found = sorted({node.op_type for node in model.graph.node if _is_random(node, true)})
    if found:
        raise UnsupportedError(
            "the model draws random numbers",
            why=f"operators: {', '.join(found)}",
            fix="export it for inference (eval mode), or make the random numbers an input",
            reason="random",
        )


def _is_random(node: onnx.NodeProto, true: set[str]) -> bool:
    trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in true
    return node.op_type in RANDOM or trains


def _is_true(weight: TensorProto) -> bool:
    if weight.data_type != TensorProto.BOOL or len(weight.dims):
        return False
    return bool(numpy_helper.to_array(weight))
