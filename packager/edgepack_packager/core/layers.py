"""Which layers lose the accuracy, told so that a person knows where to look. Pure."""

from collections.abc import Sequence

from edgepack.errors import AccuracyError
from edgepack_targets.interface import Layer

__all__ = ["LayersError", "layer_rows", "with_layers"]

SHOWN = 3


class LayersError(AccuracyError):
    """The metric fell too far, and these layers lose it: worst first."""

    layers: tuple[Layer, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the facts for `--json`, with the layers."""
        return super().as_dict() | {"layers": layer_rows(self.layers)}


def with_layers(error: AccuracyError, layers: Sequence[Layer], *, auto: bool) -> AccuracyError:
    """Return ERROR with the names of LAYERS, worst first; itself if there are none.

    Args:
        error: Of the accuracy gate.
        layers: What quantisation did to each.
        auto: Whether the target can keep layers in float, so that `--auto` would try.
    """
    if not layers:
        return error
    worst = ", ".join(f"{one.name} ({one.operator}) {one.loss:.1%}" for one in layers[:SHOWN])
    rest = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    fix = "--auto searches for what keeps the limit, e.g. without these layers" if auto else ""
    told = LayersError(
        error.what,
        why=f"{error.why}; error of the layers' outputs, worst first: {worst}{rest}",
        fix=fix or error.fix,
        reason=error.reason,
    )
    told.layers = tuple(layers)
    return told


def layer_rows(layers: Sequence[Layer]) -> list[dict[str, object]]:
    """Return LAYERS for a document; `loss` is the relative RMS error of the layer's output."""
    return [{"name": one.name, "operator": one.operator, "loss": one.loss} for one in layers]
