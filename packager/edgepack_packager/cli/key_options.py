"""The options about keys that commands share, and what they print. Signs nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from securesystemslib.signer import Key

from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack_packager.cli.places import fleet_at
from edgepack_packager.core.state import State
from edgepack_packager.rotation import Rotation, expiring, in_doubt
from edgepack_packager.standing import Doubt

if TYPE_CHECKING:
    from edgepack_packager.repository import Revision

__all__ = ["SOON", "KeyOptions", "fleets_keys", "key_options", "tell", "warn"]

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
        """Whose published state may be a thief's, and what was said about it.

        Raises:
            UsageError: it was said of a role whose key stays.
        """
        roles = in_doubt(self.rotation)
        if idle := sorted({*self.keep, *self.discard} - set(roles)):
            raise UsageError(
                f"nothing is in doubt about {', '.join(idle)}",
                why="what is published counts as long as the key that signed it does",
                fix=f"--replace {idle[0]} as well",
                reason="usage",
            )
        return Doubt(roles, self.keep, self.discard)


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
        keys = KeyOptions(**{name: said.pop(name) for name in names})
        return command(keys=keys, **said)

    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    result: Callable[..., Any] = wrapped
    for option in reversed(options):
        result = option(result)
    return result


def tell(done: "Revision", where: str, *, as_json: bool) -> None:
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
        from edgepack_packager.repository import public_keys

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
