"""`edgepack fleet tokens`: let devices enrol, and people log in."""

from pathlib import Path

import click

from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options
from edgepack_fleet.cli.organising import read_tags

__all__ = ["tokens"]

DAY_S = 86_400.0


@click.group()
def tokens() -> None:
    """Let devices enrol, and people log in."""


@tokens.command("create")
@click.option("--group", required=True, help="Group of the devices that enrol with it.")
@click.option("--ttl", type=float, default=3600.0, show_default=True, help="Seconds it is good.")
@click.option("--uses", type=int, default=1, show_default=True, help="Devices it lets in.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE",
              help="What its devices are tagged with; may be repeated.")  # fmt: skip
@click.option("--approval", "approval_s", type=float, is_flag=False, flag_value=DAY_S,
              metavar="[SECONDS]", help="A person must accept each device, within a day or so many "
              "seconds, unless it is preauthorised.")  # fmt: skip
@connection_options
def create_token(
    group: str,
    ttl: float,
    uses: int,
    tags: tuple[str, ...],
    approval_s: float | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Print a token for `edgepack-agent enroll`; it is shown this once."""
    body = {"group": group, "ttl_s": ttl, "uses": uses, "tags": read_tags(tags)}
    body |= {} if approval_s is None else {"approval_s": approval_s}
    made = Client(url, token, data).post("tokens", body=body)
    if as_json:
        show.document("token", made)
    else:
        click.echo(made["token"])
        click.echo(f"good for {uses} device(s) until {show.moment(made['expires'])}", err=True)


@tokens.command("list")
@connection_options
def list_tokens(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List enrolment tokens, without their secrets."""
    found = Client(url, token, data).list("tokens")
    if as_json:
        show.document("tokens", found)
        return
    rows = [
        (t["id"], t["group"], f"{t['used']}/{t['uses']}", show.moment(t["expires"]))
        for t in found["tokens"]
    ]
    empty = "No token yet: edgepack fleet tokens create --group GROUP"
    show.table(("token", "group", "used", "expires"), rows, empty)


@tokens.command("show")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The fleet's directory, on this machine.",
)
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="viewer",
              show_default=True, help="What its bearer may do.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def show_token(data: Path, role: str, as_json: bool) -> None:
    """Print this machine's access token for a role."""
    from edgepack_fleet.access import ROLES, bootstrap_token, fleet_secret

    known = next(known for known in ROLES if known == role)
    text = bootstrap_token(fleet_secret(data, create=False), known)
    if as_json:
        show.document("access", {"role": role, "token": text})
    else:
        click.echo(text)
