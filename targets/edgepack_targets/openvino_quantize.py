"""Makes an OpenVINO model smaller: int8 and weight-only with NNCF, 16 bits by OpenVINO itself."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UnsupportedError
from edgepack_targets.extras import require
from edgepack_targets.interface import Quantization
from edgepack_targets.layers import require_layers
from edgepack_targets.openvino_graph import WITH_WEIGHTS, layers, rename
from edgepack_targets.openvino_session import describe
from edgepack_targets.quantization import needs_7_bits, translated
from edgepack_targets.samples import Samples
from edgepack_targets.silence import no_output, no_telemetry

with no_telemetry():
    import openvino as ov

__all__ = ["quantize"]

MAX_CALIBRATION = 300
BF16 = ("avx512_bf16", "amx_bf16")
"""CPU features of which one makes bf16 products; without, OpenVINO imitates or refuses them."""
GROUP = 32
"""Weights that share a scale in int4; onnxruntime's default too."""
SMALLEST_GROUP = 8
RECURRENT = {"LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell"}


def quantize(
    model_dir: Path,
    out_dir: Path,
    how: Quantization,
    calibration: Mapping[str, NDArray[Any]] | None,
) -> dict[str, Any]:
    """Write MODEL_DIR as HOW says to OUT_DIR; see `interface.Target`."""
    samples: Samples | None = None
    if how.precision == "int8":
        samples = Samples(describe(model_dir)[0], calibration, MAX_CALIBRATION, how.seed)
    if how.precision == "bf16":
        _require_bf16(how)
    model = ov.Core().read_model(model_dir / "model.xml")
    known = layers(model)
    require_layers(how.exclude, known)
    ignored = [n.get_friendly_name() for name in how.exclude for n in known[name].nodes]
    half = how.precision in {"fp16", "bf16"}
    if half:
        _require_16_bits(model)
    if samples is not None:
        model = _int8(model, how, samples, [*ignored, *_recurrent(model)])
    elif not half:
        model = _weights(model, how, ignored)
    rename(model)
    ov.save_model(model, out_dir / "model.xml", compress_to_fp16=half)
    used = ("openvino",) if half else ("nncf", "openvino")
    return {
        "method": _method(how),
        "samples": 0 if samples is None else len(samples),
        "seed": how.seed,
        "tools": {name: require(name, extra="packager", wanted_for=name) for name in used},
    }


def _int8(model: ov.Model, how: Quantization, samples: Samples, ignored: list[str]) -> ov.Model:
    with no_telemetry(), no_output(), translated("NNCF"):
        nncf = _nncf()
        from nncf.quantization import advanced_parameters as advanced

        extra = advanced.AdvancedQuantizationParameters(
            disable_bias_correction=how.bias_correction == "none",
            overflow_fix=advanced.OverflowFix.ENABLE
            if needs_7_bits(how)
            else advanced.OverflowFix.DISABLE,
        )
        if not how.per_channel:
            extra.weights_quantization_params = advanced.QuantizationParameters(per_channel=False)
        ranges = _ranges(how.ranges)
        if ranges is not None:
            extra.activations_range_estimator_params = ranges
        return nncf.quantize(
            model,
            nncf.Dataset(list(samples)),
            subset_size=len(samples),
            fast_bias_correction=how.bias_correction != "full",
            # NNCF smooths what it takes for a transformer, and only that.
            model_type=nncf.ModelType.TRANSFORMER if how.smooth else None,
            ignored_scope=_scope(nncf, ignored),
            advanced_parameters=extra,
        )


def _recurrent(model: ov.Model) -> list[str]:
    """Return the operators of MODEL that loop: OpenVINO 2026.4 answers 0 once they are int8."""
    return [n.get_friendly_name() for n in model.get_ops() if n.get_type_name() in RECURRENT]


def _weights(model: ov.Model, how: Quantization, ignored: list[str]) -> ov.Model:
    with no_telemetry(), no_output(), translated("NNCF"):
        nncf = _nncf()
        modes = nncf.CompressWeightsMode
        if how.precision == "w8":
            return nncf.compress_weights(
                model, mode=modes.INT8_SYM, ignored_scope=_scope(nncf, ignored)
            )
        from nncf.quantization import advanced_parameters as advanced

        # A layer whose inputs are no multiple of the group gets smaller groups, or 8 bits.
        smaller = advanced.AdvancedCompressionParameters(
            group_size_fallback_mode=advanced.GroupSizeFallbackMode.ADJUST,
            min_adjusted_group_size=SMALLEST_GROUP,
        )
        return nncf.compress_weights(
            model,
            mode=modes.INT4_SYM,
            group_size=GROUP,
            all_layers=True,
            ignored_scope=_scope(nncf, ignored),
            advanced_parameters=smaller,
        )


def _nncf() -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def _scope(nncf: Any, names: list[str]) -> Any:
    return nncf.IgnoredScope(names=names) if names else None


def _ranges(name: str) -> Any:
    """Return NNCF's parameters for ranges called NAME; None: its own choice."""
    from nncf.quantization import range_estimator

    known = range_estimator.RangeEstimatorParametersSet
    return {
        "default": None,
        "minmax": known.MINMAX,
        "entropy": known.HISTOGRAM,
        "percentile": known.MEAN_QUANTILE,
    }[name]


def _require_16_bits(model: ov.Model) -> None:
    """Refuse weights that OpenVINO would cut to the largest number of 16 bits, and not say so."""
    limit = np.finfo(np.float16).max
    for node in (n for n in model.get_ops() if n.get_type_name() in WITH_WEIGHTS):
        weight = node.input_value(1).get_node()
        if weight.get_type_name() == "Constant" and np.abs(weight.data).max(initial=0) > limit:
            raise UnsupportedError(
                f"the weights of `{node.get_friendly_name()}` do not fit into 16 bits",
                why=f"the largest is {np.abs(weight.data).max():.3g}, and 16 bits end at {limit}",
                fix="build it as fp32 or w8",
                reason="weights_too_large",
            )


def _require_bf16(how: Quantization) -> None:
    if set(BF16) & set(how.cpu_features):
        return
    raise UnsupportedError(
        "bf16 needs a CPU that multiplies bf16",
        why="other CPUs imitate it slowly or compute in f32, with other results",
        fix=f"require one of the CPU features {', '.join(BF16)}, or choose fp16",
        reason="no_cpu_feature",
    )


def _method(how: Quantization) -> str:
    if how.precision != "int8":
        return {
            "fp16": "openvino-float16-weights",
            "bf16": "openvino-float16-weights-bf16-execution",
            "w8": "nncf-weights-int8-sym",
            "w4": f"nncf-weights-int4-sym-group{GROUP}",
        }[how.precision]
    parts = {
        "7bit": needs_7_bits(how),
        "per-tensor": not how.per_channel,
        how.ranges: how.ranges != "default",
        "smooth": how.smooth,
        f"bias-{how.bias_correction}": how.bias_correction != "fast",
    }
    return "-".join(["nncf-ptq-int8", *(part for part, used in parts.items() if used)])
