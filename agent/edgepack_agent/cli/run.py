"""`edgepack-agent run`: reads the settings, then becomes the agent, until SIGTERM."""

import os
import sys
from pathlib import Path

import click
import msgspec

from edgepack_agent.config import Launch
from edgepack_agent.settings import load_config

__all__ = ["run", "settings_file"]


@click.command()
@click.pass_obj
def run(config: Path | None) -> None:
    """Run the agent in the foreground, until SIGTERM or Ctrl-C."""
    file = settings_file(config)
    # -P: the working directory is not a place to import from.
    line = [sys.executable, "-P", "-m", "edgepack_agent", "--config-fd", str(file)]
    os.execv(sys.executable, line)


def settings_file(config: Path | None) -> int:
    """Return an open file in memory with the settings of CONFIG as JSON, for the agent to read.

    Raises:
        UsageError: they cannot be read, or are wrong.
    """
    launch = Launch(config=load_config(config), file=str(config.absolute()) if config else None)
    settings = msgspec.json.encode(launch, enc_hook=str)
    file = os.memfd_create("edgepack-config", 0)
    os.write(file, settings)
    os.lseek(file, 0, os.SEEK_SET)
    return file
