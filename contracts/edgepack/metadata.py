"""TUF metadata as signed files in a directory: names, versions, snapshot and timestamp.

Image repository, director and a repository on a USB stick are the same thing on disk, so that
writing it lives here, once. Trusts nothing by itself: whoever reads checks signatures with
python-tuf, and the rules about models are in `edgepack.trust`.

`timestamp.json` is the commit: files it does not lead to are not part of the repository, so
that a crash between two writes leaves the old one whole.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edgepack.durable import write_file
from edgepack.signers import public_key, signer_of
from edgepack.trust import (
    DEVICE,
    EXPORT,
    ISSUED,
    MIN_EPOCH,
    ON_REVOKED,
    TargetInfo,
    TrustError,
)

__all__ = [
    "DEVICE",
    "EXPORT",
    "ISSUED",
    "MIN_EPOCH",
    "ON_REVOKED",
    "MetadataDirectory",
    "OnlineKeys",
    "keep_fresh",
    "parse",
    "public_key",
    "seal",
    "sign",
    "signer_of",
    "split_name",
    "stale",
    "target_file",
    "target_info",
    "targets_of",
    "verify",
    "version_after",
]

SNAPSHOT_LIFE = timedelta(days=7)
TIMESTAMP_LIFE = timedelta(days=1)
KEEP = 5
"""Snapshots that stay, for devices in the middle of reading."""

_NAME = re.compile(r"(?:([1-9][0-9]{0,15})\.)?([a-z][a-z0-9._-]{0,120})\.json")

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True, slots=True)
class OnlineKeys:
    """The two signers that have to be awake: of the snapshot and of the timestamp."""

    snapshot: Signer
    timestamp: Signer


class MetadataDirectory:
    """The metadata files of one repository, each replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """Return the file NAME (`timestamp.json`, `3.root.json`); None if there is none.

        Raises:
            TrustError: NAME is not the name of a metadata file (reason `bad_path`).
        """
        split_name(name)
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write the file NAME, durably.

        Raises:
            TrustError: NAME is not the name of a metadata file (reason `bad_path`).
        """
        split_name(name)
        write_file(self.path / name, data)

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write FILES, by name, in an order in which an interruption does least harm.

        A new root may take the keys away that signed what the timestamp still leads to, so
        that roots come last, right before a new timestamp.

        Raises:
            TrustError: one has no name of a metadata file (reason `bad_path`).
        """
        for name in sorted(files, key=lambda name: split_name(name)[1] == Root.type):
            self.write(name, files[name])

    def versions(self, role: str) -> list[int]:
        """Return the versions of ROLE that are here, lowest first."""
        found = (_NAME.fullmatch(path.name) for path in self.path.glob(f"*.{role}.json"))
        return sorted(int(m[1]) for m in found if m and m[1] and m[2] == role)

    def prune(self, role: str, keep: int) -> None:
        """Remove all but the KEEP newest versions of ROLE."""
        for version in self.versions(role)[:-keep]:
            (self.path / f"{version}.{role}.json").unlink(missing_ok=True)

    def timestamp(self) -> Timestamp | None:
        """Return the current timestamp, unverified: it is our own; None before the first."""
        data = self.read("timestamp.json")
        return parse(data, Timestamp).signed if data else None

    def snapshot(self) -> Snapshot | None:
        """Return the snapshot the timestamp leads to, unverified."""
        timestamp = self.timestamp()
        data = timestamp and self.read(f"{timestamp.snapshot_meta.version}.snapshot.json")
        return parse(data, Snapshot).signed if data else None

    def current(self) -> dict[str, bytes]:
        """Return the targets roles of the repository by name: `targets` and the lines."""
        snapshot = self.snapshot()
        names = {} if snapshot is None else {n[:-5]: m.version for n, m in snapshot.meta.items()}
        files = {role: self.read(f"{version}.{role}.json") for role, version in names.items()}
        return {role: data for role, data in files.items() if data is not None}


def split_name(name: str) -> tuple[int | None, str]:
    """Return version and role of the metadata file NAME; the version is None if it has none.

    Raises:
        TrustError: it is not the name of a metadata file (reason `bad_path`).
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise TrustError("bad_path", f"{name[:160]!r} is not the name of a metadata file")
    return (int(found[1]) if found[1] else None), found[2]


def parse(data: bytes, kind: type[S]) -> Metadata[S]:
    """Return DATA as metadata of KIND. Its signatures are not checked.

    Raises:
        TrustError: it is something else (reason `bad_metadata`).
    """
    try:
        metadata = Metadata[S].from_bytes(data)
    except RepositoryError as error:
        raise TrustError(
            "bad_metadata", f"this is not {kind.type} metadata", why=str(error.__cause__ or error)
        ) from error
    if not isinstance(metadata.signed, kind):
        raise TrustError(
            "bad_metadata", f"this is {metadata.signed.type} metadata, not {kind.type}"
        )
    return metadata


def sign(signed: S, *signers: Signer) -> bytes:
    """Return SIGNED with a signature of each of SIGNERS."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()


def verify(delegator: Root | Targets, role: str, metadata: Metadata[S]) -> S:
    """Return what METADATA says, if enough of the keys DELEGATOR names for ROLE signed it.

    Raises:
        TrustError: they did not (reason `bad_signature`), or ROLE is not known to DELEGATOR.
    """
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (UnsignedMetadataError, ValueError) as error:
        raise TrustError(
            "bad_signature", f"the metadata of {role} is not signed by who must", why=str(error)
        ) from error
    return metadata.signed


def version_after(last: int, now: datetime) -> int:
    """Return the version after LAST that also outruns a copy restored from an old backup."""
    return max(last + 1, int(now.timestamp()))


def stale(expires: datetime, life: timedelta, now: datetime) -> bool:
    """Return whether what EXPIRES then, of a full LIFE, is past its half-life at NOW."""
    return expires - now < life / 2


def target_file(target: TargetInfo) -> TargetFile:
    """Return TARGET as python-tuf has it."""
    return TargetFile(
        target.size, {"sha256": target.sha256}, target.path, {"custom": dict(target.custom)}
    )


def target_info(file: TargetFile) -> TargetInfo:
    """Return the target FILE in our terms.

    Raises:
        TrustError: it has no SHA-256, or facts of no shape we know (reason `bad_custom`).
    """
    if set(file.hashes) != {"sha256"} or not isinstance(file.custom, dict):
        raise TrustError("bad_custom", f"the target {file.path} is not one of ours")
    return TargetInfo(file.path, file.hashes["sha256"], file.length, file.custom)


def targets_of(line: Targets | None) -> dict[str, TargetInfo]:
    """Return the targets of LINE by path; none if there is no line.

    Raises:
        TrustError: it delegates, which a line must not, or lists what is not ours.
    """
    if line is not None and line.delegations is not None:
        raise TrustError("mismatch", "a model line delegates, which it must not")
    return {path: target_info(file) for path, file in line.targets.items()} if line else {}


def seal(
    directory: MetadataDirectory,
    roles: Mapping[str, bytes],
    keys: OnlineKeys,
    now: datetime,
    life: timedelta = TIMESTAMP_LIFE,
    *,
    export: bool = False,
) -> int:
    """Make ROLES, whose files are in DIRECTORY, the repository's current state.

    Args:
        directory: Gets a new snapshot and then, the moment it counts, a new timestamp.
        roles: Signed bytes of `targets` and of every line.
        keys: Sign the two.
        now: The time, UTC.
        life: How long the timestamp is believed.
        export: DIRECTORY is a mirror, see `EXPORT`; both live for LIFE, neither longer.

    Returns:
        Version of the new snapshot.
    """
    last = directory.timestamp()
    issued = {ISSUED: int(now.timestamp())} | ({EXPORT: True} if export else {})
    version = version_after(last.snapshot_meta.version if last else 0, now)
    meta = {f"{role}.json": _meta(data) for role, data in roles.items()}
    expires = now + (life if export else max(SNAPSHOT_LIFE, life))
    snapshot = Snapshot(version, expires=expires, meta=meta, unrecognized_fields=issued)
    data = sign(snapshot, keys.snapshot)
    directory.write(f"{version}.snapshot.json", data)
    timestamp = Timestamp(
        version_after(last.version if last else 0, now),
        expires=now + life,
        snapshot_meta=MetaFile.from_data(version, data, ["sha256"]),
        unrecognized_fields=issued,
    )
    directory.write("timestamp.json", sign(timestamp, keys.timestamp))
    directory.prune("snapshot", KEEP)
    return version


def keep_fresh(directory: MetadataDirectory, keys: OnlineKeys, now: datetime) -> bool:
    """Sign DIRECTORY's snapshot and timestamp again if either is past its half-life."""
    timestamp, snapshot = directory.timestamp(), directory.snapshot()
    if timestamp is None or snapshot is None:
        return False
    tired = stale(timestamp.expires, TIMESTAMP_LIFE, now)
    if not tired and not stale(snapshot.expires, SNAPSHOT_LIFE, now):
        return False
    seal(directory, directory.current(), keys, now)
    return True


def _meta(data: bytes) -> MetaFile:
    return MetaFile.from_data(parse(data, Targets).signed.version, data, ["sha256"])
