"""Values of metrics for people: rounded, with their unit. Pure."""

from collections.abc import Callable

__all__ = ["measured", "moved"]


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _times(value: float) -> str:
    return f"{value:.3g} times"


def _features(value: float) -> str:
    return "1 feature" if value == 1 else f"{value:.0f} features"


SAID: dict[str, Callable[[float], str]] = {
    "agreement": _share,
    "broker_up": lambda value: "a link" if value else "no link",
    "certificate_days": lambda value: f"{value:.1f} days",
    "disk_free_share": _share,
    "drift_features": _features,
    "error_rate": _share,
    "install": _share,
    "memory": lambda value: f"{value:.3g} MB" if value < 1000 else f"{value:,.0f} MB",
    "offline_share": _share,
    "p95_ratio": _times,
    "rollback_rate": _share,
}
"""Of gates and of alerts; what is not here has no unit."""


def measured(value: float, metric: str) -> str:
    """Return VALUE, which METRIC has, as it is read."""
    said = SAID.get(metric)
    return said(value) if said else f"{value:.3g}"


def moved(share: float) -> str:
    """Return by how much something has moved, a SHARE of 1: with its sign, if there is any."""
    text = f"{100 * share:+.1f}"
    return f"{text} %" if float(text) else "0.0 %"
