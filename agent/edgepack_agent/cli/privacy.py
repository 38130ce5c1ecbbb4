"""`edgepack-agent privacy`: what leaves this device, and to whom."""

import json
from pathlib import Path

import click

from edgepack.cli import print_json
from edgepack_agent.settings import load_config

__all__ = ["privacy"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def privacy(config: Path | None, as_json: bool) -> None:
    """Say exactly what leaves this device at its level of telemetry, and to whom.

    The example is made by the code that makes the real rows. Needs no running agent.

    \b
    Example:
        edgepack-agent privacy
    """
    from edgepack_agent.adapters.identity import load_identity
    from edgepack_agent.core.privacy import example, leaves, never

    settings = load_config(config)
    level, identity = settings.telemetry.level, load_identity(settings.identity_dir)
    to = f"{identity.broker_host}:{identity.broker_port}" if identity else None
    if as_json:
        print_json(
            {
                "schema": "edgepack.agent.privacy/v1",
                "level": level,
                "to": to,
                "leaves": leaves(level),
                "never": list(never()),
                "example": example(level),
            }
        )
        return
    click.echo(f"telemetry is `{level}`; it goes to {to or 'nobody: this device is not enrolled'}")
    for topic, told in leaves(level).items():
        click.echo(f"\n{topic}\n  {told}")
    click.echo("\nnever\n  " + "\n  ".join(never()))
    if row := example(level):
        click.echo(f"\na row of telemetry\n{json.dumps(row, indent=2)}")
