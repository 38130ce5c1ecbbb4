"""`edgepack-agent run`: reads the settings, then becomes the agent, until SIGTERM."""

import os
import sys
from pathlib import Path

import click
import msgspec

from edgepack_agent.adapters.instances import find_instances
from edgepack_agent.cli.instance import instance_name, settings_dir
from edgepack_agent.config import Launch
from edgepack_agent.core.sharing import thread_share
from edgepack_agent.settings import read_config

__all__ = ["run", "settings_file"]


@click.command()
@click.pass_obj
def run(config: Path | None) -> None:
    """Run the agent in the foreground, until SIGTERM or Ctrl-C."""
    file = settings_file(config, agents=_agents(config))
    # -P: the working directory is not a place to import from.
    line = [sys.executable, "-P", "-m", "edgepack_agent", "--config-fd", str(file)]
    os.execv(sys.executable, line)


def _agents(config: Path | None) -> int:
    """Return how many agents share this box, this one among them."""
    settings = settings_dir(config)
    return len({instance_name(), *(each.name for each in find_instances(settings))})


def settings_file(config: Path | None, agents: int = 1) -> int:
    """Return an open file in memory with the settings of CONFIG as JSON, for the agent to read.

    Args:
        config: The configuration file.
        agents: That share the processor.

    Raises:
        UsageError: they cannot be read, or are wrong.
    """
    settings, files = read_config(config)
    if settings.threads is None:
        share = thread_share(len(os.sched_getaffinity(0)), agents)
        settings = msgspec.structs.replace(settings, threads=share)
    said = tuple(path for path, _ in files.layer.leaves())
    launch = Launch(config=settings, file=str(config.absolute()) if config else None, said=said)
    file = os.memfd_create("edgepack-config", 0)
    os.write(file, msgspec.json.encode(launch, enc_hook=str))
    os.lseek(file, 0, os.SEEK_SET)
    return file
