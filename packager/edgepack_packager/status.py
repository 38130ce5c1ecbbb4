"""What a publisher's home and repository look like: roles, keys, expiry, what needs doing."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from tuf.api.metadata import Role, Root, Targets, Timestamp

from edgepack.metadata import parse
from edgepack.trust import MIN_EPOCH, ON_REVOKED, TrustError
from edgepack_packager.adapters.published import Published
from edgepack_packager.adapters.publisher_home import EXPORT_KEY, PublisherHome
from edgepack_packager.core.state import TOP_ROLES, State
from edgepack_packager.rotation import expiring
from edgepack_packager.standing import current_state

__all__ = ["overview"]


def overview(
    home: PublisherHome, repository: Published | None, within: timedelta, now: datetime
) -> dict[str, Any]:
    """Return the state of HOME and REPOSITORY; see the document `edgepack.repo-status/v1`.

    Args:
        home: The publisher's home.
        repository: Where it publishes; None: do not look there.
        within: Warn of what expires sooner.
        now: The time, UTC.

    Raises:
        IntegrityError: the repository is not this publisher's, or damaged.
        UnreachableError: the fleet does not answer.
    """
    state = current_state(home, repository)
    names = {key.keyid: name for name in home.keys.names() if (key := home.keys.public(name))}
    here = {keyid: name for keyid, name in names.items() if home.keys.has(name)}
    roles = [_role(state, role, names, here) for role in (*TOP_ROLES, *_lines(state))]
    timestamp = repository.metadata("timestamp.json") if repository else None
    online = _online(state, timestamp) if timestamp else None
    return {
        "roles": roles,
        "repository": online,
        "warnings": list(_warnings(home, state, online, within, now)),
    }


def _lines(state: State) -> list[str]:
    return sorted(role for role in state.roles if role != "targets")


def _role(state: State, role: str, names: dict[str, str], here: dict[str, str]) -> dict[str, Any]:
    keys: Role = state.delegator(role).get_delegated_role(role)
    signed: Root | Targets | None = state.root if role == "root" else None
    if role in state.roles:
        signed = parse(state.roles[role], Targets).signed
    facts: dict[str, Any] = {
        "role": role,
        "version": signed.version if signed else None,
        "expires": signed.expires.isoformat() if signed else None,
        "threshold": keys.threshold,
        "keys": [
            {"keyid": keyid, "name": names.get(keyid), "here": keyid in here}
            for keyid in keys.keyids
        ],
    }
    if role.startswith("line-") and signed is not None:
        facts["min_epoch"] = signed.unrecognized_fields.get(MIN_EPOCH, 0)
        facts["on_revoked"] = signed.unrecognized_fields.get(ON_REVOKED, "keep")
    return facts


def _online(state: State, timestamp: bytes) -> dict[str, Any]:
    metadata = parse(timestamp, Timestamp)
    try:
        state.root.verify_delegate("timestamp", metadata.signed_bytes, metadata.signatures)
        valid = True
    except (TrustError, ValueError, RuntimeError):
        valid = False
    return {"timestamp_expires": metadata.signed.expires.isoformat(), "valid": valid}


def _warnings(
    home: PublisherHome,
    state: State,
    online: dict[str, Any] | None,
    within: timedelta,
    now: datetime,
) -> Iterator[str]:
    for role, date in expiring(state, within, now).items():
        what = "edgepack repo rotate" if role == "root" else "edgepack repo refresh"
        past = "has expired" if date <= now else "expires"
        yield f"{role} {past} on {date:%Y-%m-%d}: {what}"
    for name in home.keys.names():
        if name.startswith("next/"):
            yield f"a new key {name.removeprefix('next/')} waits for a rotation to be published"
    if home.keys.public(EXPORT_KEY) is None and home.keys.public("timestamp") is None:
        yield "there is no key for mirrors: edgepack repo rotate --replace export"
    if online is not None and datetime.fromisoformat(online["timestamp_expires"]) <= now:
        yield "the repository's timestamp has expired: devices refuse it until it is signed again"
