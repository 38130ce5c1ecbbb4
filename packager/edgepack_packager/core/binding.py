"""Which native tensor is which public one: by name, else by shape, else by order. Pure.

What is found here is a claim; the parity of the artefact with its source proves it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, cast

from edgepack.errors import UnsupportedError
from edgepack.manifest import Binding, TensorSpec

__all__ = ["Native", "Public", "bind"]

LAYOUTS = {(0, 3, 1, 2), (0, 2, 3, 1)}
"""NHWC to NCHW and back: tried first."""
DTYPES = frozenset(
    {
        "bool",
        *(f"float{b}" for b in (16, 32, 64)),
        *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)),
    }
)


@dataclass(frozen=True, slots=True)
class Public:
    """A tensor of the source; KEY is what the export calls it."""

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Native:
    """A tensor as the target's runtime calls it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def bind(publics: Sequence[Public], natives: Sequence[Native]) -> tuple[TensorSpec, ...]:
    """Return PUBLICS, each with the binding to one of NATIVES.

    Raises:
        UnsupportedError: a tensor is missing or has another shape or type.
    """
    free = list(natives)
    found: dict[str, Native] = {}
    for public in publics:
        match = _by_name(public, free)
        if match:
            found[public.name] = match
            free.remove(match)
    for public in publics:
        if public.name not in found:
            match = next((n for n in free if _order(public, n) is not None), None)
            if match is None:
                raise _unbound(public, natives)
            found[public.name] = match
            free.remove(match)
    return tuple(_spec(public, found[public.name]) for public in publics)


def _by_name(public: Public, natives: Iterable[Native]) -> Native | None:
    wanted = {public.name, public.key, f"{public.name}:0", f"{public.key}:0"}
    return next((n for n in natives if n.name in wanted and _order(public, n) is not None), None)


def _order(public: Public, native: Native) -> tuple[int, ...] | None:
    """Return the permutation from PUBLIC to NATIVE, the identity if it fits; None: none does."""
    if native.dtype != public.dtype or len(native.shape) != len(public.shape):
        return None
    identity = tuple(range(len(public.shape)))
    every = (p for p in permutations(identity) if p not in LAYOUTS)
    likely = (p for p in sorted(LAYOUTS) if len(p) == len(identity))
    for order in (identity, *likely, *every):
        if all(n in {-1, public.shape[o]} for n, o in zip(native.shape, order, strict=True)):
            return order
    return None


def _spec(public: Public, native: Native) -> TensorSpec:
    if public.dtype not in DTYPES:
        raise UnsupportedError(
            f"tensor {public.name} holds {public.dtype}, not numbers", reason="tensor_type"
        )
    order = _order(public, native)
    moved = order if order != tuple(range(len(public.shape))) else None
    return TensorSpec(
        name=public.name,
        shape=public.shape,
        dtype=cast("Any", public.dtype),
        binding=Binding(native_name=native.name, permutation=moved),
    )


def _unbound(public: Public, natives: Sequence[Native]) -> UnsupportedError:
    seen = "; ".join(f"{n.name} {list(n.shape)} {n.dtype}" for n in natives)
    return UnsupportedError(
        f"tensor {public.name} {list(public.shape)} {public.dtype} got lost in the conversion",
        why=f"the converted model has {seen}",
        reason="tensor_lost",
    )
