"""`edgepack-agent logs`: what the service has written to the journal."""

import os
import shutil

import click

from edgepack.errors import UnsupportedError
from edgepack_agent.adapters.units import unit_of
from edgepack_agent.cli.instance import instance_name

__all__ = ["logs"]


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on as messages come.")
@click.option("-n", "--lines", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--since", metavar="TIME", help="As journalctl takes it: `1 hour ago`, `10:00`.")
@click.option("--release", metavar="NAME@VERSION", help="Only what was said about this release.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all fields.")
def logs(follow: bool, lines: int, since: str | None, release: str | None, as_json: bool) -> None:
    """Show what the service has logged, newest last.

    An agent that runs outside systemd writes to its standard error instead.

    \b
    Example:
        edgepack-agent logs --follow
    """
    program = shutil.which("journalctl")
    if program is None:
        raise UnsupportedError(
            "there is no journal here",
            why="journalctl is not installed: this system does not run systemd",
            fix="look where the standard error of `edgepack-agent run` goes",
            reason="no_journal",
        )
    command = [program, f"--unit={unit_of(instance_name())}", f"--lines={lines}", "--no-pager"]
    command += ["--follow"] if follow else []
    command += [f"--since={since}"] if since else []
    command += ["--output=json"] if as_json else []
    command += [f"EDGEPACK_RELEASE={release}"] if release else []
    os.execv(program, command)
