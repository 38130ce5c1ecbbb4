"""A plain int8 route stores what the library stores when it is called as its manual says."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from digits import INPUT, digits_data, digits_onnx
from digits_targets import subject
from digits_tflite import digits_tflite
from edgepack_targets.interface import Quantization

COUNT = 200
FEATURES = pytest.mark.parametrize(
    "features",
    [
        pytest.param((), id="any-cpu", marks=pytest.mark.scale),
        pytest.param(("avx512_vnni",), id="vnni"),
    ],
)
Tensors = list[tuple[str, tuple[int, ...], bytes]]


def in_order(arrays: Iterator[NDArray[Any]]) -> Tensors:
    """Return ARRAYS in an order of their own: operators may be named and sorted otherwise."""
    return sorted((a.dtype.name, a.shape, a.tobytes()) for a in arrays)


def ours(target: str, out: Path, features: tuple[str, ...] = ()) -> Path:
    one = subject(target)
    how = Quantization("int8", cpu_features=features)
    one.target.quantize(one.model_dir, out, how, one.native_calibration())
    return out


def images() -> Iterator[dict[str, NDArray[np.float32]]]:
    for image in digits_data()[0].head(COUNT).inputs:
        yield {INPUT: image[None]}


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.images = images()

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self.images, None)


def onnx_weights(path: Path) -> Tensors:
    """Return every constant of the quantised model, scales and zero points included."""
    return in_order(numpy_helper.to_array(c) for c in onnx.load(path).graph.initializer)


@FEATURES
def test_onnx_is_what_onnxruntime_makes(features: tuple[str, ...], tmp_path: Path) -> None:
    source, prepared, raw = (tmp_path / f"{name}.onnx" for name in ("source", "prepared", "raw"))
    digits_onnx(source, batch=1)
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(raw), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        reduce_range=not features, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    weights = onnx_weights(raw)
    assert sum(kind == "int8" and len(shape) > 1 for kind, shape, _ in weights) == 3
    assert onnx_weights(ours("onnx", tmp_path, features) / "model.onnx") == weights


def openvino_weights(model: ov.Model) -> Tensors:
    """Return every constant of the quantised model, scales and ranges included."""
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant")
    return in_order(node.data for node in constants)


@FEATURES
def test_openvino_is_what_nncf_makes(features: tuple[str, ...], tmp_path: Path) -> None:
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    nncf.set_log_level(logging.ERROR)
    source = digits_onnx(tmp_path / "source.onnx")
    model = ov.convert_model(source, input=[1, 1, 16, 16])
    fix = OverflowFix.DISABLE if features else OverflowFix.ENABLE
    quantized = nncf.quantize(
        model, nncf.Dataset(list(images())), subset_size=COUNT,
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=fix),
    )  # fmt: skip
    ov.save_model(quantized, tmp_path / "raw.xml", compress_to_fp16=False)
    weights = openvino_weights(ov.Core().read_model(tmp_path / "raw.xml"))
    assert sum(kind == "int8" for kind, _, _ in weights) == 3
    mine = ours("openvino", tmp_path, features) / "model.xml"
    assert openvino_weights(ov.Core().read_model(mine)) == weights


def tflite_weights(data: bytes) -> Tensors:
    """Return the int8 weights and their scales; biases follow from the ranges of activations."""
    model = schema.ModelT.InitFromPackedBuf(data)
    stored = [t for t in model.subgraphs[0].tensors if model.buffers[t.buffer].data is not None]
    weights = [t for t in stored if t.type == schema.TensorType.INT8 and len(t.shape) > 1]
    values = [model.buffers[t.buffer].data.view(np.int8).reshape(t.shape) for t in weights]
    return in_order(iter([*values, *(t.quantization.scale for t in weights)]))


def test_tflite_is_what_ai_edge_quantizer_makes(tmp_path: Path) -> None:
    source = digits_tflite(tmp_path / "source.tflite")
    samples = [{INPUT: one[INPUT].transpose(0, 2, 3, 1)} for one in images()]
    with warnings.catch_warnings():
        # It warns of the memory that calibration takes.
        warnings.simplefilter("ignore", UserWarning)
        worker = quantizer.Quantizer(str(source))
        worker.load_quantization_recipe(recipe.static_wi8_ai8())
        ranges = worker.calibrate({"serving_default": samples}, num_threads=1)
        raw = bytes(worker.quantize(ranges, enable_progress_report=False).quantized_model)
    weights = tflite_weights(raw)
    assert sum(kind == "int8" for kind, _, _ in weights) == 3
    assert tflite_weights((ours("tflite", tmp_path) / "model.tflite").read_bytes()) == weights
