"""Is what a publisher pushed the next state of the image repository? Pure; reads no file.

The fleet holds none of the publisher's keys. It checks a push as strictly as a device would,
so that a repository that devices refuse is never put online: the root chain, the signatures
and versions of every role, the shape of the delegations, and that nothing that is published
ever changes. A line disappears only if a new root takes away the key that delegated it: it may
have been a thief's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tuf.api.metadata import Root, Targets

from edgepack.metadata import parse, split_name, targets_of, verify
from edgepack.succession import added_targets, delegated_lines
from edgepack.trust import TargetInfo, TrustError, line_role

__all__ = ["MAX_VERSION", "Accepted", "Current", "accept"]

MAX_VERSION = 10**15
"""A name has room for ten times as much: who steals a key cannot use up what recovery needs."""


@dataclass(frozen=True, slots=True)
class Current:
    """What is online: the newest root and every targets role by name, as signed bytes."""

    root: bytes | None
    roles: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What shall be online next."""

    files: Mapping[str, bytes]
    """Metadata files to write, by name."""
    roles: Mapping[str, bytes]
    """Every targets role after the push."""
    added: tuple[TargetInfo, ...]
    """Targets that were not online before; their blobs have to be here."""


def accept(
    current: Current, files: Mapping[str, bytes], online: Mapping[str, str], now: datetime
) -> Accepted:
    """Return what pushing FILES onto CURRENT makes of it.

    Args:
        current: What is online.
        files: Pushed metadata files by name: roots, `targets` and lines.
        online: Key id of our `snapshot` and `timestamp` keys.
        now: The time, UTC.

    Raises:
        TrustError: it is not a valid next state; nothing may be written.
    """
    pushed = _newest(files)
    root = _next_root(current.root, files, now)
    _check_online(root, online)
    roles = dict(current.roles)
    targets = _role("targets", root, current, pushed, now)
    roles["targets"] = targets.data
    added: list[TargetInfo] = []
    for name in delegated_lines(targets.signed):
        line = _role(line_role(name), targets.signed, current, pushed, now)
        roles[line_role(name)] = line.data
        before = current.roles.get(line_role(name))
        old = parse(before, Targets).signed if before else None
        added += added_targets(name, targets_of(old), targets_of(line.signed))
    lost = current.roles.keys() - _delegated(targets.signed)
    if lost and not _superseded(current, root):
        raise TrustError("mismatch", f"the push takes away {', '.join(sorted(lost))}")
    if unknown := pushed.keys() - _delegated(targets.signed):
        raise TrustError("bad_path", f"nobody delegates to {', '.join(sorted(unknown))}")
    kept = {role: data for role, data in roles.items() if role not in lost}
    return Accepted(files, kept, tuple(added))


@dataclass(frozen=True, slots=True)
class _Role:
    data: bytes
    signed: Targets


def _newest(files: Mapping[str, bytes]) -> dict[str, tuple[int, bytes]]:
    newest: dict[str, tuple[int, bytes]] = {}
    for file, data in files.items():
        version, role = split_name(file)
        if version is None or role in {"snapshot", "timestamp"} or role in newest:
            raise TrustError("bad_path", f"{file} is not for a publisher to push")
        if version > MAX_VERSION:
            raise TrustError("mismatch", f"{file} leaves no room for later versions")
        if role != "root":
            newest[role] = (version, data)
    return newest


def _next_root(current: bytes | None, files: Mapping[str, bytes], now: datetime) -> Root:
    names = {split_name(name): name for name in files}
    chain = sorted(
        (version or 0, name) for (version, role), name in names.items() if role == "root"
    )
    root = parse(current, Root).signed if current else None
    for version, name in chain:
        if root is not None and version == root.version and files[name] != current:
            raise TrustError("bad_root", "this repository belongs to another publisher")
        if root is None or version > root.version:
            root = _successor(root, files[name], version)
    if root is None or root.is_expired(now):
        raise TrustError(
            "metadata_expired" if root else "bad_root", "there is no root that is valid"
        )
    return root


def _successor(root: Root | None, data: bytes, version: int) -> Root:
    metadata = parse(data, Root)
    new = verify(metadata.signed, Root.type, metadata)
    if root is not None:
        verify(root, Root.type, metadata)
    if new.version != version or version != (root.version + 1 if root else 1):
        raise TrustError("rollback", f"root {version} does not follow the root that is online")
    return new


def _check_online(root: Root, online: Mapping[str, str]) -> None:
    for role, keyid in online.items():
        # Another key may be there too: the publisher's own, which signs mirrors offline.
        if keyid not in root.roles[role].keyids or root.roles[role].threshold != 1:
            raise TrustError(
                "bad_root",
                f"the root does not name the {role} key of this fleet",
                fix="make the repository for this fleet: edgepack repo init HOME --fleet URL",
            )
    if not root.consistent_snapshot:
        raise TrustError("bad_root", "the root does not ask for consistent snapshots")


def _role(
    role: str,
    delegator: Root | Targets,
    current: Current,
    pushed: Mapping[str, tuple[int, bytes]],
    now: datetime,
) -> _Role:
    """Return ROLE as pushed, else as it is online, verified against its DELEGATOR."""
    before = current.roles.get(role)
    version, data = pushed.get(role, (None, before))
    if data is None:
        raise TrustError("metadata_missing", f"the metadata of {role} is missing")
    signed = verify(delegator, role, parse(data, Targets))
    if version is None or data == before:
        return _Role(data, signed)
    online = parse(before, Targets).signed.version if before else 0
    if signed.version != version or version <= online:
        raise TrustError(
            "rollback", f"{role} {signed.version} does not follow {role} {online}, which is online"
        )
    if signed.is_expired(now):
        raise TrustError("metadata_expired", f"the pushed metadata of {role} has expired")
    return _Role(data, signed)


def _superseded(current: Current, root: Root) -> bool:
    """Return whether the keys that signed the top role which is online count no longer."""
    try:
        verify(root, "targets", parse(current.roles["targets"], Targets))
    except TrustError:
        return True
    return False


def _delegated(targets: Targets) -> set[str]:
    return {"targets", *map(line_role, delegated_lines(targets))}
