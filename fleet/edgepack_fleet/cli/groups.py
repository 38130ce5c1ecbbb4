"""`edgepack fleet groups`."""

from pathlib import Path
from typing import Any

import click

from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["groups"]


@click.group()
def groups() -> None:
    """Make groups: lists of devices, or filters."""


@groups.command("list")
@connection_options
def list_groups(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List all groups."""
    found = Client(url, token, data).list("groups")
    if as_json:
        show.document("groups", found)
        return
    rows = [
        (g["id"], g["devices"], g["online"], g["release"], g["filter"]) for g in found["groups"]
    ]
    empty = "There is no group yet: edgepack fleet groups create NAME"
    show.table(("group", "devices", "online", "release", "filter"), rows, empty)


@groups.command("create")
@click.argument("group")
@click.option("--filter", "wanted", default="", metavar="FILTER",
              help="The devices that fit, instead of those put into it.")  # fmt: skip
@connection_options
def create_group(
    group: str, wanted: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Create a group."""
    body = {"id": group} | ({"filter": wanted} if wanted else {})
    made = Client(url, token, data).post("groups", body=body)
    if as_json:
        show.document("group", made)
    else:
        click.echo(made["id"])


@groups.command("show")
@click.argument("group")
@connection_options
def show_group(
    group: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Show one group."""
    found = Client(url, token, data).get("groups", group)
    if as_json:
        show.document("group", found)
    else:
        show.facts([(k, found[k]) for k in ("id", "filter", "devices", "online", "release")])


@groups.command("filter")
@click.argument("group")
@click.argument("wanted", metavar="FILTER")
@connection_options
def change_filter(
    group: str, wanted: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Give a GROUP that is a filter another one."""
    client = Client(url, token, data)
    _print(client.post("groups", group, "filter", body={"filter": wanted}), as_json)


@groups.command("add")
@click.argument("group")
@click.argument("devices", nargs=-1, required=True)
@connection_options
def add_devices(
    group: str,
    devices: tuple[str, ...],
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Put DEVICES into GROUP, all or none."""
    client = Client(url, token, data)
    _print(client.post("groups", group, "add", body={"devices": devices}), as_json)


@groups.command("remove")
@click.argument("group")
@click.argument("devices", nargs=-1, required=True)
@connection_options
def remove_devices(
    group: str,
    devices: tuple[str, ...],
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Take DEVICES out of GROUP, all or none; they keep what they run."""
    client = Client(url, token, data)
    _print(client.post("groups", group, "remove", body={"devices": devices}), as_json)


@groups.command("delete")
@click.argument("group")
@connection_options
def delete_group(
    group: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Delete a GROUP that no device, token or rollout needs."""
    Client(url, token, data).delete("groups", group)
    if as_json:
        show.document("group", {"id": group, "deleted": True})
    else:
        click.echo(f"group {group} is deleted")


def _print(group: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("group", group)
    else:
        click.echo(f"{group['id']}: {group['devices']} device(s)")
