"""Files of alert rules, and what the fleet watches by itself. Reads, judges nothing."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from edgepack.errors import UsageError
from edgepack_fleet.core.alert_rules import AlertConfig, read_alerts

__all__ = ["load_alerts"]


def load_alerts(path: Path | None) -> AlertConfig:
    """Return what the file at PATH says; None: only what the fleet watches by itself.

    Raises:
        UsageError: it cannot be read, or is no file of alert rules (`bad_alerts`).
    """
    ours = files("edgepack_fleet").joinpath("alerts/defaults.yml").read_text()
    said = _read(path) if path is not None else None
    return read_alerts(said, yaml.safe_load(ours), str(path or "defaults"))


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(
            f"{path} cannot be read", why=str(error).splitlines()[0], reason="bad_alerts"
        ) from error
