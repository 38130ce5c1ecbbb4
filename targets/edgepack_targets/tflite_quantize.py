"""Makes a TFLite model smaller with ai-edge-quantizer: one recipe per precision.

Ranges of activations are the smallest and largest value that calibration saw. The quantiser's
own choice, a moving average of each sample's range, clips what is above average: measured on
the digits net it puts the outputs 0.234 away from fp32 on average, min/max 0.033. On an untrained
Keras net of two outputs the lowest cosine to fp32 is 0.9895 and 0.9987 with it, and 0.9999 and
0.9998 with min/max.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ai_edge_quantizer import calibrator, qtyping, quantizer
from ai_edge_quantizer.utils import qsv_utils
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack_targets.extras import require
from edgepack_targets.interface import Quantization
from edgepack_targets.layers import require_layers
from edgepack_targets.quantization import translated
from edgepack_targets.samples import Samples
from edgepack_targets.silence import no_output
from edgepack_targets.tflite_graph import scopes
from edgepack_targets.tflite_session import describe, open_model

__all__ = ["quantize"]

FILE = "model.tflite"
MAX_CALIBRATION = 300
ALL = qtyping.TFLOperationName.ALL_SUPPORTED
NOT = quantizer.AlgorithmName.NO_QUANTIZE
METHODS = {
    "fp16": "ai-edge-float16-weights",
    "w8": "ai-edge-weight-only-wi8",
    "w4": "ai-edge-weight-only-wi4",
    "dynamic": "ai-edge-dynamic-wi8",
    "static": "ai-edge-static-wi8-ai8",
}


def quantize(
    model_dir: Path,
    out_dir: Path,
    how: Quantization,
    calibration: Mapping[str, NDArray[Any]] | None,
) -> dict[str, Any]:
    """Write MODEL_DIR as HOW says to OUT_DIR; see `interface.Target`."""
    source = model_dir / FILE
    kind = how.method if how.precision == "int8" else how.precision
    samples: Samples | None = None
    if kind == "static":
        samples = Samples(describe(model_dir)[0], calibration, MAX_CALIBRATION, how.seed)
    if kind == "static" and how.io == "float":
        _require_single_outputs(source)
    known = scopes(source)
    require_layers(how.exclude, known)
    with _quiet(), translated("ai-edge-quantizer"):
        worker = quantizer.Quantizer(str(source))
        _configure(worker, kind, how)
        for name in how.exclude:
            worker.update_quantization_recipe(f"^{re.escape(known[name])}$", ALL, None, NOT)
        ranges = None if samples is None else _calibrate(worker, source, samples)
        result = worker.quantize(ranges, enable_progress_report=False)
    (out_dir / FILE).write_bytes(bytes(result.quantized_model))
    names = ("ai-edge-quantizer", "ai-edge-litert")
    return {
        "method": METHODS[kind] + ("" if how.per_channel else "-per-tensor"),
        "samples": 0 if samples is None else len(samples),
        "seed": how.seed,
        "tools": {name: require(name, extra="packager", wanted_for=name) for name in names},
    }


def _require_single_outputs(source: Path) -> None:
    """Refuse a tensor that is two outputs: one of them would be left without a value."""
    indexes = [detail["index"] for detail in open_model(source, 1).get_output_details()]
    if len(set(indexes)) < len(indexes):
        raise UnsupportedError(
            "two outputs of this TFLite model are one tensor",
            why="the quantiser gives floats to only one of them",
            fix="export the model with one of them, or quantise it with int8 outputs",
            reason="shared_output",
        )


def _configure(worker: quantizer.Quantizer, kind: str, how: Quantization) -> None:
    """Tell WORKER the recipe for all operators that it knows."""
    grains = qtyping.QuantGranularity
    grain = grains.CHANNELWISE if how.per_channel else grains.TENSORWISE
    match kind:
        case "fp16":
            worker.update_quantization_recipe(
                ".*", ALL, _float16(), quantizer.AlgorithmName.FLOAT_CASTING
            )
        case "w8" | "w4":
            worker.add_weight_only_config(".*", ALL, int(kind[1:]), grain)
        case "dynamic":
            worker.add_dynamic_config(".*", ALL, 8, grain)
        case _:
            worker.add_static_config(".*", ALL, 8, 8, grain)
            # LiteRT takes a stack of weights with a scale per channel, and multiplies it wrongly.
            stack = qtyping.TFLOperationName.BATCH_MATMUL
            worker.add_static_config(".*", stack, 8, 8, grains.TENSORWISE)
            if how.io == "float":
                for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                    worker.update_quantization_recipe(".*", side, algorithm_key=NOT)


def _float16() -> qtyping.OpQuantizationConfig:
    return qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )


def _calibrate(worker: quantizer.Quantizer, source: Path, samples: Samples) -> dict[str, Any]:
    """Return the ranges of all tensors over SAMPLES: their minima and maxima."""
    # `Quantizer.calibrate` takes no rule for the update; it does just this with its own.
    seen = calibrator.Calibrator(
        str(source), num_threads=1, qsv_update_func=qsv_utils.min_max_update
    )
    seen.calibrate({_signature(source): list(samples)}, worker._recipe_manager)  # noqa: SLF001
    ranges: dict[str, Any] = seen.get_model_qsvs()
    return ranges


def _signature(path: Path) -> str:
    """Return the one signature of PATH, by which its inputs are fed."""
    signatures: dict[str, Any] = open_model(path, 1).get_signature_list()
    if not signatures:
        raise UnsupportedError(
            "this TFLite model cannot be quantised",
            why="it has no signature, and the quantiser finds its inputs by one",
            fix="export it again from a SavedModel",
            reason="no_signature",
        )
    return next(iter(signatures))


@contextmanager
def _quiet() -> Iterator[None]:
    with no_output(), warnings.catch_warnings():
        # It warns of the memory that calibration takes: it has to keep all tensors.
        warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`")
        yield
