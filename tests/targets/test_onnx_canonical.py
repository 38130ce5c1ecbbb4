"""One computation, one ONNX file, whatever names, order and noise an exporter gave it."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from digits import INPUT, OUTPUT, digits_data, digits_onnx, digits_proto
from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets import registry
from edgepack_targets.onnx_canonical import canonical

ONNX = registry.find("onnx")
OPSET = [helper.make_opsetid("", 17)]


def model_of(nodes: list, inputs: list, outputs: list, weights: dict | None = None):
    """Return a model of NODES; INPUTS and OUTPUTS are (name, shape)."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "g", *values, tensors)
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=9)
    onnx.checker.check_model(model)
    return model


def branched() -> onnx.ModelProto:
    """Return a model with branches that can be listed in many orders, and two equal ones."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["x"], ["b"]),
        helper.make_node("Neg", ["x"], ["b2"]),
        helper.make_node("Mul", ["a", "w"], ["c"]),
        helper.make_node("Add", ["b", "w"], ["d"]),
        helper.make_node("Split", ["c"], ["e", "f"], axis=1, num_outputs=2),
        helper.make_node("Concat", ["e", "d", "f", "b2"], ["y"], axis=1),
    ]
    model = model_of(nodes[:5], [("x", [1, 4])], [("c", [1, 4]), ("d", [1, 4])],
                     {"w": np.arange(4, dtype=np.float32)})  # fmt: skip
    model.opset_import[0].version = 18
    del model.graph.output[:]
    model.graph.node.extend(nodes[5:])
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 12]))
    onnx.checker.check_model(model)
    return model


def scrambled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Return the same computation with other names, another valid order and other noise."""
    dice = random.Random(seed)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    public = {value.name for value in (*graph.input, *graph.output)}
    inner = {n for node in graph.node for n in (*node.input, *node.output)} - public - {""}
    names = {name: f"n{dice.getrandbits(64):x}" for name in sorted(inner)}
    for node in graph.node:
        node.name, node.doc_string = f"{dice.random()}", f"made at {dice.random()}"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        attributes = list(node.attribute)
        dice.shuffle(attributes)
        del node.attribute[:]
        node.attribute.extend(attributes)
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)
        weight.doc_string = str(dice.random())
    weights = [*graph.initializer, numpy_helper.from_array(np.zeros(3), f"dead{seed}")]
    dice.shuffle(weights)
    nodes = _any_order(list(graph.node), {w.name for w in weights} | public, dice)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(weights)
    graph.node.extend(nodes)
    graph.node.append(helper.make_node("Abs", [graph.input[0].name], [f"unused{seed}"]))
    graph.name, graph.doc_string = f"g{seed}", f"from function {seed}"
    result.producer_name, result.model_version = f"exporter {seed}", seed
    helper.set_model_props(result, {"when": str(seed)})
    onnx.checker.check_model(result)
    return result


def _any_order(nodes: list, known: set[str], dice: random.Random) -> list:
    ordered = []
    known = known | {""}
    while nodes:
        ready = [node for node in nodes if set(node.input) <= known]
        node = dice.choice(ready)
        nodes.remove(node)
        ordered.append(node)
        known |= set(node.output)
    return ordered


def data(model: onnx.ModelProto) -> bytes:
    return canonical(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("make", [lambda: digits_proto(batch=1), branched])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_names_order_and_noise_make_no_difference(make, seed: int) -> None:
    assert data(scrambled(make(), seed)) == data(make())


def test_the_canonical_form_is_its_own() -> None:
    for model in (digits_proto(), branched()):
        once = canonical(model)
        assert data(once) == once.SerializeToString(deterministic=True)


def test_it_computes_the_same() -> None:
    model, images = digits_proto(), digits_data()[1].head(5).inputs
    expected = ReferenceEvaluator(model).run(None, {INPUT: images})[0]
    got = ReferenceEvaluator(canonical(model)).run(None, {INPUT: images})[0]
    assert np.array_equal(got, expected)
    x = {"x": np.array([[1, -2, 3, -4]], np.float32)}
    expected = ReferenceEvaluator(branched()).run(None, x)[0]
    assert np.array_equal(ReferenceEvaluator(canonical(branched())).run(None, x)[0], expected)


def test_another_computation_is_another_file() -> None:
    files = {data(digits_proto()), data(branched()), data(digits_proto(wrong_labels=0.42))}
    swapped = branched()
    swapped.graph.node[6].input[:] = ["f", "d", "e", "b2"]
    assert len(files | {data(swapped)}) == 4


def test_noise_is_gone_and_public_names_stay() -> None:
    model = canonical(scrambled(digits_proto(), 5))
    assert [value.name for value in model.graph.input] == [INPUT]
    assert [value.name for value in model.graph.output] == [OUTPUT]
    assert [n.op_type for n in model.graph.node] == [
        "Conv", "Relu", "MaxPool", "Flatten", "Gemm", "Relu", "Gemm"
    ]  # fmt: skip
    text = str(model)
    for noise in ("doc_string", "producer", "made at", "when", "unused", "dead"):
        assert noise not in text


def test_bodies_of_control_flow_keep_their_names_and_work() -> None:
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])
    then = helper.make_graph([helper.make_node("Neg", ["scaled"], ["out"])], "then", [], [value])
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["out"])], "else", [], [value])
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["scaled"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {"w": np.float32([2, 3]), "zero": np.float32(0)}
    model = model_of(nodes, [("x", [2])], [("y", [2])], weights)
    result = canonical(model)
    onnx.checker.check_model(result, full_check=True)
    for x in ([1, 2], [-1, -2]):
        feed = {"x": np.float32(x)}
        expected = ReferenceEvaluator(model).run(None, feed)[0]
        assert np.array_equal(ReferenceEvaluator(result).run(None, feed)[0], expected)


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], OPSET
    )
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], [("x", [2])], [("y", [2])])
    model.graph.node[0].op_type, model.graph.node[0].domain = "Twice", "mine"
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(function)
    assert [node.op_type for node in canonical(model).graph.node] == ["Add"]


def test_weights_listed_as_inputs_are_no_inputs() -> None:
    model = digits_proto()
    for weight in model.graph.initializer:
        value = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        model.graph.input.append(value)
    assert data(model) == data(digits_proto())


def test_the_file_is_as_old_as_its_operators_allow() -> None:
    newest = digits_proto(batch=1)
    newest.ir_version = onnx.IR_VERSION
    assert data(newest) == data(digits_proto(batch=1))
    assert canonical(newest).ir_version == 8


def test_weights_have_one_form_whatever_field_they_came_in() -> None:
    model, raw = branched(), branched()
    del model.graph.initializer[:]
    model.graph.initializer.append(
        helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0, 1.0, 2.0, 3.0])
    )
    assert not model.graph.initializer[0].raw_data
    assert data(model) == data(raw)


def test_a_very_deep_model_is_no_problem() -> None:
    count = 5000
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    graph = helper.make_graph(
        nodes,
        "deep",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(f"t{count}", TensorProto.FLOAT, [1])],
    )
    assert len(canonical(helper.make_model(graph)).graph.node) == count


def test_a_name_of_ours_in_the_source_is_refused() -> None:
    model = model_of(
        [helper.make_node("Neg", ["edgepack.x"], ["y"])], [("edgepack.x", [1])], [("y", [1])]
    )
    with pytest.raises(UnsupportedError) as caught:
        canonical(model)
    assert caught.value.reason == "reserved_name"


def test_weights_beside_the_model_are_folded_in(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    onnx.save_model(
        digits_proto(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data",
        size_threshold=0,
    )  # fmt: skip
    ONNX.convert(tmp_path / "m.onnx", "onnx", tmp_path / "out")
    digits_onnx(tmp_path / "whole.onnx", batch=1)
    (tmp_path / "m.data").unlink()
    assert (tmp_path / "out" / "model.onnx").read_bytes() == data(digits_proto(batch=1))
    with pytest.raises(UsageError):
        ONNX.convert(tmp_path / "m.onnx", "onnx", tmp_path / "out")


def test_an_unknown_batch_becomes_one_and_a_shape_can_be_given(tmp_path: Path) -> None:
    source = digits_onnx(tmp_path / "m.onnx")
    ONNX.convert(source, "onnx", tmp_path)
    assert [n.shape for side in ONNX.describe(tmp_path) for n in side] == [
        (1, 1, 16, 16), (1, 10)
    ]  # fmt: skip
    (tmp_path / "three").mkdir()
    ONNX.convert(source, "onnx", tmp_path / "three", shapes={INPUT: (3, 1, 16, 16)})
    assert [n.shape for side in ONNX.describe(tmp_path / "three") for n in side] == [
        (3, 1, 16, 16), (3, 10)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "error"),
    [
        ({"pixels": (1, 1, 16, 16)}, UsageError),
        ({INPUT: (1, 1, 8, 8)}, UsageError),
        ({INPUT: (1, 256)}, UsageError),
        ({INPUT: (0, 1, 16, 16)}, UsageError),
        ({INPUT: (1, -1, 16, 16)}, UnsupportedError),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tmp_path: Path, shapes: dict, error: type) -> None:
    source = digits_onnx(tmp_path / "m.onnx")
    with pytest.raises(error):
        ONNX.convert(source, "onnx", tmp_path, shapes=shapes)
    assert not (tmp_path / "model.onnx").exists()


def test_a_batch_may_stay_open_where_it_is_open(tmp_path: Path) -> None:
    source = digits_onnx(tmp_path / "m.onnx")
    ONNX.convert(source, "onnx", tmp_path, shapes={INPUT: (-1, 1, 16, 16)})
    inputs, outputs = ONNX.describe(tmp_path)
    assert (inputs[0].shape, outputs[0].shape) == ((-1, 1, 16, 16), (-1, 10))
    fixed = digits_onnx(tmp_path / "one.onnx", batch=1)
    with pytest.raises(UsageError, match="cannot have the shape"):
        ONNX.convert(fixed, "onnx", tmp_path, shapes={INPUT: (-1, 1, 16, 16)})


def test_other_unknown_axes_must_be_given(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Neg", ["x"], ["y"])], [("x", ["N", "L"])], [("y", ["N", "L"])]
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError) as caught:
        ONNX.convert(tmp_path / "m.onnx", "onnx", tmp_path)
    assert "--shape x=1,1" in caught.value.fix
    ONNX.convert(tmp_path / "m.onnx", "onnx", tmp_path, shapes={"x": (1, 7)})
    assert ONNX.describe(tmp_path)[1][0].shape == (1, 7)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x09", b"\xff" * 100])
def test_files_that_are_no_models_are_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    for name in ("onnx", "openvino"):
        with pytest.raises(UsageError) as caught:
            registry.find(name).convert(tmp_path / "m.onnx", "onnx", tmp_path)
        assert "m.onnx" in caught.value.what
    with pytest.raises(UsageError):
        registry.find("tflite").convert(tmp_path / "m.onnx", "tflite", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
