"""`edgepack-agent service install | uninstall | print`: the agent under systemd."""

from pathlib import Path

import click

from edgepack.cli import print_json
from edgepack_agent.adapters import service as systemd
from edgepack_agent.adapters.units import render
from edgepack_agent.cli.instance import instance_name

__all__ = ["service"]

_root = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    default=Path("/"),
    help="Root directory of the system it is for: an image or a chroot [default: /].",
)
_program = click.option(
    "--program",
    type=click.Path(path_type=Path),
    help="The edgepack-agent to run, as that system sees it [default: this one].",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def service() -> None:
    """Install, remove and print the systemd service."""


@service.command("print")
@_program
def print_unit(program: Path | None) -> None:
    """Print the systemd unit that runs this very installation; of instances, their template."""
    program = program or systemd.this_program()
    if why := systemd.hidden(program):
        click.echo(f"warning: {why}", err=True)
    click.echo(render(program, template=bool(instance_name())), nl=False)


@service.command()
@_root
@_program
@click.option("--now", is_flag=True, help="Start it at once, or start it anew.")
@_json
def install(root: Path, program: Path | None, now: bool, as_json: bool) -> None:
    """Make systemd start the agent at every boot. Needs root; may be repeated.

    Writes the unit, the user `edgepack`, and an /etc/edgepack/agent.yaml in which nothing is
    set, unless there is one. With --instance NAME it is one more agent on this box, which has
    /etc/edgepack/NAME/agent.yaml and directories of its own.

    \b
    Examples:
        edgepack-agent service install --now
        edgepack-agent --instance plates service install
    """
    place = systemd.Place(root, instance_name())
    done = systemd.install(place, program or _seen_from(root), now=now)
    _tell(done, as_json=as_json)
    if not as_json and not any((data / "identity").exists() for data in place.data):
        name = f"--instance {place.instance} " if place.instance else ""
        click.echo(f"next: edgepack-agent {name}enroll TOKEN --root FILE")


@service.command()
@_root
@click.option(
    "--purge", is_flag=True, help="Remove configuration, identity and models as well, for good."
)
@_json
def uninstall(root: Path, purge: bool, as_json: bool) -> None:
    """Stop the service and remove it; the device's data stay. Needs root; may be repeated."""
    _tell(systemd.uninstall(systemd.Place(root, instance_name()), purge=purge), as_json=as_json)


def _seen_from(root: Path) -> Path:
    """Return this program by the path that it has below ROOT."""
    program = systemd.this_program()
    return Path("/") / program.relative_to(root) if program.is_relative_to(root) else program


def _tell(done: systemd.Done, *, as_json: bool) -> None:
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    told = {"wrote": done.wrote, "kept": done.kept, "removed": done.removed}
    if as_json:
        lists = {name: [*map(str, paths)] for name, paths in told.items()}
        print_json({"schema": "edgepack.agent.service/v1"} | lists)
        return
    for name, paths in told.items():
        for path in paths:
            click.echo(f"{name} {path}")
