"""`edgepack-agent --instance NAME ...`: which agent of this box a command is about."""

from pathlib import Path

import click

from edgepack.errors import UsageError
from edgepack_agent.adapters.instances import SETTINGS, find_instances, instance_config

__all__ = ["choose", "instance_name", "settings_dir"]

_KEY = "edgepack_agent.instance"


def choose(ctx: click.Context, config: Path | None, name: str) -> Path:
    """Let the command be about the instance NAME, and return its configuration file.

    Args:
        ctx: Of the command.
        config: Configuration of the agent without a name, beside which instances are.
        name: Of the instance.

    Raises:
        UsageError: there is no such instance, and the command is not the one that makes it.
    """
    settings = config.parent if config else SETTINGS
    path = instance_config(name, settings)
    ctx.meta[_KEY] = name
    if not path.exists() and ctx.invoked_subcommand != "service":
        there = ", ".join(each.name for each in find_instances(settings) if each.name)
        raise UsageError(
            f"there is no instance {name} on this box",
            why=f"there is no {path}; instances here: {there or 'none'}",
            fix=f"edgepack-agent --instance {name} service install",
            reason="no_instance",
        )
    return path


def instance_name() -> str:
    """Return the instance that the command is about; empty: the agent without a name."""
    name: str = click.get_current_context().meta.get(_KEY, "")
    return name


def settings_dir(config: Path | None) -> Path:
    """Return the directory of this box's configurations, CONFIG being that of the command."""
    if config is None:
        return SETTINGS
    return config.parent.parent if instance_name() else config.parent
