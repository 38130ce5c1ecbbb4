"""Every precision and every setting does what it says, in the file and in the answers."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from digits import INPUT, OUTPUT, accuracy, digits_data
from digits_targets import TARGETS, converted, manifest_for, quantized, source_answers, subject
from edgepack.errors import UnsupportedError
from edgepack_targets import registry
from edgepack_targets.interface import Quantization
from edgepack_targets.pipeline.feed import run_samples

BF16 = ("avx512_bf16",)
CASES = [(t, p) for t in TARGETS for p in registry.find(t).capability().precisions if p != "fp32"]
WEIGHTS = 165_584
DENSE = 165_440
"""Of these, in the two dense layers."""


@cache
def made(target: str, precision: str = "int8", **settings: Any) -> Path:
    out = Path(mkdtemp(prefix="edgepack-precision-"))
    one = subject(target)
    how = Quantization(precision, cpu_features=BF16, **settings)
    one.target.quantize(one.model_dir, out, how, one.native_calibration())
    return out


def answers(target: str, model_dir: Path, execution: str = "f32") -> np.ndarray:
    manifest = manifest_for(target)
    wanted = msgspec.structs.replace(manifest.target, execution_precision=execution)
    session = registry.find(target).load(
        model_dir, msgspec.structs.replace(manifest, target=wanted), threads=1
    )
    got = run_samples(session, manifest, {INPUT: digits_data()[1].inputs})[OUTPUT]
    session.close()
    return got


def distance(target: str, model_dir: Path) -> float:
    return float(np.abs(answers(target, model_dir) - source_answers()).mean())


def size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


@pytest.mark.parametrize(("target", "precision"), CASES)
def test_all_weights_are_stored_as_the_precision_says(target: str, precision: str) -> None:
    applied = registry.find(target).applied(made(target, precision))
    kind = {"fp16": "float16_weights", "bf16": "float16_weights", "int8": "int8_weights",
            "w8": "int8_weights", "w4": "int4_weights"}[precision]  # fmt: skip
    # Of onnxruntime's and NNCF's weight-only methods some or all know dense layers alone.
    assert applied[kind] in ((WEIGHTS, DENSE) if precision in {"w8", "w4"} else (WEIGHTS,))
    everything = applied["float_weights"] + applied["int8_weights"] + applied["int4_weights"]
    assert everything == WEIGHTS
    assert 0 <= applied["sparsity"] < 0.5


@pytest.mark.parametrize(("target", "precision"), CASES)
def test_a_precision_keeps_the_accuracy_for_its_size(target: str, precision: str) -> None:
    execution = "bf16" if precision == "bf16" else "f32"
    if execution == "bf16" and not cpu_has_bf16():
        pytest.skip("this CPU has no bf16")
    got = answers(target, made(target, precision), execution)
    labels = digits_data()[1].labels
    assert accuracy(got, labels) >= accuracy(source_answers(), labels) - 0.01
    share = size(made(target, precision)) / size(converted(target))
    largest = {"fp16": 0.53, "bf16": 0.53, "int8": 0.3, "w8": 0.3, "w4": 0.18}
    assert share < largest[precision]


@pytest.mark.parametrize("target", TARGETS)
def test_more_bits_are_closer_to_the_source(target: str) -> None:
    half, byte, nibble = (distance(target, made(target, p)) for p in ("fp16", "w8", "w4"))
    assert 0 < half < byte < nibble


def cpu_has_bf16() -> bool:
    import openvino as ov  # only now: the target has imported it in silence

    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_bf16_is_executed_in_bf16_and_not_only_stored() -> None:
    if not cpu_has_bf16():
        pytest.skip("this CPU has no bf16")
    model = made("openvino", "bf16")
    exact, rounded = (answers("openvino", model, p) for p in ("f32", "bf16"))
    # bf16 has 8 bits of mantissa: two digits of 60 at most.
    assert 1e-3 < np.abs(exact - rounded).max() < 1


def test_bf16_without_a_cpu_that_has_it_is_refused(tmp_path: Path) -> None:
    one = subject("openvino")
    with pytest.raises(UnsupportedError) as caught:
        one.target.quantize(one.model_dir, tmp_path, Quantization("bf16"))
    assert caught.value.reason == "no_cpu_feature"
    assert "avx512_bf16" in caught.value.fix


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["fp16", "w8", "w4"])
def test_only_static_int8_needs_samples(target: str, precision: str, tmp_path: Path) -> None:
    one = subject(target)
    done = one.target.quantize(one.model_dir, tmp_path, Quantization(precision))
    assert done["samples"] == 0
    assert done["method"]


SETTINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"method": "dynamic"},
    "per_tensor": {"per_channel": False},
    "entropy": {"ranges": "entropy"},
    "percentile": {"ranges": "percentile"},
    "smooth": {"smooth": True},
    "bias_full": {"bias_correction": "full"},
    "bias_none": {"bias_correction": "none"},
    "int8_io": {"io": "int8"},
}
OPTIONS = [(t, o) for t in TARGETS for o in SETTINGS if o in registry.find(t).capability().options]


@pytest.mark.parametrize(("target", "option"), OPTIONS)
def test_a_setting_changes_the_model_and_keeps_it_good(target: str, option: str) -> None:
    plain, changed = made(target), made(target, **SETTINGS[option])
    names = {file.name for file in plain.iterdir()}
    assert any((plain / n).read_bytes() != (changed / n).read_bytes() for n in names)
    labels = digits_data()[1].labels
    assert accuracy(answers(target, changed), labels) > 0.95


def test_min_max_is_what_it_says_and_the_default_where_the_name_says_so() -> None:
    for target in ("onnx", "tflite"):
        assert same(made(target), made(target, ranges="minmax"))
    # NNCF takes the mean of each sample's range, which clips.
    assert not same(made("openvino"), made("openvino", ranges="minmax"))
    wide = distance("openvino", made("openvino", ranges="minmax"))
    assert wide < distance("openvino", made("openvino")) / 2


def same(one: Path, other: Path) -> bool:
    return all(f.read_bytes() == (other / f.name).read_bytes() for f in one.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_per_tensor_has_one_scale_where_per_channel_has_many(target: str) -> None:
    # One scale for all leaves more small weights at zero.
    applied = registry.find(target).applied
    one, many = applied(made(target, per_channel=False)), applied(made(target))
    assert one["sparsity"] > many["sparsity"] * 1.2
    assert size(made(target, per_channel=False)) < size(made(target))


@pytest.mark.parametrize("target", ["onnx", "tflite"])
def test_dynamic_int8_calibrates_nothing(target: str, tmp_path: Path) -> None:
    one = subject(target)
    done = one.target.quantize(one.model_dir, tmp_path, Quantization("int8", method="dynamic"))
    assert done["samples"] == 0
    assert one.target.applied(tmp_path)["int8_share"] > 0.99
    # In onnxruntime convolutions stay in float: integers are slower there.
    assert one.target.applied(tmp_path)["float_weights"] == (144 if target == "onnx" else 0)


def test_int8_inputs_and_outputs_are_the_files_and_not_the_publics() -> None:
    model = made("tflite", io="int8")
    inputs, outputs = registry.find("tflite").describe(model)
    assert {n.dtype for n in (*inputs, *outputs)} == {"int8"}
    got = answers("tflite", model)
    assert got.dtype == np.float32
    # The same steps as in the model that does this itself.
    assert np.abs(got - answers("tflite", made("tflite"))).max() < 1e-4


def test_int8_publics_reach_an_int8_model_as_they_are() -> None:
    model, plain = made("tflite", io="int8"), manifest_for("tflite")
    manifest = msgspec.structs.replace(
        plain,
        inputs=tuple(msgspec.structs.replace(s, dtype="int8") for s in plain.inputs),
        outputs=tuple(msgspec.structs.replace(s, dtype="int8") for s in plain.outputs),
    )
    session = registry.find("tflite").load(model, manifest)
    test = digits_data()[1].head(50)
    steps = (test.images.astype(np.int16) - 128).astype(np.int8)[:, None]
    got = run_samples(session, manifest, {INPUT: steps})[OUTPUT]
    assert got.dtype == np.int8
    assert (got.argmax(axis=1) == source_answers()[:50].argmax(axis=1)).mean() > 0.9


def test_values_outside_the_calibrated_range_are_clipped_not_wrapped() -> None:
    session = registry.find("tflite").load(made("tflite", io="int8"), manifest_for("tflite"))
    image = digits_data()[1].inputs[:1]
    ordinary = session.run({INPUT: image})[OUTPUT]
    assert np.array_equal(session.run({INPUT: np.where(image == 1, 1e9, image)})[OUTPUT], ordinary)
    session.run({INPUT: np.full_like(image, np.nan)})


MEANINGLESS = [
    ("fp16", {"per_channel": False}),
    ("fp16", {"ranges": "minmax"}),
    ("w8", {"method": "dynamic"}),
    ("w4", {"per_channel": False}),
    ("w8", {"io": "int8"}),
    ("int8", {"method": "dynamic", "ranges": "minmax"}),
    ("int8", {"method": "dynamic", "io": "int8"}),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("precision", "settings"), MEANINGLESS)
def test_a_setting_that_would_change_nothing_is_refused(
    target: str, precision: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    one = subject(target)
    with pytest.raises(UnsupportedError) as caught:
        one.target.quantize(one.model_dir, tmp_path, Quantization(precision, **settings))
    assert caught.value.reason == "no_option"
    assert not list(tmp_path.iterdir())


def convolutional(path: Path) -> Path:
    """Write a model without a dense layer, and without one that has a constant weight."""
    dice = np.random.default_rng(0)
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"], axis=1),
    ]
    shape = [1, 4, 6, 6]
    weight = numpy_helper.from_array(dice.normal(size=(4, 4, 1, 1)).astype(np.float32), "w")
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], [weight],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize(
    ("target", "how"),
    [
        ("onnx", Quantization("w4")),
        ("onnx", Quantization("w8")),
        ("onnx", Quantization("int8", method="dynamic")),
        ("openvino", Quantization("w4")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.precision}-{value.method}",
)
def test_a_model_with_nothing_to_quantise_is_an_error(
    target: str, how: Quantization, tmp_path: Path
) -> None:
    runtime = registry.find(target)
    runtime.convert(convolutional(tmp_path / "source.onnx"), "onnx", tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError) as caught:
        runtime.quantize(tmp_path, tmp_path / "out", how)
    assert caught.value.reason == "nothing_quantized"


@pytest.mark.parametrize("settings", [{"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"bias": False}])
def test_any_dense_layer_of_onnx_becomes_4_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    dice = np.random.default_rng(1)
    weight = dice.normal(size=(64, 48)).astype(np.float32)
    turned = np.ascontiguousarray(weight.T) if settings.get("transB") else weight
    names = ["x", "w", "b"] if settings.pop("bias", True) else ["x", "w"]
    bias = dice.normal(size=48).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", names, ["y"], **settings)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 48])],
        [numpy_helper.from_array(turned, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "source.onnx")
    runtime = registry.find("onnx")
    out = tmp_path / "out"
    out.mkdir()
    runtime.convert(tmp_path / "source.onnx", "onnx", tmp_path)
    runtime.quantize(tmp_path, out, Quantization("w8"))
    assert runtime.applied(out)["int8_weights"] == 64 * 48
    samples = {"x": dice.normal(size=(20, 64)).astype(np.float32)}
    (layer,) = runtime.diagnose(tmp_path, out, samples)
    assert 0 < layer.loss < 0.02


def test_int8_of_the_digits_is_the_default() -> None:
    assert same(quantized("tflite"), made("tflite"))
