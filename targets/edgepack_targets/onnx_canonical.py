"""One ONNX model, one byte string: the canonical form that we hash, sign and compare.

Nodes stand in the order in which a walk from the outputs needs them, names say only operator
and position, and what says nothing about the computation (producer, doc strings, metadata,
dead nodes) is gone. Inputs and outputs keep their names. Does not optimise or fold.
"""

from collections.abc import Callable, Iterator

import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from edgepack.errors import UnsupportedError

__all__ = ["canonical"]

PREFIX = "edgepack."
"""Of all names that we give, so that none meets a public one."""


def canonical(model: onnx.ModelProto, *, rename: bool = True) -> onnx.ModelProto:
    """Return MODEL in canonical form; MODEL, whose weights must be inside, is not changed.

    Args:
        model: Any model.
        rename: Whether names are given anew; not where the names are ours already, or come
            from them, and say which part of another model this one was.

    Raises:
        UnsupportedError: A public name could be mistaken for one of ours, or a sparse weight.
    """
    flat = inline_local_functions(model) if model.functions else model
    graph = flat.graph
    _refuse(graph)
    opsets = sorted(flat.opset_import, key=lambda opset: opset.domain)
    # The lowest format that these operators need: exporters write the newest they know, which
    # may be newer than the device's runtime. 4 is the first where weights are no inputs.
    lowest = max(4, helper.find_min_ir_version_for(opsets, ignore_unknown=True))
    result = helper.make_model(
        _graph(graph, rename=rename), ir_version=lowest, opset_imports=opsets
    )
    result.ClearField("producer_name")
    return result


def _refuse(graph: onnx.GraphProto) -> None:
    taken = [v.name for v in (*graph.input, *graph.output) if v.name.startswith(PREFIX)]
    if taken:
        raise UnsupportedError(
            f"the model has a tensor `{taken[0]}`",
            why=f"names that start with `{PREFIX}` are reserved",
            fix="rename the input or output",
            reason="reserved_name",
        )
    if graph.sparse_initializer:
        raise UnsupportedError("the model has sparse weights", reason="sparse_weights")


def _graph(graph: onnx.GraphProto, *, rename: bool) -> onnx.GraphProto:
    nodes = list(_in_order(graph))
    labels = [f"{PREFIX}{node.op_type}_{position}" for position, node in enumerate(nodes)]
    if not rename:
        labels = [node.name or label for node, label in zip(nodes, labels, strict=True)]
    if not rename or any(_subgraphs(node) for node in nodes):
        # The bodies of If, Loop and Scan see outer names; these models keep all of theirs.
        return _cleaned(graph, nodes, labels, lambda name: name)
    names = _names(graph, nodes)
    return _cleaned(graph, nodes, labels, lambda name: names[name])


def _in_order(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that the outputs need, each after its inputs, by structure alone."""
    makers = {name: node for node in graph.node for name in node.output if name}
    done: set[str] = set()
    stack = [(output.name, False) for output in reversed(graph.output)]
    while stack:
        name, ready = stack.pop()
        node = makers.get(name)
        if node is None or name in done:
            continue
        if ready:
            done.update(node.output)
            yield node
        else:
            stack.append((name, True))
            stack += [(used, False) for used in reversed(_used(node))]


def _used(node: onnx.NodeProto) -> list[str]:
    """Return the names that NODE reads, those of its bodies included."""
    bodies = [inner for body in _subgraphs(node) for n in body.node for inner in _used(n)]
    results = [output.name for body in _subgraphs(node) for output in body.output]
    return [name for name in (*node.input, *bodies, *results) if name]


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    single = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    return single + [g for a in node.attribute for g in a.graphs]


def _names(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> dict[str, str]:
    """Return the canonical name of every tensor name; public ones stay."""
    weights = {weight.name for weight in graph.initializer}
    names = {value.name: value.name for value in graph.output}
    names |= {value.name: value.name for value in graph.input if value.name not in weights}
    names[""] = ""
    count = 0
    for position, node in enumerate(nodes):
        for name in node.input:
            if name not in names:
                names[name] = f"{PREFIX}const_{count}"
                count += 1
        for port, name in enumerate(node.output):
            names.setdefault(name, f"{PREFIX}{node.op_type}_{position}:{port}")
    return names


def _cleaned(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    labels: list[str],
    rename: Callable[[str], str],
) -> onnx.GraphProto:
    weights = {weight.name: weight for weight in graph.initializer}
    used = dict.fromkeys(
        name
        for name in (*(n for node in nodes for n in _used(node)), *(v.name for v in graph.output))
        if name in weights
    )
    return helper.make_graph(
        [_node(node, label, rename) for node, label in zip(nodes, labels, strict=True)],
        "model",
        # Before IR 4 weights had to be listed as inputs too.
        [_value(value) for value in graph.input if value.name not in weights],
        [_value(value) for value in graph.output],
        [_weight(weights[name], rename(name)) for name in used],
    )


def _node(node: onnx.NodeProto, label: str, rename: Callable[[str], str]) -> onnx.NodeProto:
    fresh = onnx.NodeProto(op_type=node.op_type, name=label)
    if node.domain:
        fresh.domain = node.domain
    fresh.input.extend(rename(name) for name in node.input)
    fresh.output.extend(rename(name) for name in node.output)
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        copy = fresh.attribute.add()
        copy.CopyFrom(attribute)
        copy.ClearField("doc_string")
        if copy.HasField("t"):
            copy.t.CopyFrom(_weight(copy.t, ""))
    return fresh


def _value(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    fresh = onnx.ValueInfoProto(name=value.name)
    fresh.type.CopyFrom(value.type)
    for axis, size in enumerate(fresh.type.tensor_type.shape.dim):
        if size.HasField("dim_param"):
            # Exporters number unknown axes; which of them are equal says nothing to a runtime.
            size.dim_param = f"{value.name}.{axis}"
        size.ClearField("denotation")
    fresh.type.ClearField("denotation")
    return fresh


def _weight(weight: TensorProto, name: str) -> TensorProto:
    """Return WEIGHT called NAME with its data in the one raw form."""
    if weight.data_type == TensorProto.STRING:
        fresh = TensorProto()
        fresh.CopyFrom(weight)
        fresh.ClearField("doc_string")
        fresh.name = name
        return fresh
    return numpy_helper.from_array(numpy_helper.to_array(weight), name)
