"""Whether a target can express what was asked of quantisation. Pure; quantises nothing."""

from edgepack.errors import UnsupportedError
from edgepack_targets.interface import Applied, Capability, Quantization

__all__ = ["require_effect", "require_expressible", "wanted_options"]


def wanted_options(how: Quantization) -> frozenset[str]:
    """Return what HOW needs of `Capability.options`: everything that is not the default."""
    wanted = {
        "dynamic": how.method == "dynamic",
        "per_tensor": not how.per_channel,
        how.ranges: how.ranges != "default",
        "smooth": how.smooth,
        "bias_full": how.bias_correction == "full",
        "bias_none": how.bias_correction == "none",
        "exclude": bool(how.exclude),
        "int8_io": how.io == "int8",
    }
    return frozenset(option for option, asked in wanted.items() if asked)


def require_expressible(target: str, capability: Capability, how: Quantization) -> None:
    """Check that TARGET can do HOW.

    Raises:
        UnsupportedError: It has not the precision (`no_precision`), or not an option for it
            (`no_option`).
    """
    if how.precision not in capability.precisions:
        raise UnsupportedError(
            f"target `{target}` has no {how.precision}",
            why=f"it has {', '.join(capability.precisions)}",
            fix="choose one of these, or another target",
            reason="no_precision",
        )
    missing = sorted(wanted_options(how) - capability.options)
    if missing:
        raise UnsupportedError(
            f"target `{target}` cannot do {how.precision} with {', '.join(missing)}",
            why=f"it knows {', '.join(sorted(capability.options)) or 'no options'}",
            fix="leave the setting out, or choose another target",
            reason="no_option",
        )


def require_effect(target: str, how: Quantization, applied: Applied) -> None:
    """Check that what HOW asks for is in the artefact, as APPLIED counts it.

    Raises:
        UnsupportedError: Nothing was quantised (`nothing_quantized`).
    """
    proof = {
        "fp16": applied["float16_weights"],
        "bf16": applied["float16_weights"],
        "int8": applied["quantized_operators"],
        "w8": applied["int8_weights"],
        "w4": applied["int4_weights"],
    }
    if not proof[how.precision]:
        raise UnsupportedError(
            f"{how.precision} for {target} quantised not a single operator",
            why="the model has none that the quantiser knows, or all are excluded",
            fix="build it as fp32",
            reason="nothing_quantized",
        )
