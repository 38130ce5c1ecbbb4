"""`edgepack fleet access|audit`: tokens of people and programs, and what they changed."""

import time
from pathlib import Path

import click

from edgepack.cli import FiniteRange
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["access", "audit"]

DAY_S = 86_400.0


@click.group()
def access() -> None:
    """Create, list and revoke access tokens of people and programs."""


@access.command("create")
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="viewer",
              show_default=True, help="What its bearer may do.")  # fmt: skip
@click.option("--days", type=FiniteRange(min=0, min_open=True, max=3650), default=90.0,
              show_default=True, help="How long it is good.")  # fmt: skip
@click.option("--for-ever", is_flag=True, help="It does not end by itself.")
@connection_options
def create_access(
    name: str,
    role: str,
    days: float,
    for_ever: bool,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Print a new token for NAME, a person or a program; it is shown this once.

    \b
    Example:
        edgepack fleet access create ci --role operator --days 30 --data fleet
    """
    body = {"name": name, "role": role, "ttl_s": None if for_ever else max(1.0, days * DAY_S)}
    made = Client(url, token, data).post("access-tokens", body=body)
    if as_json:
        show.document("access-token", made)
        return
    click.echo(made["token"])
    until = f"until {show.moment(made['expires'])}" if made["expires"] else "for ever"
    click.echo(f"{made['id']}: {role}, good {until}", err=True)


@access.command("list")
@connection_options
def list_access(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List access tokens, without their secrets."""
    found = Client(url, token, data).list("access-tokens")
    if as_json:
        show.document("access-tokens", found)
        return
    rows = [
        (t["id"], t["name"], t["role"], show.moment(t["expires"]), show.moment(t["last_used"]))
        for t in found["access_tokens"]
    ]
    show.table(("token", "name", "role", "expires", "last used"), rows, "There is none.")


@access.command("revoke")
@click.argument("token_id", metavar="ID")
@connection_options
def revoke_access(
    token_id: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Let the token of ID, as `list` shows it, in no more."""
    Client(url, token, data).delete("access-tokens", token_id)
    if as_json:
        show.document("revoked", {"id": token_id})
    else:
        click.echo(f"{token_id} is revoked")


@click.group()
def audit() -> None:
    """Read who changed what."""


@audit.command("list")
@click.option("--who", metavar="ID", help="Only what was done with this access token.")
@click.option("--action", help="Only this, e.g. create_rollout.")
@click.option("--days", type=FiniteRange(min=0), help="Only what is not older.")
@click.option("--refused/--done", default=None, help="Only what was, or was not, refused.")
@connection_options
def list_audit(
    who: str | None,
    action: str | None,
    days: float | None,
    refused: bool | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """List who changed what, when and from where, newest first."""
    since = None if days is None else max(0.0, time.time() - days * DAY_S)
    client = Client(url, token, data)
    found = client.list("audit", who=who, action=action, since=since, refused=refused)
    if as_json:
        show.document("audit", found)
        return
    rows = [
        (
            show.moment(e["time"]),
            f"{e['name']} ({e['who']})",
            e["address"],
            e["action"],
            " ".join([e["path"], *(f"{name}={value}" for name, value in e["detail"].items())]),
            e["reason"] or "done",
        )
        for e in found["audit"]
    ]
    show.table(("when", "who", "from", "what", "of", "result"), rows, "Nothing was changed.")
