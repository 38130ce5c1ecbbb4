"""`edgepack fleet devices set|timeline|decommission`."""

from pathlib import Path
from typing import Any

import click

from edgepack.errors import UsageError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["COMMANDS", "read_tags"]


def read_tags(words: tuple[str, ...]) -> dict[str, str]:
    """Return the tags in WORDS such as `site=berlin`.

    Raises:
        UsageError: a word has no `=`.
    """
    for word in words:
        if "=" not in word:
            raise UsageError(
                f"not a tag: {word!r}", fix="write e.g. --tag site=berlin", reason="bad_tag"
            )
    return dict(word.split("=", 1) for word in words)


@click.command("set")
@click.argument("devices", nargs=-1, required=True)
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--untag", multiple=True, metavar="KEY", help="Take a tag away; may be repeated.")
@click.option("--name", help="What people call it.")
@click.option("--notes", help="What people should know about it.")
@click.option("--group", help="The group in place of the one it enrolled into.")
@connection_options
def describe(
    devices: tuple[str, ...],
    tags: tuple[str, ...],
    untag: tuple[str, ...],
    name: str | None,
    notes: str | None,
    group: str | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Say what DEVICES are: tags, a name, notes, another group."""
    changes: dict[str, str | None] = {**dict.fromkeys(untag), **read_tags(tags)}
    facts = {"name": name, "notes": notes, "group": group}
    body: dict[str, Any] = {key: value for key, value in facts.items() if value is not None}
    if changes:
        body["tags"] = changes
    if not body:
        raise UsageError("nothing is to be changed", fix="give --tag KEY=VALUE, --name or --group")
    if name and len(devices) > 1:
        raise UsageError("a name is for one device", fix="call it once for each of them")
    client = Client(url, token, data)
    changed = [client.post("devices", device, "describe", body=body) for device in devices]
    if as_json:
        show.document("devices", {"devices": changed})
        return
    for device in changed:
        said = ", ".join(f"{key}={value}" for key, value in device["tags"].items())
        click.echo(f"{device['id']}: {', '.join(device['groups'])}; {said or 'no tags'}")


@click.command("timeline")
@click.argument("device")
@click.option("--kind", type=click.Choice(["connection", "event", "job", "audit"]),
              help="Only these.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True,
              help="Entries, the newest ones.")  # fmt: skip
@connection_options
def timeline(
    device: str,
    kind: str | None,
    limit: int,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Tell what happened to a DEVICE, newest first."""
    client = Client(url, token, data)
    found = client.get("devices", device, "timeline", kind=kind, limit=limit)
    if as_json:
        show.document("timeline", {"device": device, "entries": found["items"]})
        return
    rows = [(show.moment(e["time"]), e["kind"], e["sentence"]) for e in found["items"]]
    show.table(("when", "what", "in words"), rows, "Nothing has happened yet.")


@click.command("decommission")
@click.argument("device")
@click.option("--purge", is_flag=True, help="All that it has told goes, too.")
@connection_options
def decommission(
    device: str, purge: bool, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Take a DEVICE out of service: it is shut out for good, and its name is free again."""
    client = Client(url, token, data)
    done = client.post("devices", device, "decommission", body={"purge": purge})
    if as_json:
        show.document("decommissioned", done)
        return
    where = f"what it told is kept as {done['kept_as']}" if done["kept_as"] else "nothing is kept"
    click.echo(f"{device} is out of service; {where}")


COMMANDS = (describe, timeline, decommission)
