"""`edgepack-agent run`: the agent itself, until SIGTERM."""

import signal
from pathlib import Path

import click

from edgepack_agent.config import load_config

__all__ = ["run"]


@click.command()
@click.pass_obj
def run(config: Path | None) -> None:
    """Run the agent in the foreground, until SIGTERM or Ctrl-C."""
    from edgepack_agent.adapters import logs
    from edgepack_agent.adapters.memory import one_arena
    from edgepack_agent.parts import assemble
    from edgepack_agent.supervisor import Supervisor

    settings = load_config(config)
    about = logs.begin(settings.log_level, "edgepack-agent")
    one_arena()
    parts = assemble(settings)
    supervisor = Supervisor(parts)
    about(lambda: logs.fields(parts.identity.device, supervisor.state))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    supervisor.run()
