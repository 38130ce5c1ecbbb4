"""Whether a target can express what was asked of quantisation. Pure; quantises nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from edgepack.errors import EdgepackError, UnsupportedError
from edgepack_targets.interface import Applied, Capability, Quantization

__all__ = [
    "needs_7_bits", "require_effect", "require_expressible", "translated", "wanted_options",
]  # fmt: skip

# With these dot-product instructions sums of uint8 x int8 cannot saturate.
SAFE_DOT_PRODUCT = {"avx512_vnni", "avx_vnni", "vnni"}

STATIC = {"per_tensor", "minmax", "entropy", "percentile", "smooth", "bias_full", "bias_none"}
MEANINGFUL: dict[str, frozenset[str]] = {
    "static": frozenset(STATIC | {"exclude", "int8_io"}),
    "dynamic": frozenset({"dynamic", "per_tensor", "exclude"}),
    "w8": frozenset({"exclude"}),
    "w4": frozenset({"exclude"}),
    "fp16": frozenset(),
    "bf16": frozenset(),
}
"""The options that say something about a precision, or a method of int8."""


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


def needs_7_bits(how: Quantization) -> bool:
    """Say whether int8 weights get 7 bits: without, sums saturate on x86 CPUs that lack VNNI."""
    return not SAFE_DOT_PRODUCT & set(how.cpu_features)


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
    kind = how.method if how.precision == "int8" else how.precision
    known = capability.options & MEANINGFUL[kind]
    missing = sorted(wanted_options(how) - known)
    if missing:
        raise UnsupportedError(
            f"target `{target}` cannot do {how.precision} with {', '.join(missing)}",
            why=f"it knows {', '.join(sorted(known)) or 'no settings there'}",
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


@contextmanager
def translated(tool: str) -> Iterator[None]:
    """Turn whatever TOOL raises into one error for a person.

    Raises:
        UnsupportedError: TOOL cannot take the model (`quantizer_failed`).
    """
    try:
        yield
    except EdgepackError:
        raise
    except Exception as error:  # quantisers raise anything, RuntimeError to KeyError
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnsupportedError(
            f"{tool} cannot quantise this model",
            why=f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__,
            fix="exclude the layer that it names, or choose another precision",
            reason="quantizer_failed",
        ) from error
