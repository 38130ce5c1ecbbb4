"""The digits net converted for each target, and its manifest: what tests of runtimes share."""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from digits import INPUT, LABELS, OUTPUT, SIDE, digits_data, digits_onnx, digits_proto
from digits_tflite import digits_tflite
from edgepack.decoders import Softmax
from edgepack.manifest import (
    Agreement,
    Binding,
    Golden,
    Manifest,
    Preprocess,
    Provenance,
    Target,
    TensorSpec,
)
from edgepack_targets import registry
from edgepack_targets.conformance import Subject
from edgepack_targets.interface import Quantization

TARGETS = ("onnx", "openvino", "tflite")
"""The ones with a conversion of their own; `onnx-mobile` is built from `onnx`."""
DISTRIBUTIONS = {
    "onnx": "onnxruntime", "onnx-mobile": "onnxruntime", "openvino": "openvino",
    "tflite": "ai-edge-litert",
}  # fmt: skip
NATIVE = {
    "onnx": (None, OUTPUT), "onnx-mobile": (None, OUTPUT), "openvino": (None, OUTPUT),
    "tflite": ((0, 2, 3, 1), OUTPUT),
}  # fmt: skip


def manifest_for(target: str, precision: str = "fp32") -> Manifest:
    """Return the manifest of the digits net; the public layout is NCHW for every target."""
    permutation, output = NATIVE[target]
    return Manifest(
        schema="edgepack.bundle/v1",
        name="digits",
        version="1.0.0",
        build_id="0" * 16,
        task="classify",
        target=Target(
            runtime=target,
            min_runtime="1.0",
            precision=precision,
            execution_precision="f32",
        ),
        inputs=(
            TensorSpec(
                name=INPUT,
                shape=(1, 1, SIDE, SIDE),
                dtype="float32",
                layout="NCHW",
                binding=Binding(native_name=INPUT, permutation=permutation),
            ),
        ),
        outputs=(
            TensorSpec(
                name=OUTPUT, shape=(1, 10), dtype="float32", binding=Binding(native_name=output)
            ),
        ),
        agreement=Agreement(rule="top1", output=OUTPUT),
        golden=Golden(inputs="golden/inputs.npz", outputs="golden/outputs.npz", samples=8),
        provenance=Provenance(source_sha256="0" * 64, source_format="onnx"),
        files=(),
        preprocess=Preprocess(input=INPUT, color="gray"),
        postprocess=Softmax(output=OUTPUT, activation="softmax", top_k=3),
        labels=LABELS,
    )


def _directory() -> Path:
    """Return a new directory that goes when the process does."""
    path = mkdtemp(prefix="edgepack-digits-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@cache
def converted(target: str) -> Path:
    """Return a model directory of TARGET with the fp32 digits net."""
    home = _directory()
    if target == "onnx-mobile":
        registry.find(target).convert(converted("onnx") / "model.onnx", "onnx", home)
        return home
    source_format = "tflite" if target == "tflite" else "onnx"
    source = home / f"source.{source_format}"
    (digits_tflite if target == "tflite" else digits_onnx)(source)
    (home / "model").mkdir()
    registry.find(target).convert(source, source_format, home / "model")
    return home / "model"


@cache
def quantized(target: str) -> Path:
    """Return a model directory of TARGET with the int8 digits net."""
    out = _directory()
    one = subject(target)
    one.target.quantize(one.model_dir, out, Quantization("int8"), one.native_calibration())
    return out


@cache
def source_answers(count: int = 540) -> np.ndarray:
    """Return what ONNX's own reference evaluator, no runtime, answers to COUNT test digits."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(digits_proto().SerializeToString()))
    return evaluator.run(None, {INPUT: digits_data()[1].head(count).inputs})[0]


@cache
def subject(target: str) -> Subject:
    """Return TARGET with the digits net for the conformance suite."""
    train, test = digits_data()
    return Subject(
        target=registry.find(target),
        distribution=DISTRIBUTIONS[target],
        model_dir=converted(target),
        manifest=manifest_for(target),
        samples={INPUT: test.head(64).inputs},
        expected={OUTPUT: source_answers(64)},
        calibration={INPUT: train.head(200).inputs},
        base_dir=converted("onnx") if target == "onnx-mobile" else None,
    )
