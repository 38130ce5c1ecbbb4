"""`edgepack fleet devices pending|accept|reject|preauthorise|preauthorised`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgepack.errors import EdgepackError, PartialError, UsageError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options
from edgepack_fleet.core.expected import read_expected

__all__ = ["COMMANDS"]

LARGEST = 16 * 1024**2
"""Bytes of a list of devices."""


@click.command("pending")
@click.option("--all", "everybody", is_flag=True, help="Also those that are decided.")
@connection_options
def pending(
    everybody: bool, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """List devices that wait to be accepted; compare the fingerprint with the device's."""
    state = None if everybody else "pending"
    found = Client(url, token, data).list("applicants", state=state)
    if as_json:
        show.document("applicants", found)
        return
    rows = [
        (a["id"], a["name"], a["group"], a["state"], a["fingerprint"][:16],
         a["inventory"].get("arch"), show.moment(a["deadline"]))
        for a in found["applicants"]
    ]  # fmt: skip
    headers = ("applicant", "wants to be", "group", "state", "key", "machine", "until")
    show.table(headers, rows, "Nobody waits.")


def _deciding(action: str, text: str) -> click.Command:
    @click.command(action, help=text)
    @click.argument("applicants", nargs=-1, required=True)
    @connection_options
    def decide(
        applicants: tuple[str, ...],
        url: str | None,
        token: str | None,
        data: Path | None,
        as_json: bool,
    ) -> None:
        client = Client(url, token, data)
        done, failed = _each(applicants, lambda a: client.post("applicants", a, action))
        if as_json:
            show.document("applicants", {"applicants": done})
        else:
            for applicant in done:
                name = show.plain(applicant["name"])
                click.echo(f"{applicant['id']} ({name}) is {applicant['state']}")
        if failed and not done:
            raise failed[0]
        if failed:
            raise PartialError(
                f"{len(failed)} of {len(applicants)} could not be decided",
                why="; ".join(error.what for error in failed),
                reason=failed[0].reason,
            )

    return decide


def _each(
    names: tuple[str, ...], do: Callable[[str], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[EdgepackError]]:
    done: list[dict[str, Any]] = []
    failed: list[EdgepackError] = []
    for name in names:
        try:
            done.append(do(name))
        except UsageError as error:
            failed.append(error)
    return done, failed


@click.command("preauthorise")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--group", help="For lines without a group.")
@connection_options
def preauthorise(
    file: Path,
    group: str | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Let the devices of a list in without asking, once each.

    FILE is CSV; its first line names the columns: id (or serial), fingerprint, group, tag.KEY.
    They must come with a token of `tokens create --approval`.
    """
    devices = read_expected(_text(file), group)
    made = Client(url, token, data).post("preauthorised", body={"devices": devices})
    if as_json:
        show.document("preauthorised", made)
    else:
        click.echo(f"{made['added']} device(s) are expected")


def _text(file: Path) -> str:
    try:
        with file.open("rb") as source:
            raw = source.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ValueError(f"at most {LARGEST} bytes are read")
        return raw.decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}", why=str(error), reason="bad_list") from error


@click.command("preauthorised")
@click.option("--forget", "entries", multiple=True, metavar="ENTRY",
              help="Expect it no more; may be repeated.")  # fmt: skip
@connection_options
def preauthorised(
    entries: tuple[str, ...], url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """List devices that are let in without asking."""
    client = Client(url, token, data)
    for entry in entries:
        client.delete("preauthorised", entry)
    found = client.list("preauthorised")
    if as_json:
        show.document("preauthorised", found)
        return
    rows = [
        (e["id"], e["device"], e["fingerprint"][:16], e["group"],
         ", ".join(f"{key}={value}" for key, value in e["tags"].items()), e["used_by"])
        for e in found["preauthorised"]
    ]  # fmt: skip
    headers = ("entry", "device", "key", "group", "tags", "came as")
    show.table(headers, rows, "No device is expected: edgepack fleet devices preauthorise FILE.csv")


COMMANDS = (
    pending,
    _deciding("accept", "Let APPLICANTS in when they ask the next time."),
    _deciding("reject", "Refuse APPLICANTS."),
    preauthorise,
    preauthorised,
)
