"""A slot on disk: the extracted bundle that a runner serves. Checks it; loads no model.

The files were verified when they were staged. They are verified again here, by the process
that is about to use them, because months may have passed on a cheap flash card since.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepack import oci
from edgepack.errors import IntegrityError
from edgepack.manifest import FileEntry, Manifest, read_manifest
from edgepack.oci import Layer

__all__ = ["Slot", "open_slot"]


@dataclass(frozen=True, slots=True)
class Slot:
    """A verified slot."""

    directory: Path
    manifest: Manifest
    digest: str
    """`sha256:` and the SHA-256 of the image manifest, worked out from the files themselves."""


def open_slot(directory: Path) -> Slot:
    """Return the slot in DIRECTORY after reading every byte of it.

    Raises:
        IntegrityError: `bad_manifest`, `file_missing`, `digest_mismatch`, `unlisted_file`.
    """
    data = _read_manifest_file(directory)
    manifest = read_manifest(data)
    listed = {entry.path for entry in manifest.files} | {oci.MANIFEST, oci.SIGNATURE}
    if extra := sorted(set(_files(directory)) - listed):
        raise IntegrityError(
            f"{extra[0]} is in the slot but not in the manifest", reason="unlisted_file"
        )
    for entry in manifest.files:
        _check(directory, entry)
    return Slot(directory, manifest, _digest(directory, manifest, data))


def _read_manifest_file(directory: Path) -> bytes:
    try:
        with (directory / oci.MANIFEST).open("rb") as file:
            return file.read(oci.MAX_DOCUMENT + 1)
    except OSError as error:
        raise IntegrityError(
            "the slot has no manifest", why=str(error), reason="file_missing"
        ) from error


def _files(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path.relative_to(directory).as_posix()


def _check(directory: Path, entry: FileEntry) -> None:
    path = directory / entry.path
    try:
        if path.is_symlink():
            raise IntegrityError(f"{entry.path} is a link", reason="unlisted_file")
        layer = _measure(path, entry.path)
    except OSError as error:
        raise IntegrityError(
            f"{entry.path} cannot be read", why=str(error), reason="file_missing"
        ) from error
    if (layer.size, layer.sha256) != (entry.size, entry.sha256):
        raise IntegrityError(f"{entry.path} is not the file it was", reason="digest_mismatch")


def _measure(path: Path, name: str) -> Layer:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return oci.file_layer(name, digest, file.tell())


def _digest(directory: Path, manifest: Manifest, data: bytes) -> str:
    own = oci.file_layer(oci.MANIFEST, hashlib.sha256(data).hexdigest(), len(data))
    files = [oci.file_layer(entry.path, entry.sha256, entry.size) for entry in manifest.files]
    signature = directory / oci.SIGNATURE
    signed = [_measure(signature, oci.SIGNATURE)] if signature.is_file() else []
    layers = [own, *files, *signed]
    config = oci.config_layer(oci.write_config(manifest, layers))
    return f"sha256:{hashlib.sha256(oci.write_oci_manifest(config, layers)).hexdigest()}"
