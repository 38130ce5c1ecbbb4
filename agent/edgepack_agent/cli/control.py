"""`edgepack-agent status | install | rollback | sync`: commands for an agent that runs."""

from pathlib import Path
from typing import Any

import click

from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack_agent.adapters.control import call
from edgepack_agent.config import load_config

__all__ = ["install", "rollback", "status", "sync"]

_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command()
@_json
@click.pass_obj
def status(config: Path | None, as_json: bool) -> None:
    """Show what the agent is doing."""
    found = call(load_config(config).control_socket, "status", timeout_s=15)
    if as_json:
        print_json(found)
        return
    for name, value in _rows(found):
        click.echo(f"{name:<10} {value}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, dir_okay=False))
@_json
@click.pass_obj
def install(config: Path | None, bundle: Path, as_json: bool) -> None:
    """Install BUNDLE from a file, with the same checks as from the fleet.

    Needs `allow_local_install: true`; the fleet is told.
    """
    socket = load_config(config).control_socket
    try:
        with bundle.open("rb") as file:
            found = call(socket, "install", file.fileno())
    except OSError as error:
        raise UsageError(f"cannot read {bundle}", why=str(error), reason="no_such_file") from error
    _print_bundle(found, as_json=as_json)


@click.command()
@_json
@click.pass_obj
def rollback(config: Path | None, as_json: bool) -> None:
    """Stop an update that is under way, or else go back to the previous model."""
    _print_bundle(call(load_config(config).control_socket, "rollback"), as_json=as_json)


@click.command()
@_json
@click.pass_obj
def sync(config: Path | None, as_json: bool) -> None:
    """Look for a job and report everything now."""
    found = call(load_config(config).control_socket, "sync", timeout_s=15)
    if as_json:
        print_json({"schema": "edgepack.agent.sync/v1"} | found)
    else:
        click.echo("asked the fleet" if found["connected"] else "no link; will be done later")


def _print_bundle(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({"schema": "edgepack.agent.bundle/v1"} | found)
    else:
        click.echo(f"this device runs {found['bundle']}")


def _rows(found: dict[str, Any]) -> list[tuple[str, Any]]:
    job, previous = found["job"], found["previous"]
    return [
        ("device", f"{found['device']} ({found['group']})"),
        ("fleet", "connected" if found["connected"] else "not connected"),
        ("bundle", found["bundle"] or "none"),
        ("serving", found["serving"] or f"nothing {found['trouble']}"),
        ("previous", previous["bundle"] if previous else "none"),
        ("update", f"{found['phase']} {job['release'] if job else ''}"),
        ("outbox", f"{found['outbox']['rows']} rows not confirmed yet"),
        ("memory", f"{found['rss_mb']} MB"),
    ]
