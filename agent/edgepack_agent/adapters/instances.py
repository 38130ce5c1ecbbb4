"""The agents of this box, by their configuration files.

    /etc/edgepack/agent.yaml         the one without a name
    /etc/edgepack/NAME/agent.yaml    the instance NAME, for one more line of models

An instance is an agent of its own: identity, data, sockets, service. What makes it an instance is
where its configuration is; the file itself says where everything else is.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import UsageError

__all__ = ["CONFIG", "SETTINGS", "Instance", "check_name", "find_instances", "instance_config"]

SETTINGS = Path("/etc/edgepack")
CONFIG = "agent.yaml"
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?")
"""Stands in names of units, directories and sockets, whose paths have 107 bytes."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An agent of this box; `name` is empty for the one without."""

    name: str
    config: Path


def check_name(name: str) -> str:
    """Return NAME.

    Raises:
        UsageError: no instance can be called so.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot be the name of an instance",
            why="it becomes part of file names and of a unit's",
            fix="use up to 32 small letters, digits, - and _, with a letter or digit at both ends",
            reason="bad_instance",
        )
    return name


def instance_config(name: str, settings: Path = SETTINGS) -> Path:
    """Return where the configuration of the instance NAME is, whether it is there or not.

    Raises:
        UsageError: no instance can be called so.
    """
    return settings / check_name(name) / CONFIG


def find_instances(settings: Path = SETTINGS) -> list[Instance]:
    """Return the agents that are configured in SETTINGS, the one without a name first.

    Raises:
        UsageError: the directory cannot be read.
    """
    try:
        found = sorted(settings.glob(f"*/{CONFIG}"))
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read {settings}", why=why, reason="no_config") from error
    named = [
        Instance(path.parent.name, path) for path in found if _NAME.fullmatch(path.parent.name)
    ]
    main = settings / CONFIG
    return [Instance("", main), *named] if main.exists() else named
