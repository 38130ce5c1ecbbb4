"""Is what a publisher pushed the next state of the image repository? Pure; reads no file.

The fleet holds none of the publisher's keys. It checks a push as strictly as a device would,
so that a repository that devices refuse is never put online: the root chain, the signatures
and versions of every role, the shape of the delegations, and that nothing that is published
ever changes or disappears.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from tuf.api.metadata import Root, Targets

from edgepack.metadata import parse, split_name, target_info, verify
from edgepack.trust import (
    TargetInfo,
    TrustError,
    exam_path,
    line_paths,
    line_role,
    parse_model_path,
)

__all__ = ["Accepted", "Current", "accept"]


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
    for name in _lines(targets.signed):
        line = _role(line_role(name), targets.signed, current, pushed, now)
        roles[line_role(name)] = line.data
        added += _added(name, current.roles.get(line_role(name)), line.signed)
    if lost := current.roles.keys() - _delegated(targets.signed):
        raise TrustError("mismatch", f"the push takes away {', '.join(sorted(lost))}")
    if unknown := pushed.keys() - _delegated(targets.signed):
        raise TrustError("bad_path", f"nobody delegates to {', '.join(sorted(unknown))}")
    return Accepted(files, roles, tuple(added))


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


def _delegated(targets: Targets) -> set[str]:
    return {"targets", *map(line_role, _lines(targets))}


def _lines(targets: Targets) -> Iterator[str]:
    """Yield the names of the model lines TARGETS delegates to; nothing else may be in there."""
    if targets.targets:
        raise TrustError("mismatch", "the top role lists targets itself")
    roles = (targets.delegations and targets.delegations.roles) or {}
    for role, delegation in roles.items():
        name = role.removeprefix("line-")
        if role != line_role(name) or delegation.paths != line_paths(name):
            raise TrustError("mismatch", f"{role} is delegated other paths than a line's own")
        if not delegation.terminating:
            raise TrustError("mismatch", f"the delegation to {role} does not end the search")
        yield name


def _added(name: str, before: bytes | None, line: Targets) -> Iterator[TargetInfo]:
    """Yield the targets of LINE that are new; of the old ones only the exam may have changed."""
    old = parse(before, Targets).signed.targets if before else {}
    if line.delegations is not None:
        raise TrustError("mismatch", f"the line {name} delegates, which it must not")
    for path, file in line.targets.items():
        info = target_info(file)
        if path == exam_path(name):
            info.exam  # noqa: B018  reading it is the check
        elif parse_model_path(path)[0] != name or info.model.path != path:
            raise TrustError("bad_path", f"{path} is not a model of the line {name}")
        elif path in old and target_info(old[path]) != info:
            raise TrustError("mismatch", f"{path} is published already, with other content")
        if path not in old or target_info(old[path]) != info:
            yield info
