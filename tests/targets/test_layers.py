"""Which layers lose the accuracy: found by name on the hard net, and cured by that name."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from digits import INPUT, OUTPUT, accuracy, digits_data
from digits_targets import TARGETS, converted, manifest_for, quantized, subject
from edgepack.errors import UsageError
from edgepack_targets import registry
from edgepack_targets.interface import Layer, Quantization
from edgepack_targets.layers import WORST, Losses
from edgepack_targets.pipeline.feed import run_samples
from hard_digits import hard_digits_onnx, hard_digits_tflite

SECOND_DENSE = {
    "onnx": "edgepack.Gemm_6",
    "openvino": "logits",
    "tflite": "StatefulPartitionedCall:0",
}
KINDS = ("half", "none", "nan", "born", "dead")
DYNAMIC = {"method": "dynamic"}


@cache
def hard(target: str) -> Path:
    """Return the hard net as TARGET's fp32 model."""
    home = Path(mkdtemp(prefix="edgepack-hard-"))
    form = "tflite" if target == "tflite" else "onnx"
    source = (hard_digits_tflite if form == "tflite" else hard_digits_onnx)(home / f"hard.{form}")
    (home / "fp32").mkdir()
    registry.find(target).convert(source, form, home / "fp32")
    return home / "fp32"


def score(target: str, model_dir: Path) -> float:
    manifest, test = manifest_for(target), digits_data()[1]
    session = registry.find(target).load(model_dir, manifest, threads=1)
    got = run_samples(session, manifest, {INPUT: test.inputs})[OUTPUT]
    session.close()
    return accuracy(got, test.labels)


@cache
def made(target: str, **settings: Any) -> Path:
    out = Path(mkdtemp(prefix="edgepack-hard-"))
    calibration = subject(target).native_calibration()
    how = Quantization("int8", **settings)
    registry.find(target).quantize(hard(target), out, how, calibration)
    return out


@cache
def lost(target: str) -> list[Layer]:
    samples = {n: a[:32] for n, a in subject(target).native_calibration().items()}
    return registry.find(target).diagnose(hard(target), made(target), samples)


@pytest.mark.parametrize("target", TARGETS)
def test_plain_int8_spoils_the_hard_net(target: str) -> None:
    assert score(target, hard(target)) - score(target, made(target)) >= 0.03


@pytest.mark.parametrize("target", TARGETS)
def test_the_layer_that_loses_it_comes_first_by_far(target: str) -> None:
    worst, *others = lost(target)
    assert worst.name == SECOND_DENSE[target]
    assert worst.operator in {"Gemm", "MatMul", "FULLY_CONNECTED"}
    assert worst.loss > 10 * others[0].loss


@pytest.mark.parametrize(
    ("target", "settings"),
    [("onnx", {}), ("onnx", DYNAMIC), ("openvino", {}), ("tflite", DYNAMIC)],
    ids=str,
)
def test_excluding_it_by_its_name_recovers_the_accuracy(
    target: str, settings: dict[str, Any]
) -> None:
    cured = made(target, exclude=(lost(target)[0].name,), **settings)
    assert score(target, hard(target)) - score(target, cured) <= 0.005
    # Only the small layer stays in float.
    assert registry.find(target).applied(cured)["float_weights"] <= 1600 + 144


def test_smoothing_recovers_it_on_openvino() -> None:
    assert (
        score("openvino", hard("openvino")) - score("openvino", made("openvino", smooth=True))
        <= 0.005
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_layer_can_be_excluded(target: str) -> None:
    one = registry.find(target)
    for layer in one.diagnose(converted(target), quantized(target), few(target)):
        how = Quantization("int8", exclude=(layer.name,))
        out = Path(mkdtemp(prefix="edgepack-layer-"))
        one.quantize(converted(target), out, how, few(target))
        after = one.applied(out)["quantized_operators"]
        assert 0 < after <= one.applied(quantized(target))["quantized_operators"]


def few(target: str) -> dict[str, np.ndarray]:
    return {name: array[:8] for name, array in subject(target).native_calibration().items()}


NAMES = """
import sys
from pathlib import Path
import numpy as np
from edgepack_targets import registry
name, form, source, out = sys.argv[1:]
target, out = registry.find(name), Path(out)
out.mkdir()
target.convert(Path(source), form, out)
shape = target.describe(out)[0][0].shape
samples = {target.describe(out)[0][0].name: np.ones((2, *shape[1:]), np.float32)}
print(*[layer.name for layer in target.diagnose(out, out, samples)], sep="\\n")
"""


@pytest.mark.parametrize("target", TARGETS)
def test_names_are_the_same_in_every_process(target: str, tmp_path: Path) -> None:
    form = "tflite" if target == "tflite" else "onnx"
    source = hard(target).parent / f"hard.{form}"
    seen = []
    for name in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", NAMES, target, form, str(source), str(tmp_path / name)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen.append(done.stdout.split())
    assert seen[0] == seen[1]
    assert SECOND_DENSE[target] in seen[0]


def test_openvino_calls_layers_what_the_source_does() -> None:
    named = {layer.name: layer.operator for layer in lost("openvino")}
    assert named["maps"] == "Convolution"
    assert named["dense"] == named["logits"] == "MatMul"
    assert named["pooled"] == "MaxPool"


def test_a_layer_that_was_fused_into_the_next_is_excluded_with_it(tmp_path: Path) -> None:
    """onnxruntime makes one Gemm of a MatMul and the Add after it."""
    dice = np.random.default_rng(0)
    weights = {
        "w": dice.normal(size=(8, 8)).astype(np.float32),
        "b": dice.normal(size=8).astype(np.float32),
        "v": dice.normal(size=(8, 8)).astype(np.float32),
    }
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["s"]),
         helper.make_node("Relu", ["s"], ["r"]), helper.make_node("MatMul", ["r", "v"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "s.onnx"
    )
    runtime = registry.find("onnx")
    runtime.convert(tmp_path / "s.onnx", "onnx", tmp_path)
    for name in ("edgepack.MatMul_0", "edgepack.Add_1"):
        out = tmp_path / name
        out.mkdir()
        samples = {"x": dice.normal(size=(20, 8)).astype(np.float32)}
        runtime.quantize(tmp_path, out, Quantization("int8", exclude=(name,)), samples)
        assert runtime.applied(out)["float_weights"] == 64


@pytest.mark.parametrize("target", TARGETS)
def test_an_unknown_layer_is_answered_with_those_that_are_there(
    target: str, tmp_path: Path
) -> None:
    one = subject(target)
    how = Quantization("int8", exclude=("no-such-layer",))
    with pytest.raises(UsageError, match="no-such-layer") as caught:
        one.target.quantize(one.model_dir, tmp_path, how, one.native_calibration())
    assert caught.value.reason == "unknown_layer"
    assert SECOND_DENSE[target] in caught.value.why


@pytest.mark.parametrize("target", TARGETS)
def test_samples_that_do_not_fit_are_an_error(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        registry.find(target).diagnose(converted(target), quantized(target), {})
    assert caught.value.reason == "bad_calibration"


def test_a_loss_is_a_share_and_always_a_number() -> None:
    losses = Losses()
    one = np.full((2, 2), 4, np.float32)
    for name, other in (("half", one / 2), ("none", one), ("nan", one * np.nan)):
        losses.add(name, one, other)
        losses.add(name, one, other)
    losses.add("born", one * 0, one * 1e-9)
    losses.add("dead", one * 0, one * 0)
    losses.add("other shape", one, one[:1])
    found = {layer.name: layer.loss for layer in losses.worst_first(dict.fromkeys(KINDS, "Op"))}
    assert found == {"nan": WORST, "born": 1, "half": pytest.approx(0.5), "none": 0, "dead": 0}
