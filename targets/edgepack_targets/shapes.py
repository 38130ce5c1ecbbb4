"""Which shapes a model gets: what was asked for, and 1 for an unknown batch. Pure."""

from collections.abc import Mapping

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.binding import fits, shape_text

__all__ = ["static_shapes"]

Shapes = Mapping[str, tuple[int, ...]]


def static_shapes(
    known: Shapes, asked: Shapes, *, dynamic_batch: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return a static shape for every input.

    Args:
        known: The shapes of the source by input name, -1 for an unknown axis.
        asked: Shapes that the user gave, for some of the inputs.
        dynamic_batch: Whether ASKED may leave the first axis open with -1.

    Raises:
        UsageError: ASKED names an unknown input, or does not fit what is known.
        UnsupportedError: An axis other than the batch is unknown and was not given, or ASKED
            leaves one open that has to have a size.
    """
    unknown = sorted(asked.keys() - known.keys())
    if unknown:
        raise UsageError(
            f"the model has no input `{unknown[0]}`",
            why=f"its inputs are {', '.join(known)}",
            fix="give --shape with one of these names",
            reason="bad_shape",
        )
    return {
        name: _asked(name, shape, asked[name], dynamic_batch=dynamic_batch)
        if name in asked
        else _static(name, shape)
        for name, shape in known.items()
    }


def _asked(
    name: str, known: tuple[int, ...], asked: tuple[int, ...], *, dynamic_batch: bool
) -> tuple[int, ...]:
    open_batch = dynamic_batch and asked[:1] == (-1,)
    if min(asked[1:] if open_batch else asked, default=1) < 0:
        raise UnsupportedError(
            f"`{name}` cannot stay dynamic: {shape_text(asked)}",
            why="only the first axis, the batch, may stay open"
            if dynamic_batch
            else "models for this target are static",
            fix="give every other axis a size" if dynamic_batch else "give every axis a size",
            reason="dynamic_shape",
        )
    sizes = (1, *asked[1:]) if open_batch else asked
    if not fits(sizes, known) or (open_batch and known[0] > 0):
        raise UsageError(
            f"`{name}` cannot have the shape {shape_text(asked)}",
            why=f"the model says {shape_text(known)}",
            reason="bad_shape",
        )
    return asked


def _static(name: str, known: tuple[int, ...]) -> tuple[int, ...]:
    static = tuple(1 if not axis and size < 0 else size for axis, size in enumerate(known))
    if min(static, default=1) < 0:
        raise UnsupportedError(
            f"the shape of input `{name}` is not fixed: {shape_text(known)}",
            why="only an unknown first axis, the batch, becomes 1 by itself",
            fix=f"give it: --shape {name}=" + ",".join(str(max(size, 1)) for size in static),
            reason="dynamic_shape",
        )
    return static
