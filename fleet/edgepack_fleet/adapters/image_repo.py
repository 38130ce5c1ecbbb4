"""The publisher's repository, kept online. Holds the keys of snapshot and timestamp, no others.

Cannot add a model: what exists is signed by keys that are not here. A push is checked by
`core.publication`, its blobs must have arrived, then it becomes visible at once, by the
timestamp.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Targets

from edgepack.metadata import (
    MetadataDirectory,
    OnlineKeys,
    keep_fresh,
    parse,
    seal,
    target_info,
)
from edgepack.oci import read_oci_manifest
from edgepack.trust import TargetInfo, TrustError, exam_path
from edgepack_fleet.adapters.content import ContentStore
from edgepack_fleet.adapters.online_signer import online_signer
from edgepack_fleet.core.publication import Current, accept

__all__ = ["ImageRepo", "PublishResult", "ReleaseInfo", "VariantInfo"]

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
        content: ContentStore,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._metadata = MetadataDirectory(directory / "metadata")
        self._content, self._clock = content, clock
        keys = directory / "keys"
        self._keys = {role: online_signer(keys / f"{role}.pem") for role in OnlineKeys.__slots__}
        self._lock = threading.Lock()
        self._signed = False
        """Whether this process has signed snapshot and timestamp."""

    def online_keys(self) -> dict[str, Any]:
        """Return our public keys for a publisher's root, as TUF writes them, by role."""
        keys = {role: signer.public_key for role, signer in self._keys.items()}
        return {role: {"keyid": key.keyid, **key.to_dict()} for role, key in keys.items()}

    def publish(self, files: Mapping[str, bytes]) -> PublishResult:
        """Make FILES, metadata signed by the publisher, the current state.

        Args:
            files: By name: the whole root chain, `targets` and the lines that changed.

        Raises:
            TrustError: they are not a valid next state, or a blob is missing (reason
                `metadata_missing`); everything is as it was.
        """
        with self._lock:
            online = {role: signer.public_key.keyid for role, signer in self._keys.items()}
            accepted = accept(self._current(), files, online, self._clock())
            for target in accepted.added:
                self._check_blobs(target)
            for name, data in accepted.files.items():
                self._metadata.write(name, data)
            snapshot = seal(self._metadata, accepted.roles, self._online(), self._clock())
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
        seen later versions than it.
        """
        with self._lock:
            if not self._signed and self._metadata.timestamp() is not None:
                self._signed = True
                seal(self._metadata, self._metadata.current(), self._online(), now or self._clock())
                return True
            return keep_fresh(self._metadata, self._online(), now or self._clock())

    def _current(self) -> Current:
        roots = self._metadata.versions("root")
        root = self._metadata.read(f"{roots[-1]}.root.json") if roots else None
        return Current(root, self._metadata.current())

    def _online(self) -> OnlineKeys:
        return OnlineKeys(**self._keys)

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
