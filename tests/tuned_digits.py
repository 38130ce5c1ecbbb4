"""Two versions of the digits net, and each as the files that devices run: for patches.

A version is trained on the first; the next is that one tuned further: everything a little
(`tuned`), the last layer only (`head`), or trained anew (`anew`).
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from digits import INPUT, Floats, Net, _features, _filters, digits_data, digits_proto
from digits_tflite import digits_tflite

KINDS = ("tuned", "head", "anew")
EPOCHS = 12
RATE = 1e-5
"""Of learning, when everything is tuned a little."""


@cache
def _fitted(hidden: int, seed: int) -> MLPClassifier:
    mlp = MLPClassifier((hidden,), random_state=seed)
    train = digits_data()[0]
    features = _features(train.inputs)
    with threadpool_limits(1):
        for _ in range(EPOCHS):
            mlp.partial_fit(features, train.labels, classes=np.arange(10))
    return mlp


def net(hidden: int, kind: str = "") -> Net:
    """Return the first version, or the next one of KIND."""
    first = _fitted(hidden, 1)
    if kind == "anew":
        return _net(_fitted(hidden, 2))
    if not kind:
        return _net(first)
    mlp = copy.deepcopy(first)
    mlp._optimizer.learning_rate_init = mlp._optimizer.learning_rate = RATE
    train = digits_data()[0]
    noise = np.random.default_rng(0).normal(0, 0.3, (len(train.labels), first.n_features_in_))
    features = _features(train.inputs) + noise
    with threadpool_limits(1):
        for _ in range(5):
            mlp.partial_fit(features, train.labels)
    tuned = _net(mlp)
    return tuned if kind == "tuned" else replace(_net(first), out=tuned.out)


def _net(mlp: MLPClassifier) -> Net:
    (hidden, out), (hidden_bias, out_bias) = mlp.coefs_, mlp.intercepts_
    conv = _filters().reshape(-1, 1, 3, 3)
    weights = (conv, np.zeros(len(conv)), hidden, hidden_bias, out, out_bias)
    return Net(*(np.ascontiguousarray(w, dtype=np.float32) for w in weights))


def files(home: Path, version: Net) -> dict[str, Path]:
    """Write VERSION below HOME in every format and return the files by format and precision."""
    home.mkdir(parents=True, exist_ok=True)
    found = {name: home / name for name in ("fp32.onnx", "int8.onnx", "fp32.tflite")}
    proto = digits_proto(batch=1, net=version)
    found["fp32.onnx"].write_bytes(proto.SerializeToString(deterministic=True))
    quantize_static(
        found["fp32.onnx"],
        found["int8.onnx"],
        _Calibration(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    digits_tflite(found["fp32.tflite"], net=version)
    ov.save_model(ov.convert_model(found["fp32.onnx"]), home / "fp16.xml", compress_to_fp16=True)
    return found | {"fp16.bin": home / "fp16.bin"}


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Some training inputs, one at a time."""

    def __init__(self) -> None:
        self._inputs: Iterator[Floats] = iter(digits_data()[0].head(50).inputs)

    def get_next(self) -> dict[str, Floats] | None:
        image = next(self._inputs, None)
        return None if image is None else {INPUT: image[None]}
