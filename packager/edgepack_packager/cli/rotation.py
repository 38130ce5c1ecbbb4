"""`edgepack repo rotate|refresh|status`: who signs, and for how long. The work is in `rotation`."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.cli.key_options import SOON, KeyOptions, fleets_keys, key_options, tell
from edgepack_packager.cli.keys import ask_passphrase
from edgepack_packager.cli.places import (
    default_home,
    home_option,
    json_option,
    place,
    repo_option,
    source,
    token_option,
    valid_option,
)
from edgepack_packager.core.draft import Change
from edgepack_packager.repository import revise
from edgepack_packager.rotation import expiring, rotated
from edgepack_packager.standing import current_state
from edgepack_packager.status import overview

__all__ = ["refresh", "rotate", "status"]


@click.command()
@key_options
@repo_option
@home_option
@token_option
@valid_option
@json_option
def rotate(
    keys: KeyOptions, where: str, home: Path | None, token: str, valid_for: int, as_json: bool
) -> None:
    """Change who signs, by a new root that the old one's keys sign too.

    Without options the root is signed again for a year. Needs enough root keys in HOME/keys;
    if they are elsewhere, `repo sign-request` takes the same options. Signatures of replaced
    keys stop counting at once; devices follow when they next ask, however long they were away.

    \b
    Example:
        edgepack repo rotate --replace line-digits --replace root-2 --home publisher \\
            --repo https://fleet.example:8080
    """
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    with place(where, token, owner, now, timedelta(days=valid_for)) as there:
        state = current_state(owner, there, keys.doubt)
        change = rotated(owner, state, keys.rotation, fleets_keys(where, token))
        if not change.keys:
            change = Change(again=frozenset({"root"}))
        tell(revise(owner, there, state, change, now), where, as_json=as_json)


@click.command()
@click.option("--within", type=click.IntRange(1, 365), default=45, show_default=True,
              metavar="DAYS", help="Sign again what expires sooner than that.")  # fmt: skip
@repo_option
@home_option
@token_option
@valid_option
@json_option
def refresh(
    within: int, where: str, home: Path | None, token: str, valid_for: int, as_json: bool
) -> None:
    """Sign again what expires soon; a mirror or a long pause needs that. Changes nothing else.

    Root keys are mostly elsewhere: if the root expires too, and they are, that is said, and the
    rest is signed.

    \b
    Example:
        edgepack repo refresh --home publisher --repo https://fleet.example:8080
    """
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    with place(where, token, owner, now, timedelta(days=valid_for)) as there:
        state = current_state(owner, there)
        tired = set(expiring(state, timedelta(days=within), now))
        try:
            done = revise(owner, there, state, Change(again=frozenset(tired)), now)
        except UsageError as error:
            if error.reason != "signatures_missing" or "root" not in tired:
                raise
            click.echo(f"warning: the root is not signed again: {error.why}", err=True)
            change = Change(again=frozenset(tired - {"root"}))
            done = revise(owner, there, current_state(owner, there), change, now)
        tell(done, where, as_json=as_json)


@click.command()
@click.option("--repo", "where", metavar="DIR|URL", help="Look there too.")
@home_option
@token_option
@click.option("--within", type=click.IntRange(1, 365), default=SOON, show_default=True,
              metavar="DAYS", help="Warn of what expires sooner than that.")  # fmt: skip
@json_option
def status(where: str | None, home: Path | None, token: str, within: int, as_json: bool) -> None:
    """Show roles, keys, thresholds, versions, expiry, and what needs doing.

    \b
    Example:
        edgepack repo status --home publisher --repo https://fleet.example:8080
    """
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    if where:
        with source(where, token, owner, now) as there:
            found = overview(owner, there, timedelta(days=within), now)
    else:
        found = overview(owner, None, timedelta(days=within), now)
    if as_json:
        print_json({"schema": "edgepack.repo-status/v1", "home": str(owner.path), **found})
        return
    for line in _table(found):
        click.echo(line)
    for text in found["warnings"]:
        click.echo(f"warning: {text}", err=True)


def _table(found: Mapping[str, Any]) -> Iterator[str]:
    for role in found["roles"]:
        version = f"v{role['version']}" if role["version"] else "-"
        expires = (role["expires"] or "-")[:10]
        yield (
            f"{role['role']:<20} {version:<12} until {expires:<10}  "
            f"{role['threshold']} of {len(role['keys'])} keys"
        )
        for key in role["keys"]:
            here = "here" if key["here"] else "elsewhere"
            yield f"    {key['keyid'][:12]}  {key['name'] or '-':<20} {here}"
