"""What a session says of itself, and models that are not one image and one answer."""

from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from digits import INPUT, OUTPUT, digits_data
from digits_targets import TARGETS, converted, manifest_for, subject
from edgepack.errors import EdgepackError, IntegrityError, UnsupportedError
from edgepack.manifest import Binding, Manifest, TensorSpec
from edgepack_targets import registry


def with_precision(target: str, execution: str) -> Manifest:
    manifest = manifest_for(target)
    wanted = msgspec.structs.replace(manifest.target, execution_precision=execution)
    return msgspec.structs.replace(manifest, target=wanted)


def test_openvino_runs_in_f32_although_the_cpu_may_prefer_less() -> None:
    one = subject("openvino")
    session = one.load()
    assert session.effective.precision == "f32"
    answers = session.run(one.first())[OUTPUT]
    # In bf16 the difference is around 1e-2.
    assert np.abs(answers - one.expected[OUTPUT][:1]).max() < 1e-4


@pytest.mark.parametrize("execution", ["bf16", "f16"])
def test_openvino_runs_in_what_was_asked_or_refuses(execution: str) -> None:
    target = registry.find("openvino")
    load = partial(target.load, converted("openvino"), with_precision("openvino", execution))
    import openvino as ov  # only now: the target has imported it in silence

    supported = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if {"bf16": "BF16", "f16": "FP16"}[execution] in supported:
        assert load().effective.precision == execution
        return
    with pytest.raises(UnsupportedError) as caught:
        load()
    assert caught.value.reason == "wrong_precision"


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_the_others_know_f32_only(target: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        registry.find(target).load(converted(target), with_precision(target, "bf16"))
    assert caught.value.reason == "wrong_precision"


@pytest.mark.parametrize("target", TARGETS)
def test_a_bundle_for_another_runtime_is_refused(target: str) -> None:
    other = manifest_for(TARGETS[TARGETS.index(target) - 1])
    with pytest.raises(UnsupportedError) as caught:
        registry.find(target).load(converted(target), other)
    assert caught.value.reason == "wrong_runtime"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_any_number_of_threads_decides_the_same(target: str, threads: int | None) -> None:
    one = subject(target)
    session = registry.find(target).load(one.model_dir, one.manifest, threads=threads)
    assert session.effective.threads == (threads or session.effective.threads)
    for image, expected in zip(digits_data()[1].head(8).inputs, one.expected[OUTPUT], strict=False):
        assert session.run({INPUT: image[None]})[OUTPUT].argmax() == expected.argmax()
    session.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.9])
def test_a_truncated_model_is_an_error_of_ours(target: str, place: float, tmp_path: Path) -> None:
    for file in converted(target).iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(
            data if file.suffix == ".bin" else data[: int(len(data) * place)]
        )
    with pytest.raises(IntegrityError):
        registry.find(target).describe(tmp_path)


def test_truncated_weights_of_openvino_are_an_error_too(tmp_path: Path) -> None:
    for file in converted("openvino").iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[:1000] if file.suffix == ".bin" else data)
    with pytest.raises(IntegrityError):
        registry.find("openvino").describe(tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(IntegrityError):
        registry.find("openvino").describe(tmp_path)


def tensor(name: str, shape: tuple[int, ...], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype, binding=Binding(native_name=name))


def two_inputs(path: Path) -> Path:
    """Write a model of two inputs of two types, without batch, and two outputs."""
    nodes = [
        helper.make_node("Cast", ["index"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "number"], ["sum"]),
        helper.make_node("ReduceMax", ["sum"], ["largest"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
         helper.make_tensor_value_info("index", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [2, 3]),
         helper.make_tensor_value_info("largest", TensorProto.FLOAT, [])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_several_inputs_outputs_types_and_no_batch(target: str, tmp_path: Path) -> None:
    runtime = registry.find(target)
    runtime.convert(two_inputs(tmp_path / "two.onnx"), "onnx", tmp_path)
    inputs, outputs = runtime.describe(tmp_path)
    assert {n.name: (n.shape, n.dtype) for n in inputs} == {
        "x": ((2, 3), "float32"), "index": ((3,), "int64")
    }  # fmt: skip
    assert {n.name: n.shape for n in outputs} == {"sum": (2, 3), "largest": ()}
    manifest = msgspec.structs.replace(
        manifest_for(target),
        inputs=(tensor("x", (2, 3)), tensor("index", (3,), "int64")),
        outputs=(tensor("largest", ()), tensor("sum", (2, 3))),
    )
    session = runtime.load(tmp_path, manifest)
    x, index = np.ones((2, 3), np.float32), np.array([5, 0, -5])
    answers = session.run({"index": index, "x": x})
    assert np.array_equal(answers["sum"], x + index)
    assert answers["largest"].shape == ()
    assert answers["largest"] == 6


def test_every_error_of_a_session_is_one_for_a_person() -> None:
    session = subject("onnx").load()
    with pytest.raises(EdgepackError) as caught:
        session.run({INPUT: np.zeros((1, 16, 16, 1), np.uint8)})
    text = caught.value.diagnostics()
    assert "uint8 (1, 16, 16, 1)" in text
    assert "image: float32 (1, 1, 16, 16)" in text
