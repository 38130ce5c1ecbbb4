"""The publisher's repository, kept online. Holds the keys of snapshot and timestamp, no others.

Cannot add a model: what exists is signed by keys that are not here. A push is checked by
`core.publication`, its blobs must have arrived, then it becomes visible at once, by the
timestamp.

The online keys change when the publisher's root says so: new ones wait as `ROLE.next.pem`, and
take their place as soon as a root that names them is here. Keys no root names sign nothing.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Root, Targets, Timestamp

from edgepack.metadata import (
    MetadataDirectory,
    OnlineKeys,
    keep_fresh,
    parse,
    seal,
    split_name,
    target_info,
    verify,
)
from edgepack.oci import read_oci_manifest
from edgepack.trust import TargetInfo, TrustError, exam_path
from edgepack_fleet.adapters.content import Content
from edgepack_fleet.adapters.lock import alone
from edgepack_fleet.adapters.online_signer import online_signer
from edgepack_fleet.core.publication import Current, accept

__all__ = ["ImageRepo", "PublishResult", "ReleaseInfo", "VariantInfo"]

log = logging.getLogger(__name__)
ROLES = ("snapshot", "timestamp")
VariantInfo = TargetInfo
"""A variant of a release is a target: path, sha256, size and custom; `.model` has the facts."""


@dataclass(frozen=True, slots=True)
class ReleaseInfo:
    """One version of a model line, with a variant for every kind of device."""

    name: str
    version: str
    variants: tuple[VariantInfo, ...]


@dataclass(frozen=True, slots=True)
class PublishResult:
    """Releases (`name@version`) that a push made new, and the snapshot's version."""

    releases: tuple[str, ...]
    snapshot: int


class ImageRepo:
    """The image repository in DIRECTORY, its blobs in CONTENT.

    Args:
        directory: Gets `metadata/` and `keys/`.
        content: Where the publisher's blobs arrive.
        clock: The time, UTC.
    """

    def __init__(
        self,
        directory: Path,
        content: Content,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._metadata = MetadataDirectory(directory / "metadata")
        self._content, self._clock = content, clock
        self._key_files = directory / "keys"
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        with alone(directory):  # workers may start at the same moment
            self._keys = {role: online_signer(self._file(role)) for role in ROLES}
        self._signed = False
        """Whether this process has signed snapshot and timestamp."""

    def online_keys(self) -> dict[str, Any]:
        """Return our public keys for a publisher's root, as TUF writes them, by role."""
        # Another worker may have put new ones in their place.
        return {role: _facts(online_signer(self._file(role))) for role in ROLES}

    def next_online_keys(self) -> dict[str, Any]:
        """Make keys to replace the online keys, if there are none yet; return their publics.

        They sign as soon as a root that names them is published.
        """
        with alone(self._directory):
            return {role: _facts(online_signer(self._file(f"{role}.next"))) for role in ROLES}

    def publish(self, files: Mapping[str, bytes]) -> PublishResult:
        """Make FILES, metadata signed by the publisher, the current state.

        Args:
            files: By name: the whole root chain, `targets` and the lines that changed.

        Raises:
            TrustError: they are not a valid next state, or a blob is missing (reason
                `metadata_missing`); everything is as it was.
        """
        with alone(self._directory):
            self._promote()
            online = self._named(_newest_root(files) or self._root())
            keyids = {role: signer.public_key.keyid for role, signer in online.items()}
            accepted = accept(self._current(), files, keyids, self._clock())
            for target in accepted.added:
                self._check_blobs(target)
            self._metadata.write_all(accepted.files)
            self._promote()
            snapshot = seal(self._metadata, accepted.roles, OnlineKeys(**online), self._clock())
            self._signed = True
        models = [t.model for t in accepted.added if not t.path.endswith("/exam.npz")]
        return PublishResult(tuple(sorted({model.release for model in models})), snapshot)

    def metadata(self, name: str) -> bytes | None:
        """Return the metadata file NAME for a device; None if there is none of that name."""
        if name == "timestamp.json":
            self.keep_fresh()
        try:
            return self._metadata.read(name)
        except TrustError:
            return None

    def releases(self) -> list[ReleaseInfo]:
        """Return what is published, by name, the newest publication of a line last."""
        found: dict[tuple[str, str], list[VariantInfo]] = {}
        for role, data in sorted(self._metadata.current().items()):
            for path, file in parse(data, Targets).signed.targets.items():
                if path == exam_path(role.removeprefix("line-")):
                    continue
                variant = target_info(file)
                model = variant.model
                found.setdefault((model.name, model.version), []).append(variant)
        return [ReleaseInfo(*release, tuple(variants)) for release, variants in found.items()]

    def exams(self) -> set[str]:
        """Return the SHA-256 of every exam of a model line."""
        return {
            file.hashes["sha256"]
            for role, data in self._metadata.current().items()
            for path, file in parse(data, Targets).signed.targets.items()
            if path == exam_path(role.removeprefix("line-"))
        }

    def keep_fresh(self, now: datetime | None = None) -> bool:
        """Sign snapshot and timestamp again if one is past its half-life; return whether.

        The first time in any case: what is here may be a restored backup, and devices may have
        seen later versions than it. Nothing if the publisher's root does not name our keys.
        """
        now = now or self._clock()
        with alone(self._directory):
            root, timestamp = self._root(), self._metadata.read("timestamp.json")
            if root is None or timestamp is None:
                return False
            self._promote()
            online = OnlineKeys(**self._keys)
            if not _names(root, self._keys):
                log.error("the publisher's root does not name our online keys: nothing is signed")
                return False
            # A push of new keys may have been cut short: then the old ones have signed.
            if not self._signed or not _signed_for(root, timestamp):
                self._signed = True
                seal(self._metadata, self._metadata.current(), online, now)
                return True
            return keep_fresh(self._metadata, online, now)

    def _root(self) -> Root | None:
        versions = self._metadata.versions("root")
        data = self._metadata.read(f"{versions[-1]}.root.json") if versions else None
        return parse(data, Root).signed if data else None

    def _named(self, root: Root | None) -> dict[str, Signer]:
        """Return the signers, of those in use and those that wait, that ROOT names."""
        named: dict[str, Signer] = dict(self._keys)
        for role in ROLES:
            if root is not None and self._file(f"{role}.next").exists():
                waiting = online_signer(self._file(f"{role}.next"))
                if waiting.public_key.keyid in root.roles[role].keyids:
                    named[role] = waiting
        return named

    def _promote(self) -> None:
        """Put the keys that wait in their place, if the newest root names them."""
        for role, signer in self._named(self._root()).items():
            if signer.public_key.keyid != self._keys[role].public_key.keyid:
                for suffix in (".pem", ".pub.pem"):
                    waiting = self._file(f"{role}.next").with_suffix(suffix)
                    waiting.replace(self._file(role).with_suffix(suffix))
        self._keys = {role: online_signer(self._file(role)) for role in ROLES}

    def _file(self, name: str) -> Path:
        return self._key_files / f"{name}.pem"

    def _current(self) -> Current:
        roots = self._metadata.versions("root")
        root = self._metadata.read(f"{roots[-1]}.root.json") if roots else None
        return Current(root, self._metadata.current())

    def _check_blobs(self, target: TargetInfo) -> None:
        wanted = {target.sha256: target.size}
        self._check_present(target.path, wanted)
        if target.path.endswith(".json"):
            image = read_oci_manifest(self._content.read(target.sha256))
            wanted = {layer.sha256: layer.size for layer in (image.config, *image.layers)}
            self._check_present(target.path, wanted)

    def _check_present(self, path: str, blobs: Mapping[str, int]) -> None:
        for sha256, size in blobs.items():
            if self._content.size(sha256) != size:
                raise TrustError(
                    "metadata_missing",
                    f"a blob of {path} has not arrived",
                    why=f"sha256 {sha256}, {size} bytes",
                    fix="publish its bundle again",
                )


def _facts(signer: CryptoSigner) -> dict[str, Any]:
    key = signer.public_key
    return {"keyid": key.keyid, **key.to_dict()}


def _newest_root(files: Mapping[str, bytes]) -> Root | None:
    """Return the newest root of FILES, unverified."""
    roots = [split_name(name) for name in files]
    versions = [version or 0 for version, role in roots if role == Root.type]
    return parse(files[f"{max(versions)}.root.json"], Root).signed if versions else None


def _names(root: Root, keys: Mapping[str, CryptoSigner]) -> bool:
    return all(key.public_key.keyid in root.roles[role].keyids for role, key in keys.items())


def _signed_for(root: Root, timestamp: bytes) -> bool:
    try:
        verify(root, Timestamp.type, parse(timestamp, Timestamp))
    except TrustError:
        return False
    return True
