"""Who signs from now on: turns what a person asks for into changes of keys. Publishes nothing.

A key has a name in the home (`root-2`, `targets`, `line-digits`, `export`, `snapshot`,
`timestamp`) and signs for one role, `export` for two. New keys wait in `keys/next` until what
names them is published.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from securesystemslib.signer import Key
from tuf.api.metadata import Targets

from edgepack.errors import UsageError
from edgepack.metadata import parse
from edgepack_packager.adapters.publisher_home import EXPORT_KEY, ONLINE, PublisherHome
from edgepack_packager.core.draft import Change
from edgepack_packager.core.roles import KeyChange
from edgepack_packager.core.state import TOP_ROLES, State

__all__ = ["Rotation", "expiring", "in_doubt", "rotated"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """What to change about keys.

    Attributes:
        replace: Keys to replace by name; the value is where the new one is, empty to make it.
        add: Role and place of keys of other people, or on a token, that sign as well.
        remove: Role and id (its beginning is enough) of keys that sign no longer.
        threshold: How many keys of a role have to sign.
        again: Roles to sign again, whatever else happens.
    """

    replace: Mapping[str, str] = field(default_factory=dict)
    add: Sequence[tuple[str, str]] = ()
    remove: Sequence[tuple[str, str]] = ()
    threshold: Mapping[str, int] = field(default_factory=dict)
    again: Collection[str] = ()


def in_doubt(rotation: Rotation) -> list[str]:
    """Return the roles whose published state may be a thief's: those whose key is replaced."""
    return [name for name in rotation.replace if name == "targets" or name.startswith("line-")]


def rotated(
    home: PublisherHome,
    state: State,
    rotation: Rotation,
    online: Callable[[], Mapping[str, Key]] | None = None,
) -> Change:
    """Return the change of keys that ROTATION asks for, given STATE. May make keys in HOME.

    Args:
        home: Has the keys, and gets the new ones.
        state: What counts now.
        rotation: What is asked for.
        online: Returns the keys the fleet will sign with; None: there is no fleet.

    Raises:
        UsageError: there is no such key or role, or devices could not follow.
    """
    if state.gone and "snapshot" not in rotation.replace:
        raise UsageError(
            f"devices that have seen {', '.join(sorted(state.gone))} would not follow",
            why="a snapshot key never lets a line go; only a new one may",
            fix="--replace snapshot --replace timestamp as well",
            reason="line_gone",
        )
    changes = _Changes(state)
    for name in rotation.replace:  # refuses before a key is made
        for role in _roles_of(name):
            changes.remove(role, _old(home, state, name, role))
    for name, source in rotation.replace.items():
        key = _new(home, name, source, online)
        for role in _roles_of(name):
            changes.add(role, key)
    for role, source in rotation.add:
        changes.add(role, home.keys.read(source, role))
    for role, prefix in rotation.remove:
        changes.remove(role, _matching(state, role, prefix))
    for role, count in rotation.threshold.items():
        changes.threshold(role, count)
    return Change(keys=changes.all(), again=frozenset(rotation.again))


def expiring(state: State, within: timedelta, now: datetime) -> dict[str, datetime]:
    """Return the roles a publisher signs that expire WITHIN a time from NOW, with their expiry."""
    dates = {role: parse(data, Targets).signed.expires for role, data in state.roles.items()}
    dates = {"root": state.root.expires, **dates}
    return {role: date for role, date in dates.items() if date - now < within}


class _Changes:
    """Changes of keys, gathered by role."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._add: dict[str, list[Key]] = {}
        self._remove: dict[str, list[str]] = {}
        self._threshold: dict[str, int] = {}

    def add(self, role: str, key: Key) -> None:
        self._check(role)
        self._add.setdefault(role, []).append(key)

    def remove(self, role: str, keyids: Sequence[str]) -> None:
        self._check(role)
        self._remove.setdefault(role, []).extend(keyids)

    def threshold(self, role: str, count: int) -> None:
        self._check(role)
        self._threshold[role] = count

    def all(self) -> tuple[KeyChange, ...]:
        roles = sorted({*self._add, *self._remove, *self._threshold})
        return tuple(
            KeyChange(
                role,
                tuple(self._add.get(role, ())),
                tuple(dict.fromkeys(self._remove.get(role, ()))),
                self._threshold.get(role),
            )
            for role in roles
        )

    def _check(self, role: str) -> None:
        _keyids(self._state, role)


def _roles_of(name: str) -> tuple[str, ...]:
    if name == EXPORT_KEY:
        return ONLINE
    return ("root",) if name.startswith("root-") else (name,)


def _keyids(state: State, role: str) -> list[str]:
    try:
        return list(state.delegator(role).get_delegated_role(role).keyids)
    except ValueError as error:
        raise UsageError(
            f"there is no role {role}",
            why=f"roles: {', '.join((*TOP_ROLES, *sorted(state.roles.keys() - {'targets'})))}",
            reason="no_role",
        ) from error


def _old(home: PublisherHome, state: State, name: str, role: str) -> list[str]:
    """Return the id of the key NAME, which ROLE has; none for an export key that is new."""
    keyids = _keyids(state, role)
    # One that waits counts already if an earlier attempt was cut short after publishing it.
    for place in (name, f"next/{name}"):
        known = home.keys.public(place)
        if known is not None and known.keyid in keyids:
            return [known.keyid]
    export = home.keys.public(EXPORT_KEY)
    if name == EXPORT_KEY:
        return []
    if role in ONLINE and export is not None:
        keyids = [keyid for keyid in keyids if keyid != export.keyid]
    if name.startswith("root-") or len(keyids) != 1:
        raise UsageError(
            f"which key of {role} is {name}?",
            why=f"{role} is signed by {', '.join(keyid[:12] for keyid in keyids)}, "
            f"and {home.keys.path / name}.pub.pem is none of them",
            fix=f"--remove {role}=KEYID --add {role}=FILE.pub.pem",
            reason="no_key",
        )
    return keyids


def _new(
    home: PublisherHome,
    name: str,
    source: str,
    online: Callable[[], Mapping[str, Key]] | None,
) -> Key:
    if name in ONLINE and online is not None:
        return online()[name]
    waiting = f"next/{name}"
    return home.keys.adopt(waiting, source) if source else home.keys.create(waiting)


def _matching(state: State, role: str, prefix: str) -> list[str]:
    found = [keyid for keyid in _keyids(state, role) if keyid.startswith(prefix)]
    if len(prefix) < 8 or len(found) != 1:
        raise UsageError(
            f"{prefix!r} is not one key of {role}",
            why="keys: " + ", ".join(keyid[:12] for keyid in _keyids(state, role)),
            fix="give at least 8 digits of its id: edgepack repo status",
            reason="no_key",
        )
    return found
