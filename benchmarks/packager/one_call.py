"""Do one conversion in a fresh process and say where its time went; started by raw_calls.py.

    python one_call.py raw|ours|olive ROUTE ARGS.json START

START is CLOCK_MONOTONIC when the process was asked for. Prints JSON: seconds of `start`,
`imports` and `call`. A `raw` route is what the library's manual says, and nothing else; it knows
nothing of edgepack, so that it also runs in environments where that is not installed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Call = Callable[[], None]
Args = dict[str, Any]


def openvino_fp32(args: Args) -> Call:
    import openvino as ov

    def call() -> None:
        model = ov.convert_model(args["source"])
        ov.save_model(model, args["out"] + "/model.xml", compress_to_fp16=False)

    return call


def openvino_int8(args: Args) -> Call:
    import logging

    import nncf
    import numpy as np
    import openvino as ov
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    def call() -> None:
        nncf.set_log_level(logging.ERROR)
        samples = list(_samples(np, args))
        quantized = nncf.quantize(
            ov.Core().read_model(args["fp32"] + "/model.xml"),
            nncf.Dataset(samples),
            subset_size=len(samples),
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
        )
        ov.save_model(quantized, args["out"] + "/model.xml", compress_to_fp16=False)

    return call


def onnx_int8(args: Args) -> Call:
    import numpy as np
    import onnx  # noqa: F401  the quantiser imports it when it is called
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = _samples(np, args)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.samples, None)

    def call() -> None:
        prepared = args["out"] + "/prepared.onnx"
        quant_pre_process(args["fp32"] + "/model.onnx", prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, args["out"] + "/model.onnx", Reader(), quant_format=QuantFormat.QDQ,
            per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip

    return call


def tflite_fp32(args: Args) -> Call:
    import tensorflow as tf

    def call() -> None:
        converter = tf.lite.TFLiteConverter.from_saved_model(args["source"])
        Path(args["out"], "model.tflite").write_bytes(converter.convert())

    return call


def tflite_int8(args: Args) -> Call:
    import warnings

    import numpy as np
    from ai_edge_quantizer import qtyping, quantizer, recipe

    def call() -> None:
        warnings.simplefilter("ignore")
        worker = quantizer.Quantizer(args["fp32"] + "/model.tflite")
        worker.load_quantization_recipe(recipe.static_wi8_ai8())
        for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            worker.update_quantization_recipe(
                ".*", side, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE
            )
        ranges = worker.calibrate({"serving_default": list(_samples(np, args))}, num_threads=1)
        result = worker.quantize(ranges, enable_progress_report=False)
        Path(args["out"], "model.tflite").write_bytes(bytes(result.quantized_model))

    return call


def tflite_int8_converter(args: Args) -> Call:
    """Quantise with TensorFlow's own converter, from the SavedModel."""
    import numpy as np
    import tensorflow as tf

    def call() -> None:
        converter = tf.lite.TFLiteConverter.from_saved_model(args["source"])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: _samples(np, args)
        Path(args["out"], "model.tflite").write_bytes(converter.convert())

    return call


def olive_onnx_int8(args: Args) -> Call:
    import numpy as np
    from olive.data.registry import Registry
    from olive.workflows import run

    class Dataset:
        def __init__(self) -> None:
            self.samples = list(_samples(np, args))

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            return {name: array[0] for name, array in self.samples[index].items()}, 0

    @Registry.register_dataset(name="calibration")
    def calibration(**_: Any) -> Dataset:
        return Dataset()

    settings = {
        "type": "OnnxStaticQuantization", "data_config": "calibration", "quant_format": "QDQ",
        "per_channel": True, "reduce_range": True, "precision": "int8",
        "activation_type": "uint8", "calibrate_method": "MinMax",
    }  # fmt: skip
    config = {
        "input_model": {"type": "ONNXModel", "model_path": args["fp32"] + "/model.onnx"},
        "data_configs": [
            {"name": "calibration", "load_dataset_config": {"type": "calibration"},
             "dataloader_config": {"batch_size": 1}},
        ],
        "passes": {"quantization": settings},
        "output_dir": args["out"],
        "cache_dir": args["out"] + "/cache",
        "log_severity_level": 4,
    }  # fmt: skip
    return lambda: run(config)


def ours(route: str, args: Args) -> Call:
    """Return the very step that a worker of `edgepack build` runs."""
    from importlib import import_module

    # What the step imports when it needs it, so that imports are counted as such on both sides.
    for module in PRELOADED[route]:
        import_module(module)
    module, _, name = args["step"].partition(".")
    function = getattr(import_module(f"edgepack_packager.workers.{module}"), name)
    return lambda: function(args["args"], Path(args["out"]), lambda _: None)


def _samples(np: Any, args: Args) -> Iterator[dict[str, Any]]:
    with np.load(args["calibration"]) as arrays:
        loaded = dict(arrays)
    for index in range(len(next(iter(loaded.values())))):
        yield {name: array[index : index + 1] for name, array in loaded.items()}


PRELOADED = {
    "openvino_fp32": ["edgepack_targets.openvino_host", "edgepack_targets.openvino_convert"],
    "openvino_int8": ["edgepack_targets.openvino_quantize", "nncf"],
    "onnx_fp32": ["edgepack_targets.onnx_host", "edgepack_targets.onnx_convert"],
    "onnx_int8": ["edgepack_targets.onnx_host", "edgepack_targets.onnx_quantize"],
    "tflite_fp32": ["tensorflow"],
    "tflite_int8": ["edgepack_targets.tflite_host", "edgepack_targets.tflite_quantize"],
}


def main(side: str, route: str, path: str, start: str) -> None:
    begun = time.monotonic()
    args = json.loads(Path(path).read_text())
    if side == "ours":
        call = ours(route, args)
    else:
        call = globals()[f"olive_{route}" if side == "olive" else route](args)
    imported = time.monotonic()
    call()
    done = time.monotonic()
    seconds = {"start": begun - float(start), "imports": imported - begun, "call": done - imported}
    sys.stdout.write("\n" + json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
