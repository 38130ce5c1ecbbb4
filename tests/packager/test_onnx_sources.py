"""ONNX models as people have them: old and new opsets, several tensors, weights elsewhere.

What cannot be built is refused with everything that is wrong, before anything is converted.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from digits import digits_onnx, digits_proto
from edgepack.errors import EdgepackError, UnsupportedError, UsageError
from edgepack_packager.adapters.companions import companions
from edgepack_packager.workers import onnx_source
from edgepack_targets import registry

FLOAT = TensorProto.FLOAT
Shape = list[int | str]


def value(name: str, shape: Shape | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def args_for(source: Path, **shapes: list[int]) -> dict[str, Any]:
    return {"source": str(source), "kind": "onnx", "shapes": shapes, "signature": None}


def opened(source: Path, out: Path, **shapes: list[int]) -> dict[str, Any]:
    out.mkdir()
    return onnx_source.normalise(args_for(source, **shapes), out, lambda _: None)


def refusal(source: Path, out: Path, **shapes: list[int]) -> EdgepackError:
    with pytest.raises(EdgepackError) as caught:
        opened(source, out, **shapes)
    assert not list(out.iterdir())
    return caught.value


def run(path: Path, inputs: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    answers: list[Any] = ort.InferenceSession(path, options).run(None, inputs)
    return answers


def reference(source: Path, out: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    np.savez(out / "samples.npz", **inputs)
    args = args_for(source) | {"samples": str(out / "samples.npz")}
    onnx_source.reference(args, out, lambda _: None)
    with np.load(out / "outputs.npz") as data:
        return dict(data)


# -- opsets


@pytest.mark.parametrize("opset", [1, 6, 9, 13, 21, onnx.defs.onnx_opset_version()])
def test_opsets_that_something_can_run_are_taken(tmp_path: Path, opset: int) -> None:
    model = model_of(
        [
            helper.make_node("Relu", ["x"], ["r"]),
            helper.make_node("MatMul", ["r", "w"], ["m"]),
            helper.make_node("Softmax", ["m"], ["y"], axis=1),
        ],
        [value("x", [1, 4])],
        [value("y", [1, 3])],
        {"w": np.arange(12, dtype=np.float32).reshape(4, 3) / 12},
        opset,
    )
    source = saved(model, tmp_path / "m.onnx")
    opened(source, tmp_path / "out")
    kept = onnx.load(tmp_path / "out" / "model.onnx").opset_import[0].version
    assert kept == max(opset, 7)
    x = np.linspace(-1, 2, 4, dtype=np.float32)[None]
    (answer,) = run(tmp_path / "out" / "model.onnx", {"x": x})
    told = reference(source, tmp_path, {"x": x})["y"]
    np.testing.assert_allclose(answer, told, rtol=1e-6)
    assert answer.argmax() == 2


def test_opset_of_the_future_says_which_one_is_known(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", [1, 4])], [value("y", [1, 4])],
        opset=99,
    )  # fmt: skip
    error = refusal(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert (error.exit_code, error.reason) == (5, "opset_too_new")
    assert str(onnx.defs.onnx_opset_version()) in error.why


def test_newer_file_format_with_known_operators_is_no_obstacle(tmp_path: Path) -> None:
    model = digits_proto(batch=1)
    model.ir_version = onnx.IR_VERSION
    source = saved(model, tmp_path / "m.onnx")
    opened(source, tmp_path / "out")
    x = np.ones((1, 1, 16, 16), np.float32)
    assert reference(source, tmp_path, {"image": x})["logits"].shape == (1, 10)


def test_weights_that_are_listed_as_inputs_stay_weights(tmp_path: Path) -> None:
    model = digits_proto(batch=1)
    model.graph.input.extend(value(w.name, list(w.dims)) for w in model.graph.initializer)
    source = saved(model, tmp_path / "m.onnx")
    done = opened(source, tmp_path / "out")
    assert [one["name"] for one in done["inputs"]] == ["image"]
    assert len(reference(source, tmp_path, {"image": np.ones((2, 1, 16, 16), np.float32)})) == 1


# -- tensors


def two_by_two() -> onnx.ModelProto:
    """Return a model with names that files, shells and other formats find hard."""
    nodes = [
        helper.make_node("Add", ["in/left:0", "in/right:0"], ["out/sum:0"]),
        helper.make_node("Sub", ["in/left:0", "in/right:0"], ["out/difference:0"]),
    ]
    inputs = [value("in/left:0", ["N", 4]), value("in/right:0", ["N", 4])]
    outputs = [value("out/sum:0", ["N", 4]), value("out/difference:0", ["N", 4])]
    return model_of(nodes, inputs, outputs)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize("batch", [1, -1])
def test_names_and_order_of_several_tensors_survive(
    tmp_path: Path, target: str, batch: int
) -> None:
    shapes = {f"in/{side}:0": [batch, 4] for side in ("left", "right")}
    source = saved(two_by_two(), tmp_path / "m.onnx")
    done = opened(source, tmp_path / "opened", **(shapes if batch < 0 else {}))
    assert [one["shape"] for one in done["outputs"]] == [[batch, 4]] * 2
    (tmp_path / "out").mkdir()
    registry.find(target).convert(
        tmp_path / "opened" / "model.onnx", "onnx", tmp_path / "out",
        shapes={name: tuple(shape) for name, shape in shapes.items()},
    )  # fmt: skip
    inputs, outputs = registry.find(target).describe(tmp_path / "out")
    assert {(one.name, one.shape) for one in inputs} == {(name, (batch, 4)) for name in shapes}
    assert {one.name for one in outputs} == {"out/sum:0", "out/difference:0"}


def test_other_open_axes_are_named_with_the_flag_that_closes_them(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Neg", ["x"], ["y"])],
        [value("x", ["N", "L", 4])],
        [value("y", ["N", "L", 4])],
    )
    source = saved(model, tmp_path / "m.onnx")
    assert "--shape x=1,1,4" in refusal(source, tmp_path / "one").fix
    done = opened(source, tmp_path / "two", x=[1, 7, 4])
    assert done["outputs"][0]["shape"] == [1, 7, 4]


def test_output_whose_shape_depends_on_the_data_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"])]
    model = model_of(nodes, [value("x", [1, 4])], [value("y", [2, "N"], TensorProto.INT64)])
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match="depends on the data"):
        onnx_source.normalise(
            args_for(saved(model, tmp_path / "m.onnx")), tmp_path / "out", lambda _: None
        )


def sequence(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, FLOAT, [1, 4])


@pytest.mark.parametrize(
    ("nodes", "given", "answer", "word"),
    [
        (
            [helper.make_node("Identity", ["x"], ["y"])],
            value("x", [1, 4], TensorProto.STRING),
            value("y", [1, 4], TensorProto.STRING),
            "text",
        ),
        (
            [helper.make_node("SequenceConstruct", ["x"], ["y"])],
            value("x", [1, 4]),
            sequence("y"),
            "sequence",
        ),
        (
            [helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)],
            sequence("x"),
            value("y", [1, 4]),
            "sequence",
        ),
    ],
)
def test_text_and_sequences_are_refused(
    tmp_path: Path, nodes: list[Any], given: Any, answer: Any, word: str
) -> None:
    error = refusal(saved(model_of(nodes, [given], [answer]), tmp_path / "m"), tmp_path / "out")
    assert (error.exit_code, error.reason) == (5, "tensor_type")
    assert word in error.what


@pytest.mark.parametrize("kind", ["RandomNormalLike", "Dropout"])
def test_random_answers_are_refused(tmp_path: Path, kind: str) -> None:
    names = ["x", "share", "trains"] if kind == "Dropout" else ["x"]
    model = model_of(
        [helper.make_node(kind, names, ["y"])], [value("x", [1, 4])], [value("y", [1, 4])],
        {"share": np.float32(0.5), "trains": np.True_},
    )  # fmt: skip
    error = refusal(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert (error.exit_code, error.reason) == (5, "random")
    assert kind in error.why


# -- operators


def test_all_missing_operators_are_named_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], domain="com.example"),
        helper.make_node("Mystery", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Bar", ["c"], ["y"], domain="com.example"),
    ]
    model = model_of(nodes, [value("x", [1, 4])], [value("y", [1, 4])], domains=("com.example",))
    error = refusal(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    assert (error.exit_code, error.reason) == (5, "unsupported_operator")
    assert error.why == "missing: ai.onnx:Mystery, com.example:Bar, com.example:Foo"


def test_functions_that_come_with_the_model_are_no_custom_operators(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Double", ["x"], ["y"], domain="mine")],
        [value("x", [1, 4])],
        [value("y", [1, 4])],
        domains=("mine",),
    )
    twice = helper.make_node("Add", ["a", "a"], ["b"])
    imports = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Double", ["a"], ["b"], [twice], imports))
    opened(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    (answer,) = run(tmp_path / "out" / "model.onnx", {"x": np.ones((1, 4), np.float32)})
    assert answer.tolist() == [[2.0] * 4]


def test_operators_that_only_openvino_lacks_are_named_by_openvino(tmp_path: Path) -> None:
    model = model_of(
        [
            helper.make_node("Inverse", ["x"], ["i"], domain="com.microsoft"),
            helper.make_node("Det", ["i"], ["y"]),
        ],
        [value("x", [1, 3, 3])],
        [value("y", [1])],
        domains=("com.microsoft",),
    )
    opened(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    with pytest.raises(UnsupportedError) as caught:
        registry.find("openvino").convert(tmp_path / "out" / "model.onnx", "onnx", tmp_path)
    assert caught.value.why == "missing: Det, com.microsoft.Inverse"
    assert "openvino" in caught.value.fix


def test_branches_are_kept_where_the_runtime_has_them(tmp_path: Path) -> None:
    def branch(kind: str) -> onnx.GraphProto:
        nodes = [helper.make_node(kind, ["x"], [f"{kind}_y"])]
        return helper.make_graph(nodes, kind, [], [value(f"{kind}_y", [1, 4])])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], then_branch=branch("Exp"), else_branch=branch("Neg")
        ),
    ]
    model = model_of(nodes, [value("x", [1, 4])], [value("y", [1, 4])], {"zero": np.float32(0)})
    opened(saved(model, tmp_path / "m.onnx"), tmp_path / "out")
    for sign in (1, -1):
        x = np.full((1, 4), sign, np.float32)
        (answer,) = run(tmp_path / "out" / "model.onnx", {"x": x})
        np.testing.assert_allclose(answer, np.exp(x) if sign > 0 else -x, rtol=1e-6)


# -- weights in other files


def external(tmp_path: Path, location: str = "weights/w.bin") -> Path:
    home = tmp_path / "home"
    (home / "weights").mkdir(parents=True)
    onnx.save_model(
        digits_proto(batch=1), home / "m.onnx", save_as_external_data=True,
        location="w.bin", size_threshold=0,
    )  # fmt: skip
    (home / "w.bin").rename(home / "weights" / "w.bin")
    model = onnx.load(home / "m.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = location
    return saved(model, home / "m.onnx")


def test_weights_beside_the_model_are_folded_in(tmp_path: Path) -> None:
    source = external(tmp_path)
    assert companions(source) == [source.parent / "weights" / "w.bin"]
    opened(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    x = np.random.default_rng(0).random((1, 1, 16, 16)).astype(np.float32)
    plain = digits_onnx(tmp_path / "plain.onnx", batch=1)
    (want,) = run(plain, {"image": x})
    np.testing.assert_array_equal(run(tmp_path / "out" / "model.onnx", {"image": x})[0], want)
    told = reference(source, tmp_path, {"image": x})["logits"]
    np.testing.assert_allclose(told, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "weights/../../secret.bin", "link.bin", "gone.bin", "", "/etc/passwd"],
)
def test_weights_outside_of_the_models_folder_are_never_read(tmp_path: Path, location: str) -> None:
    source = external(tmp_path, location)
    (source.parent / "weights" / "w.bin").rename(tmp_path / "secret.bin")
    (source.parent / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert companions(source) == []
    error = refusal(source, tmp_path / "out")
    assert error.exit_code == 2
    assert error.reason in {"external_data", "bad_model"}
    with pytest.raises(UsageError):
        reference(source, tmp_path, {"image": np.ones((1, 1, 16, 16), np.float32)})


def test_weights_that_were_cut_are_an_error(tmp_path: Path) -> None:
    source = external(tmp_path)
    weights = source.parent / "weights" / "w.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refusal(source, tmp_path / "out").exit_code == 2


# -- models that are quantised already


def test_source_says_that_it_is_int8_already(tmp_path: Path) -> None:
    scale, zero = np.float32(0.1), np.uint8(128)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "zw"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    weights = {"s": scale, "z": zero, "zw": np.int8(0), "w": np.ones((4, 3), np.int8)}
    model = model_of(nodes, [value("x", [1, 4])], [value("y", [1, 3])], weights)
    assert opened(saved(model, tmp_path / "q.onnx"), tmp_path / "q")["precision"] == "int8"
    del model.graph.node[:2]
    model.graph.node[1].input[0] = "x"
    assert opened(saved(model, tmp_path / "w.onnx"), tmp_path / "w")["precision"] == "w8"
    fp32 = digits_onnx(tmp_path / "d.onnx")
    assert opened(fp32, tmp_path / "d")["precision"] == "fp32"
