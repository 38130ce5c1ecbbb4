"""int8 on every target: nearly as good as fp32, about a quarter of its size."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from digits import INPUT, OUTPUT, accuracy, digits_data
from digits_targets import TARGETS, converted, manifest_for, quantized, source_answers, subject
from edgepack_targets import registry
from edgepack_targets.interface import Quantization
from edgepack_targets.pipeline.feed import run_samples

MAX_DROP = 0.01
MAX_SHARE = 0.35


@cache
def measured(target: str, model_dir: Path, precision: str) -> float:
    manifest = manifest_for(target, precision)
    session = registry.find(target).load(model_dir, manifest, threads=1)
    test = digits_data()[1]
    answers = run_samples(session, manifest, {INPUT: test.inputs})
    session.close()
    return accuracy(answers[OUTPUT], test.labels)


def size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_fp32_is_as_good_as_the_source(target: str) -> None:
    source = accuracy(source_answers(), digits_data()[1].labels)
    assert source > 0.93
    assert measured(target, converted(target), "fp32") == pytest.approx(source, abs=1e-9)


@pytest.mark.parametrize("target", TARGETS)
def test_int8_is_within_one_point(target: str) -> None:
    fp32 = measured(target, converted(target), "fp32")
    int8 = measured(target, quantized(target), "int8")
    assert int8 >= fp32 - MAX_DROP


@pytest.mark.parametrize("target", TARGETS)
def test_int8_is_small_and_says_what_it_is(target: str) -> None:
    assert size(quantized(target)) <= MAX_SHARE * size(converted(target))
    plain = registry.find(target).applied(converted(target))
    int8 = registry.find(target).applied(quantized(target))
    assert plain["float_weights"] > 150_000
    assert plain["int8_weights"] == plain["quantized_operators"] == 0
    assert int8["int8_weights"] == plain["float_weights"]
    assert int8["float_weights"] == 0
    # One convolution, one pooling and two dense layers at least.
    assert 4 <= int8["quantized_operators"] <= int8["operators"]


@pytest.mark.parametrize(
    ("features", "method", "highest"),
    [((), "static-qdq-u8s8-7bit", 64), (("avx512_vnni",), "static-qdq-u8s8", 127)],
)
def test_onnx_weights_have_7_bits_unless_vnni_is_required(
    features: tuple[str, ...], method: str, highest: int, tmp_path: Path
) -> None:
    one = subject("onnx")
    how = Quantization("int8", cpu_features=features)
    done = one.target.quantize(one.model_dir, tmp_path, how, one.native_calibration())
    assert done["method"] == method
    weights = [
        numpy_helper.to_array(weight)
        for weight in onnx.load(tmp_path / "model.onnx").graph.initializer
        if weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) > 1
    ]
    assert max(int(np.abs(weight.astype(np.int16)).max()) for weight in weights) == highest


@pytest.mark.parametrize("target", TARGETS)
def test_all_targets_decide_alike(target: str) -> None:
    manifest = manifest_for(target, "int8")
    session = registry.find(target).load(quantized(target), manifest, threads=1)
    answers = run_samples(session, manifest, {INPUT: digits_data()[1].head(100).inputs})
    same = answers[OUTPUT].argmax(axis=1) == source_answers()[:100].argmax(axis=1)
    assert same.mean() >= 0.98
