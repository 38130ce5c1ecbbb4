"""`edgepack-agent config check` and `edgepack-agent service print`."""

import sys
import sysconfig
from pathlib import Path

import click

from edgepack.errors import UsageError
from edgepack_agent.config import DEFAULT_PATH, load_config

__all__ = ["config", "service"]

UNIT = "edgepack-agent.service"


@click.group()
def config() -> None:
    """Check the configuration."""


@config.command()
@click.pass_obj
def check(path: Path | None) -> None:
    """Check the configuration file and say what is wrong with it.

    Keys: data_dir, run_dir, listen (127.0.0.1:PORT or null), poll_s, telemetry {level:
    off|health|metrics, interval_s}, sources [{name, source, every_s}], threads, runtimes,
    allow_local_install, broker (HOST:PORT or null), log_level.
    """
    load_config(path)
    if path is None and not DEFAULT_PATH.exists():
        click.echo(f"there is no {DEFAULT_PATH}: the defaults hold")
    else:
        click.echo(f"{path or DEFAULT_PATH} is valid")


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
