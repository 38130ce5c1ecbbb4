"""`edgepack-agent enroll`: first contact with a fleet."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import click

from edgepack.cli import print_json
from edgepack.errors import UnreachableError, UsageError
from edgepack_agent.cli.instance import instance_name
from edgepack_agent.settings import load_config

__all__ = ["enroll"]


@click.command()
@click.argument("token", default="")
@click.option(
    "--root",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The publisher's 1.root.json.",
)
@click.option("--root-sha256", metavar="HEX", help="Or its SHA-256; the fleet hands it out.")
@click.option("--name", default="", help="Device id to ask for.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS",
              help="Wait that long for a person to accept this device.")  # fmt: skip
@click.option("--prepare", is_flag=True,
              help="Only make the key and print its fingerprint; needs no token.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def enroll(
    config: Path | None,
    token: str,
    root: Path | None,
    root_sha256: str | None,
    name: str,
    wait_s: float,
    prepare: bool,
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
    if prepare:
        _make(settings.data_dir)
        _print_fingerprint(enrolment.fingerprint(settings.identity_dir), as_json)
        return
    if (root is None) == (root_sha256 is None):
        raise UsageError(
            "say which publisher this device trusts",
            fix="give --root FILE or --root-sha256 HEX, one of them",
            reason="no_root",
        )
    given = enrolment.read_token(token)
    trusted = enrolment.read_root(root) if root else None
    _make(settings.data_dir)

    def ask() -> str:
        return enrolment.enroll(
            given,
            settings.identity_dir,
            name=name,
            inventory=read_inventory(settings.data_dir, Shelf().read(), settings.runtimes),
            root=trusted,
            root_sha256=root_sha256,
        )

    device = _patiently(ask, wait_s)
    service.hand_over(settings.data_dir)
    if as_json:
        print_json({"schema": "edgepack.agent.enrolled/v1", "device": device, "fleet": given.url})
    else:
        click.echo(f"enrolled as {device} at {given.url}")
        if (place := service.Place(instance=instance_name())).unit.exists():
            click.echo(f"next: systemctl start {place.service.removesuffix('.service')}")


def _patiently(ask: Callable[[], str], wait_s: float) -> str:
    """Return what ASK returns; while a person must decide, ask again for WAIT_S seconds.

    Raises:
        PendingError: nobody has decided until then; other errors of ASK.
    """
    from edgepack_agent.adapters.enroll import PendingError

    until = time.monotonic() + wait_s
    waiting: PendingError | None = None
    while True:
        try:
            return ask()
        except PendingError as error:
            if waiting is None and wait_s:
                click.echo(f"{error.what}: {error.why}", err=True)
            waiting = error
        except UnreachableError:
            # Nobody who has begun to wait gives up because the network is away for a moment.
            if waiting is None:
                raise
        # Devices that were switched on together shall not ask together.
        pause = waiting.said.retry_s * random.uniform(0.5, 1.0)  # noqa: S311  no secret
        if (left := until - time.monotonic()) <= 0:
            raise waiting
        time.sleep(min(pause, left))


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {directory}", why=str(error), reason="unwritable"
        ) from error


def _print_fingerprint(found: str, as_json: bool) -> None:
    if as_json:
        print_json({"schema": "edgepack.agent.key/v1", "fingerprint": found})
    else:
        click.echo(found)
