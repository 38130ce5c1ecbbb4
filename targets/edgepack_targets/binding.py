"""Public tensors to native ones and back: names, layouts and the check of what comes in.

Knows no runtime. A session calls `Binding.to_native` before and `Binding.to_public` after the
runtime; both are views wherever that is possible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import IntegrityError, UsageError
from edgepack.manifest import Manifest, TensorSpec
from edgepack_targets.interface import NativeTensor

__all__ = [
    "Binding",
    "fits",
    "native_layout",
    "one_sample",
    "samples_text",
    "shape_text",
    "signature",
]

Array = NDArray[Any]


def signature(specs: Sequence[TensorSpec]) -> str:
    """Return SPECS for a person: `image: float32 (1, 28, 28, 1), ...`."""
    return ", ".join(f"{s.name}: {s.dtype} {shape_text(s.shape)}" for s in specs)


def shape_text(shape: Sequence[int]) -> str:
    """Return SHAPE as numpy writes one, `?` for a dynamic axis."""
    inner = ", ".join("?" if size < 0 else str(size) for size in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


def fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Say whether SHAPE is WANTED, whose -1 axes take any size from 1."""
    return len(shape) == len(wanted) and all(
        size == want or (want < 0 < size) for size, want in zip(shape, wanted, strict=True)
    )


def one_sample(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one sample of SHAPE: without a batch axis of 1 or unknown size."""
    return shape[1:] if shape[:1] in ((1,), (-1,)) else shape


def samples_text(shape: tuple[int, ...]) -> str:
    """Return the shape of many samples of SHAPE for a person: `(samples, 28, 28, 1)`."""
    sizes = ["samples", *("?" if size < 0 else str(size) for size in one_sample(shape))]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def native_layout(spec: TensorSpec, samples: Array) -> Array:
    """Return SAMPLES of SPEC in the native layout.

    Args:
        spec: The public tensor.
        samples: First axis = samples: in place of the batch axis, or before a shape without one.
    """
    permutation = spec.binding.permutation
    if permutation is None:
        return samples
    if samples.ndim > len(spec.shape):
        permutation = (0, *(axis + 1 for axis in permutation))
    return np.ascontiguousarray(samples.transpose(permutation))


@dataclass(frozen=True, slots=True)
class _Port:
    """One tensor on both sides."""

    spec: TensorSpec
    dtype: np.dtype[Any]
    forward: tuple[int, ...] | None
    back: tuple[int, ...] | None

    @classmethod
    def of(cls, spec: TensorSpec) -> "_Port":
        forward = spec.binding.permutation
        if forward is None:
            return cls(spec, np.dtype(spec.dtype), None, None)
        if sorted(forward) != list(range(len(spec.shape))):
            raise IntegrityError(
                f"the binding of `{spec.name}` is no permutation of its axes",
                why=f"{list(forward)} for the shape {shape_text(spec.shape)}",
                reason="bad_binding",
            )
        back = tuple(int(axis) for axis in np.argsort(forward))
        return cls(spec, np.dtype(spec.dtype), forward, back)

    def wrong(self, array: object) -> str:
        """Return what is wrong with ARRAY as an input, or nothing."""
        if not isinstance(array, np.ndarray):
            return f"`{self.spec.name}` is no numpy array but {type(array).__name__}"
        if array.dtype != self.dtype or not fits(array.shape, self.spec.shape):
            return f"`{self.spec.name}` is {array.dtype} {shape_text(array.shape)}"
        return ""


class Binding:
    """The joints of one model.

    Args:
        manifest: Its inputs and outputs are bound.
        natives: What the loaded model really has, inputs and outputs.

    Raises:
        IntegrityError: The manifest speaks of tensors that the model does not have.
    """

    def __init__(
        self, manifest: Manifest, natives: tuple[Sequence[NativeTensor], Sequence[NativeTensor]]
    ) -> None:
        self._inputs = {spec.name: _Port.of(spec) for spec in manifest.inputs}
        self._outputs = {spec.name: _Port.of(spec) for spec in manifest.outputs}
        self._signature = signature(manifest.inputs)
        _same("inputs", manifest.inputs, natives[0], every=True)
        _same("outputs", manifest.outputs, natives[1], every=False)

    @property
    def output_names(self) -> list[str]:
        """The native names of the outputs that the manifest names, in its order."""
        return [port.spec.binding.native_name for port in self._outputs.values()]

    def to_native(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return INPUTS by native name, in native layout, contiguous.

        Raises:
            UsageError: A name is missing or unknown, or a shape or dtype differs.
        """
        self._check(inputs)
        return {
            port.spec.binding.native_name: _contiguous(inputs[name], port.forward)
            for name, port in self._inputs.items()
        }

    def to_public(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return OUTPUTS, given by native name, by public name and in public layout."""
        return {
            name: _contiguous(outputs[port.spec.binding.native_name], port.back)
            for name, port in self._outputs.items()
        }

    def _check(self, inputs: Mapping[str, Array]) -> None:
        missing = [f"`{name}` is missing" for name in self._inputs if name not in inputs]
        extra = [f"`{name}` is unknown" for name in inputs if name not in self._inputs]
        wrong = [port.wrong(inputs[n]) for n, port in self._inputs.items() if n in inputs]
        faults = [*missing, *extra, *filter(None, wrong)]
        if faults:
            raise UsageError(
                "the inputs do not fit the model",
                why="; ".join(faults),
                fix=f"give exactly {self._signature}",
                reason="bad_input",
            )


def _contiguous(array: Array, permutation: tuple[int, ...] | None) -> Array:
    moved = array if permutation is None else array.transpose(permutation)
    return np.asarray(moved, order="C")


def _same(
    side: str, specs: Sequence[TensorSpec], natives: Sequence[NativeTensor], *, every: bool
) -> None:
    """Check that SPECS bind tensors of the model; with EVERY, all of its tensors."""
    bound = {spec.binding.native_name: _bound(spec) for spec in specs}
    real = {native.name: native for native in natives}
    faults = [
        f"`{name}` is bound as {want.dtype} {shape_text(want.shape)}, the model has "
        + (f"{real[name].dtype} {shape_text(real[name].shape)}" if name in real else "no such one")
        for name, want in bound.items()
        if name not in real or not _compatible(real[name], want)
    ]
    if every:
        faults += [f"`{name}` is not bound" for name in real if name not in bound]
    if faults:
        raise IntegrityError(
            f"the model's {side} are not those of its manifest",
            why="; ".join(faults),
            reason="bad_binding",
        )


def _compatible(real: NativeTensor, want: NativeTensor) -> bool:
    """Say whether both can be one tensor; an axis that either leaves open fits."""
    same_rank = len(real.shape) == len(want.shape)
    return (
        real.dtype == want.dtype
        and same_rank
        and all(a == b or a < 0 or b < 0 for a, b in zip(real.shape, want.shape, strict=True))
    )


def _bound(spec: TensorSpec) -> NativeTensor:
    order = spec.binding.permutation or range(len(spec.shape))
    shape = tuple(spec.shape[axis] for axis in order)
    return NativeTensor(spec.binding.native_name, shape, spec.dtype)
