"""`edgepack fleet devices|groups`."""

from pathlib import Path
from typing import Any

import click

from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["devices", "groups"]


@click.group()
def devices() -> None:
    """List and show devices."""


@devices.command("list")
@connection_options
def list_devices(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List all devices."""
    found = Client(url, token, data).get("devices")
    if as_json:
        show.document("devices", found)
        return
    headers = ("device", "state", "group", "desired", "reported", "target", "update", "last seen")
    rows = [_row(device) for device in found["devices"]]
    show.table(headers, rows, "No device has enrolled yet: edgepack fleet tokens create --group G")


@devices.command("show")
@click.argument("device")
@connection_options
def show_device(
    device: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Show one device."""
    found = Client(url, token, data).get("devices", device)
    if as_json:
        show.document("device", found)
        return
    runtimes = found["inventory"].get("runtimes", {})
    show.facts(
        [
            ("device", found["id"]),
            ("state", "online" if found["online"] else "offline"),
            ("group", found["group"]),
            ("desired", found["desired"]),
            ("reported", found["bundle"]),
            ("target", found["target"]),
            ("update", _update(found["job"])),
            ("runtimes", ", ".join(f"{name} {version}" for name, version in runtimes.items())),
            ("inferences", found["inferences"]),
            ("errors", found["errors"]),
            ("last seen", show.moment(found["last_seen"])),
        ]
    )


@click.group()
def groups() -> None:
    """List, create and show groups."""


@groups.command("list")
@connection_options
def list_groups(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List all groups."""
    found = Client(url, token, data).get("groups")
    if as_json:
        show.document("groups", found)
        return
    rows = [(g["id"], g["devices"], g["online"], g["release"]) for g in found["groups"]]
    empty = "There is no group yet: edgepack fleet groups create NAME"
    show.table(("group", "devices", "online", "release"), rows, empty)


@groups.command("create")
@click.argument("group")
@connection_options
def create_group(
    group: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Create a group."""
    made = Client(url, token, data).post("groups", body={"id": group})
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
        show.facts([(k, found[k]) for k in ("id", "devices", "online", "release")])


def _row(device: dict[str, Any]) -> tuple[Any, ...]:
    return (
        device["id"],
        "online" if device["online"] else "offline",
        device["group"],
        device["desired"],
        device["bundle"],
        device["target"],
        _update(device["job"]),
        show.moment(device["last_seen"]),
    )


def _update(job: dict[str, Any] | None) -> str:
    if job is None:
        return ""
    words = (job["release"], job["status"].lower(), job["reason"])
    return " ".join(word for word in words if word)
