"""`edgepack fleet ca`: replace the fleet's certificate authority."""

from pathlib import Path
from typing import Any

import click

from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["ca"]

force_option = click.option(
    "--force", is_flag=True, help="Leave behind devices that have not followed; they enrol anew."
)


@click.group()
def ca() -> None:
    """Replace the fleet's certificate authority, while devices go on."""


@ca.command("status")
@connection_options
def status(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """Show which authorities are trusted, and which devices are behind."""
    _say(Client(url, token, data).get("ca"), as_json=as_json)


@ca.command("rotate")
@force_option
@connection_options
def rotate(
    force: bool, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Announce the next authority; once every device knows it, run this again: it issues."""
    found = Client(url, token, data).post("ca", "rotate", body={"force": force})
    _say(found, as_json=as_json)


@ca.command("retire")
@force_option
@connection_options
def retire(
    force: bool, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Believe the old authority no more, once every device has a certificate of the new one."""
    found = Client(url, token, data).post("ca", "retire", body={"force": force})
    _say(found, as_json=as_json)


def _say(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show.document("authorities", found)
        return
    show.facts(
        [
            ("issues", found["issuing"]),
            ("trusted", ", ".join(found["trusted"])),
            ("next", found["next"]),
            ("devices", found["devices"]),
            ("behind", ", ".join(found["behind"])),
        ]
    )
