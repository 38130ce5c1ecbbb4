"""The `edgepack-agent` command. Imports a command when it is called."""

from pathlib import Path

import click

from edgepack.cli import TableGroup, run_command
from edgepack_agent.cli.instance import choose

__all__ = ["main", "root"]

COMMANDS = {
    "run": ("edgepack_agent.cli.run", "Run the agent."),
    "enroll": ("edgepack_agent.cli.enroll", "Make this device part of a fleet."),
    "status": ("edgepack_agent.cli.control", "Show what the agent is doing."),
    "models": ("edgepack_agent.cli.models", "List the models of this box and where they answer."),
    "drift": ("edgepack_agent.cli.drift", "Show whether what the model sees has changed."),
    "install": ("edgepack_agent.cli.control", "Install from a bundle or a mirror."),
    "rollback": ("edgepack_agent.cli.control", "Go back to the previous model."),
    "lock": ("edgepack_agent.cli.control", "Let updates wait for a while."),
    "unlock": ("edgepack_agent.cli.control", "Let updates go on."),
    "pin": ("edgepack_agent.cli.control", "Stay with the model that runs."),
    "unpin": ("edgepack_agent.cli.control", "Take models from the fleet again."),
    "sync": ("edgepack_agent.cli.control", "Look for a job and report now."),
    "export": ("edgepack_agent.cli.control", "Write what waits for the fleet to a file."),
    "benchmark": ("edgepack_agent.cli.benchmark", "Measure a bundle on this device."),
    "serve": ("edgepack_agent.cli.serve", "Serve one bundle without a fleet."),
    "privacy": ("edgepack_agent.cli.privacy", "Say what leaves this device, and to whom."),
    "logs": ("edgepack_agent.cli.logs", "Show what the service has logged."),
    "doctor": ("edgepack_agent.cli.doctor", "Say what is wrong here and what to do."),
    "config": ("edgepack_agent.cli.config", "Check and show the configuration."),
    "service": ("edgepack_agent.cli.service", "Run the agent under systemd."),
    "tuf-client": ("edgepack_agent.cli.tuf_client", "Let a conformance suite judge our TUF."),
}


@click.group(
    cls=TableGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file [default: /etc/edgepack/agent.yaml if there is one].",
)
@click.option(
    "--instance", metavar="NAME", help="Another agent of this box, with a model line of its own."
)
@click.version_option(package_name="edgepack", prog_name="edgepack-agent")
@click.pass_context
def root(ctx: click.Context, config: Path | None, instance: str | None) -> None:
    """Update models on this device safely, infer, report."""
    ctx.obj = choose(ctx, config, instance) if instance is not None else config


def main() -> None:
    """Run `edgepack-agent`."""
    run_command(root)
