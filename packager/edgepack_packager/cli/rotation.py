"""`edgepack repo rotate|refresh|status`: who signs, and for how long. The work is in `rotation`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from securesystemslib.signer import Key

from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.cli.keys import ask_passphrase
from edgepack_packager.cli.places import (
    default_home,
    fleet_at,
    home_option,
    json_option,
    place,
    repo_option,
    source,
    token_option,
    valid_option,
)
from edgepack_packager.core.draft import Change, State
from edgepack_packager.repository import Revision, public_keys, revise
from edgepack_packager.rotation import Rotation, expiring, in_doubt, rotated
from edgepack_packager.standing import Doubt, current_state
from edgepack_packager.status import overview

__all__ = [
    "KeyOptions",
    "fleets_keys",
    "key_options",
    "refresh",
    "rotate",
    "status",
    "tell",
    "warn",
]

SOON = 30
"""Days before which it is said that something expires."""


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """The options about keys, as they were given."""

    replace: tuple[str, ...]
    add: tuple[str, ...]
    remove: tuple[str, ...]
    threshold: tuple[str, ...]
    keep: tuple[str, ...]
    discard: tuple[str, ...]

    @property
    def rotation(self) -> Rotation:
        """What they ask for.

        Raises:
            UsageError: one is not what it should be.
        """
        replace = {name: value for name, _, value in (each.partition("=") for each in self.replace)}
        counts = dict(_pair("threshold", each) for each in self.threshold)
        if bad := [value for value in counts.values() if not value.isdigit()]:
            raise UsageError(f"--threshold takes ROLE=NUMBER, not {bad[0]!r}", reason="usage")
        return Rotation(
            replace,
            [_pair("add", each) for each in self.add],
            [_pair("remove", each) for each in self.remove],
            {role: int(value) for role, value in counts.items()},
        )

    @property
    def doubt(self) -> Doubt:
        """Whose published state may be a thief's, and what was said about it."""
        return Doubt(in_doubt(self.rotation), self.keep, self.discard)


def key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give COMMAND the options about keys, as one `KeyOptions` called `keys`."""
    options = (
        click.option("--replace", multiple=True, metavar="NAME[=NEW]",
                     help="Replace a key: root-1, targets, line-X, export, snapshot, timestamp. "
                     "NEW is FILE.pub.pem or a URI; without it a key is made."),
        click.option("--add", multiple=True, metavar="ROLE=NEW", help="Let one more key sign."),
        click.option("--remove", multiple=True, metavar="ROLE=KEYID", help="Retire a key."),
        click.option("--threshold", multiple=True, metavar="ROLE=N", help="How many must sign."),
        click.option("--keep", multiple=True, metavar="ROLE",
                     help="What is published of ROLE is ours, though this home does not know it."),
        click.option("--discard", multiple=True, metavar="ROLE",
                     help="It is a thief's: go back to what this home knows."),
    )  # fmt: skip

    def wrapped(**said: Any) -> Any:
        names = KeyOptions.__slots__
        keys = KeyOptions(**{name: said.pop(name) for name in names})  # type: ignore[attr-defined]
        return command(keys=keys, **said)

    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    result: Callable[..., Any] = wrapped
    for option in reversed(options):
        result = option(result)
    return result


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


def tell(done: Revision, where: str, *, as_json: bool) -> None:
    """Print what a revision changed."""
    if as_json:
        facts = {"repo": where, "files": list(done.files), "changes": list(done.summary)}
        print_json({"schema": "edgepack.revision/v1", **facts, "snapshot": done.snapshot})
        return
    for text in done.summary or ("nothing to do",):
        click.echo(text)


def fleets_keys(where: str, token: str) -> Callable[[], Mapping[str, Key]] | None:
    """Return a way to ask the fleet at WHERE for the keys it will sign with; None: no fleet."""
    if not where.startswith(("http://", "https://")):
        return None

    def ask() -> Mapping[str, Key]:
        with fleet_at(where, token) as fleet:
            return public_keys(fleet.next_online_keys())

    return ask


def warn(state: State, now: datetime) -> None:
    """Say on standard error what expires soon."""
    for role, date in expiring(state, timedelta(days=SOON), now).items():
        click.echo(f"warning: {role} expires on {date:%Y-%m-%d}: edgepack repo refresh", err=True)


def _pair(option: str, text: str) -> tuple[str, str]:
    role, _, value = text.partition("=")
    if not role or not value:
        raise UsageError(f"--{option} takes ROLE=VALUE, not {text!r}", reason="usage")
    return role, value


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
