"""`edgepack fleet config`: what the agents of a group, or one agent, are set to from afar."""

import json
from pathlib import Path
from typing import Any

import click

from edgepack.errors import UsageError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["config"]


@click.group()
def config() -> None:
    """Set some keys of the agents' configuration from afar, signed, per group and device."""


group_option = click.option("--group", help="For every device of this group.")
device_option = click.option("--device", help="For this device; goes before its group.")


@config.command("set")
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...")
@group_option
@device_option
@connection_options
def set_config(
    settings: tuple[str, ...],
    group: str | None,
    device: str | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Set keys; VALUE is JSON, or a word.

    What a file on the device says about a key goes before it. A device keeps what it had if the
    new settings do not fit it, and says why.

    \b
    Example:
        edgepack fleet config set telemetry.max_kb_per_day=500 transfer.max_kbps=2000 \\
            --group cameras --data fleet
    """
    body = {"set": dict(_pair(text) for text in settings)}
    done = Client(url, token, data).post("settings", *_place(group, device), body=body)
    _show(done, as_json)


@config.command("unset")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@group_option
@device_option
@connection_options
def unset_config(
    keys: tuple[str, ...],
    group: str | None,
    device: str | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Let devices decide again what these keys are.

    \b
    Example:
        edgepack fleet config unset transfer.max_kbps --group cameras --data fleet
    """
    body = {"unset": list(keys)}
    done = Client(url, token, data).post("settings", *_place(group, device), body=body)
    _show(done, as_json)


@config.command("show")
@group_option
@device_option
@connection_options
def show_config(
    group: str | None,
    device: str | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Show what is set, and for each device whether it holds there.

    \b
    Example:
        edgepack fleet config show --group cameras --data fleet
    """
    _show(Client(url, token, data).get("settings", *_place(group, device)), as_json)


def _place(group: str | None, device: str | None) -> tuple[str, str]:
    if (group is None) == (device is None):
        raise UsageError("name a group or a device", fix="--group G, or --device ID")
    return ("group", group) if group is not None else ("device", str(device))


def _pair(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"{text!r} is not KEY=VALUE", fix="telemetry.level=health")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("settings", found)
        return
    for key, value in found["values"].items():
        click.echo(f"{key} = {show.printable(json.dumps(value))}")
    rows = [
        (d["device"], d["version"], d["reported"] or None, _standing(d), ", ".join(d["pinned"]))
        for d in found["devices"]
    ]
    headers = ("device", "desired", "reported", "state", "pinned there")
    show.table(headers, rows, "no device has been told yet")


def _standing(device: dict[str, Any]) -> str:
    if device["reported"] != device["version"]:
        return "waits"
    why = device["message"] or device["reason"]
    return f"{device['status']}: {why}" if device["status"] == "rejected" else device["status"]
