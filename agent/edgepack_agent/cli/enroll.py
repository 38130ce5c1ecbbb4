"""`edgepack-agent enroll`: first contact with a fleet."""

from pathlib import Path

import click

from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack_agent.settings import load_config

__all__ = ["enroll"]


@click.command()
@click.argument("token")
@click.option(
    "--root",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The publisher's 1.root.json.",
)
@click.option("--root-sha256", metavar="HEX", help="Or its SHA-256; the fleet hands it out.")
@click.option("--name", default="", help="Device id to ask for.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def enroll(
    config: Path | None,
    token: str,
    root: Path | None,
    root_sha256: str | None,
    name: str,
    as_json: bool,
) -> None:
    """Make this device part of a fleet, with the TOKEN of its operator.

    What may run here is the publisher's word, never the fleet's: give the root of the
    publisher's repository, or its digest.
    """
    from edgepack_agent.adapters import enroll as enrolment
    from edgepack_agent.adapters import service
    from edgepack_agent.adapters.installed import Shelf
    from edgepack_agent.adapters.inventory import read_inventory

    settings = load_config(config)
    if (root is None) == (root_sha256 is None):
        raise UsageError(
            "say which publisher this device trusts",
            fix="give --root FILE or --root-sha256 HEX, one of them",
            reason="no_root",
        )
    given = enrolment.read_token(token)
    trusted = enrolment.read_root(root) if root else None
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {settings.data_dir}", why=str(error), reason="unwritable"
        ) from error
    device = enrolment.enroll(
        given,
        settings.identity_dir,
        name=name,
        inventory=read_inventory(settings.data_dir, Shelf().read(), settings.runtimes),
        root=trusted,
        root_sha256=root_sha256,
    )
    service.hand_over(settings.data_dir)
    if as_json:
        print_json({"schema": "edgepack.agent.enrolled/v1", "device": device, "fleet": given.url})
    else:
        click.echo(f"enrolled as {device} at {given.url}")
        if service.Place().unit.exists():
            click.echo("next: systemctl start edgepack-agent")
