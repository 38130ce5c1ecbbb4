"""`edgepack-agent service`: the systemd service of this installation."""

import sys
import sysconfig
from pathlib import Path

import click

from edgepack.errors import UsageError

__all__ = ["service"]

UNIT = "edgepack-agent.service"


@click.group()
def service() -> None:
    """Print the systemd unit."""


@service.command("print")
def print_unit() -> None:
    """Print a systemd unit that runs this very installation."""
    installed = Path(sysconfig.get_path("data")) / "share" / "edgepack" / UNIT
    source = Path(__file__).parents[2] / "systemd" / UNIT
    found = next((path for path in (source, installed) if path.is_file()), None)
    if found is None:
        raise UsageError("the unit file is not installed", reason="no_unit")
    program = Path(sys.argv[0]).resolve()
    click.echo(found.read_text().replace("/usr/bin/edgepack-agent", str(program)), nl=False)
