"""Which static shapes a model gets: what was asked for, and 1 for an unknown batch. Pure."""

from collections.abc import Mapping

from edgepack.errors import UnsupportedError, UsageError
from edgepack_targets.binding import fits, shape_text

__all__ = ["static_shapes"]

Shapes = Mapping[str, tuple[int, ...]]


def static_shapes(known: Shapes, asked: Shapes) -> dict[str, tuple[int, ...]]:
    """Return a static shape for every input.

    Args:
        known: The shapes of the source by input name, -1 for an unknown axis.
        asked: Shapes that the user gave, for some of the inputs.

    Raises:
        UsageError: ASKED names an unknown input, or does not fit what is known.
        UnsupportedError: An axis other than the batch is unknown and was not given.
    """
    unknown = sorted(asked.keys() - known.keys())
    if unknown:
        raise UsageError(
            f"the model has no input `{unknown[0]}`",
            why=f"its inputs are {', '.join(known)}",
            fix="give --shape with one of these names",
            reason="bad_shape",
        )
    return {name: _static(name, shape, asked.get(name)) for name, shape in known.items()}


def _static(name: str, known: tuple[int, ...], asked: tuple[int, ...] | None) -> tuple[int, ...]:
    if asked is not None:
        if min(asked, default=1) < 0:
            raise UnsupportedError(
                f"`{name}` cannot stay dynamic: {shape_text(asked)}",
                why="models are made static for now",
                fix="give every axis a size",
                reason="dynamic_shape",
            )
        if not fits(asked, known):
            raise UsageError(
                f"`{name}` cannot have the shape {shape_text(asked)}",
                why=f"the model says {shape_text(known)}",
                reason="bad_shape",
            )
        return asked
    static = tuple(1 if not axis and size < 0 else size for axis, size in enumerate(known))
    if min(static, default=1) < 0:
        raise UnsupportedError(
            f"the shape of input `{name}` is not fixed: {shape_text(known)}",
            why="only an unknown first axis, the batch, becomes 1 by itself",
            fix=f"give it: --shape {name}=" + ",".join(str(max(size, 1)) for size in static),
            reason="dynamic_shape",
        )
    return static
