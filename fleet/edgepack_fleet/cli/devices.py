"""`edgepack fleet devices`: list, show, revoke; the others are in modules of their own."""

import base64
from pathlib import Path
from typing import Any

import click
import msgspec

from edgepack.errors import IntegrityError, PartialError, UsageError
from edgepack.messages import Export
from edgepack_fleet.cli import joining, organising, show
from edgepack_fleet.cli.asking import device_doctor, device_logs
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["devices"]

MAX_EXPORT = 256 * 1024**2
"""Bytes of a file of reports; a full outbox is a tenth of that."""


@click.group()
def devices() -> None:
    """List, describe, admit, ask and revoke devices; take their reports from a file."""


for _command in (*joining.COMMANDS, *organising.COMMANDS, device_doctor, device_logs):
    devices.add_command(_command)


@devices.command("list")
@click.option("--group", help="Only those of a group.")
@click.option("--online/--offline", default=None, help="Only those that are.")
@click.option("--release", metavar="NAME@VERSION", help="Only those that report it.")
@click.option("--filter", "wanted", metavar="FILTER",
              help='Only those that fit, e.g. "tag.site=berlin and online=true".')  # fmt: skip
@click.option("--attention", is_flag=True, help="Only those whose newest update has failed.")
@click.option("--host", metavar="ID", help="Only agents of one box; `show` tells its id.")
@connection_options
def list_devices(
    group: str | None,
    online: bool | None,
    release: str | None,
    wanted: str | None,
    attention: bool,
    host: str | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """List devices, all or those that fit every option."""
    client = Client(url, token, data)
    found = client.list(
        "devices",
        group=group,
        online=online,
        release=release,
        filter=wanted,
        attention=attention or None,
        host=host,
    )
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
            ("name", found["name"]),
            ("state", _state(found)),
            ("stands", found["standing"]),
            ("groups", ", ".join(found["groups"])),
            ("tags", ", ".join(f"{key}={value}" for key, value in found["tags"].items())),
            ("desired", found["desired"]),
            ("reported", found["bundle"]),
            ("target", found["target"]),
            ("update", _update(found["job"])),
            ("runtimes", ", ".join(f"{name} {version}" for name, version in runtimes.items())),
            ("host", found["inventory"].get("host")),
            ("inferences", found["inferences"]),
            ("errors", found["errors"]),
            ("last seen", show.moment(found["last_seen"])),
            ("certificate until", show.moment(found["certificate_expires"])),
            ("reports", "signed" if found["signs_reports"] else "not signed"),
            ("notes", found["notes"]),
        ]
    )


@devices.command("revoke")
@click.argument("device")
@connection_options
def revoke_device(
    device: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Shut a device out for good, and end its open session.

    It goes on inferring with the model it has. To take it back, enrol it anew.
    """
    done = Client(url, token, data).post("devices", device, "revoke")
    if as_json:
        show.document("revoked", done)
        return
    click.echo(f"{done['device']} is revoked")
    click.echo(_SESSIONS[done["session"]], err=True)


@devices.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@connection_options
def import_reports(
    file: Path, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Take the reports in FILE, which `edgepack-agent export` wrote where there is no link.

    What has arrived before does not count again; what the device has not signed is refused.

    \b
    Example:
        edgepack fleet devices import /media/stick/cam-1.json --data fleet
    """
    export = _read_export(file)
    client, refused = Client(url, token, data), []
    for message in export.messages:
        body = {"kind": message.kind, "payload": base64.b64encode(message.payload).decode()}
        answer = client.post("devices", export.device, "reports", body=body)
        refused += [answer["refused"]] if answer["refused"] else []
    taken = len(export.messages) - len(refused)
    if as_json:
        facts = {"device": export.device, "taken": taken, "refused": sorted(set(refused))}
        show.document("imported", facts)
    else:
        click.echo(f"{taken} of {len(export.messages)} messages of {export.device} taken")
    if refused:
        kind = PartialError if taken else IntegrityError
        raise kind(
            f"{len(refused)} messages in {file} are refused",
            why=", ".join(sorted(set(refused))),
            fix="export them again on the device",
            reason=refused[0],
        )


def _read_export(file: Path) -> Export:
    try:
        data = file.read_bytes()
        if len(data) > MAX_EXPORT:
            raise ValueError(f"{len(data)} bytes, at most {MAX_EXPORT} are read")
        return msgspec.json.decode(data, type=Export)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(
            f"{file} is not what `edgepack-agent export` writes", why=str(error), reason="no_export"
        ) from error


_SESSIONS = {
    "ended": "its session on the broker is ended, and it cannot come back",
    "unreachable": "the broker does not answer; its session is ended as soon as it does",
    "list_ignored": "its session is ended, but the broker does not read the revocation list: "
    "start it with the configuration of `edgepack fleet broker`",
}


def _state(device: dict[str, Any]) -> str:
    if device["revoked"]:
        return "revoked"
    return "online" if device["online"] else "offline"


def _row(device: dict[str, Any]) -> tuple[Any, ...]:
    return (
        device["id"],
        _state(device),
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
