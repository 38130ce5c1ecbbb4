"""`edgepack-agent run`: the agent itself, until SIGTERM."""

import logging
import signal
from pathlib import Path

import click

from edgepack_agent.config import load_config

__all__ = ["run"]


@click.command()
@click.pass_obj
def run(config: Path | None) -> None:
    """Run the agent in the foreground, until SIGTERM or Ctrl-C."""
    from edgepack_agent.adapters.memory import one_arena
    from edgepack_agent.parts import assemble
    from edgepack_agent.supervisor import Supervisor

    settings = load_config(config)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # What it has to say at these levels is said by our own errors.
    logging.getLogger("tuf").setLevel(logging.WARNING)
    one_arena()
    supervisor = Supervisor(assemble(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    supervisor.run()
