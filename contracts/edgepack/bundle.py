"""The `.edgepack` file: written once, read strictly, extracted for a device. Runs no model.

A bundle is an OCI image (see `oci`) in one canonical zip (see `archive` and `container`): the
manifest, the files it lists, a chunk list and, if it is signed, `model.sig`. Whatever is not
content follows from it and is rebuilt by the reader. Nothing dated is inside, so neither a
clock nor SOURCE_DATE_EPOCH plays a part.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import oci, oms, tree
from edgepack.archive import Archive, Content, measure, write_archive
from edgepack.chunks import MAX_LIST, write_chunks
from edgepack.container import MAX_SIZE
from edgepack.errors import IntegrityError, UnsupportedError, UsageError
from edgepack.manifest import Manifest, read_manifest, write_manifest
from edgepack.oci import CHUNKS, MANIFEST, SIGNATURE, Layer

__all__ = ["Bundle", "BundleInfo", "open_bundle", "write_bundle"]


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """A bundle that was just written."""

    path: Path
    digest: str
    """`sha256:` and the SHA-256 of the image manifest in hex."""
    size_bytes: int
    model_bytes: int
    """Sum of the files of role `model`."""
    manifest: Manifest
    """As written: with `files` and `build_id`."""


class Bundle:
    """An open bundle whose form and digests have been checked; who signed it has not.

    Attributes:
        path: The file.
        size_bytes: Its size.
        oci_manifest: The image manifest's bytes: what a repository signs.
        image: The same, read.
        manifest_bytes: What the bundle says about itself, as signed.
        manifest: The same, read.
    """

    def __init__(self, path: Path, archive: Archive) -> None:
        self.path = path
        self._archive = archive
        self.size_bytes = archive.size
        self.oci_manifest, self.image = archive.oci_manifest, archive.image
        self.manifest_bytes = self._read_limited(MANIFEST, oci.MAX_DOCUMENT)
        self.manifest = tree.check_tree(self.image, self.manifest_bytes)
        listed = {entry.sha256 for entry in self.manifest.files}
        chunks = {sha256: parts for sha256, parts in archive.chunks.items() if sha256 in listed}
        if self._read_limited(CHUNKS, MAX_LIST) != write_chunks(chunks):
            raise IntegrityError("the chunk list does not match the files", reason="bad_chunks")

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 of the image manifest in hex: the bundle's identity."""
        return f"sha256:{hashlib.sha256(self.oci_manifest).hexdigest()}"

    @property
    def signed(self) -> bool:
        """Whether there is a `model.sig`; only `verify` says what it is worth."""
        return self.image.layer(SIGNATURE) is not None

    @property
    def signer(self) -> str | None:
        """Id of the key that the bundle says signed it; None if it is not signed."""
        return oms.signer(self._read_limited(SIGNATURE, oci.MAX_DOCUMENT)) if self.signed else None

    @property
    def model_bytes(self) -> int:
        """Sum of the sizes of the model's own files."""
        return tree.model_bytes(self.manifest)

    def verify(self, public: ec.EllipticCurvePublicKey) -> None:
        """Check that PUBLIC signed every file of this bundle.

        Raises:
            IntegrityError: `unsigned`, `wrong_key`, `digest_mismatch` or `bad_signature`.
        """
        if not self.signed:
            raise IntegrityError(
                "the bundle is not signed",
                fix="build it with --key; `edgepack keys create` makes a key",
                reason="unsigned",
            )
        signature = self._read_limited(SIGNATURE, oci.MAX_DOCUMENT)
        oms.verify_files(signature, self.image.digests(), public)

    def paths(self) -> tuple[str, ...]:
        """Return the path of every file, `manifest.json` first, `model.sig` last."""
        return tuple(layer.path for layer in self.image.layers)

    def read(self, path: str) -> bytes:
        """Return the content of the file PATH.

        Raises:
            UsageError: the bundle has no such file.
            IntegrityError: the bundle was changed since it was opened.
        """
        return b"".join(self._archive.pieces(self._layer(path).sha256))

    def extract(self, directory: Path) -> None:
        """Write the files below DIRECTORY as they were signed: `manifest.json`, `model/...`.

        Raises:
            UsageError: DIRECTORY cannot be written, or a file is already there.
            IntegrityError: the bundle was changed since it was opened.
        """
        for layer in self.image.layers:
            target = directory / layer.path
            with _writable(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.writelines(self._archive.pieces(layer.sha256))

    def blobs(self) -> Mapping[str, int]:
        """Return SHA-256 to size of every blob, the image manifest first: what is published."""
        return self._archive.blobs()

    def open_blob(self, sha256: str) -> BinaryIO:
        """Return the blob SHA256 as a file open for reading, with a position of its own.

        Raises:
            UsageError: the bundle has no such blob.
        """
        return self._archive.open_blob(sha256)

    def close(self) -> None:
        """Close the file; blobs opened from it end with it."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _layer(self, path: str) -> Layer:
        layer = self.image.layer(path)
        if layer is None:
            raise UsageError(
                f"the bundle has no file {path}",
                why=f"it has {', '.join(self.paths())}",
                reason="no_such_file",
            )
        return layer

    def _read_limited(self, path: str, limit: int) -> bytes:
        if self._layer(path).size > limit:
            raise IntegrityError(f"{path} is larger than {limit} bytes", reason="too_large")
        return self.read(path)


def open_bundle(path: Path) -> Bundle:
    """Return the bundle in the file PATH, its container, documents and digests checked.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        IntegrityError: a byte of it is not what it must be.
    """
    try:
        file = path.open("rb")
        try:
            return Bundle(path, Archive(file))
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot read the bundle {path}",
            why=error.strerror or str(error),
            reason="unreadable",
        ) from error


def write_bundle(
    out_dir: Path,
    manifest: Manifest,
    files: Mapping[str, Path],
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> BundleInfo:
    """Write the bundle of FILES to OUT_DIR, under the manifest's own file name.

    The same input gives the same bytes. An older file of that name is replaced at the end; if
    anything fails, it is untouched and nothing else is left behind.

    Args:
        out_dir: Made if it is missing.
        manifest: `files` and `build_id` are filled in, whatever they hold.
        files: Path in the bundle (`model/...`, `golden/...`, `assets/...`, `docs/...`,
            `labels.txt`) to the file with the content.
        key: Signs the bundle; None leaves it unsigned.

    Raises:
        UsageError: a file is missing, or a path or a field of the manifest is not allowed.
        UnsupportedError: larger than 4 GiB.
    """
    _check_sources(files)
    tree_files = {path: measure(source) for path, source in files.items()}
    tree_files[CHUNKS] = measure(_chunk_list(tree_files))
    filled = _fill(manifest, tree_files)
    tree_files[MANIFEST] = measure(write_manifest(filled))
    if key:
        digests = {path: content.sha256 for path, content in tree_files.items()}
        tree_files[SIGNATURE] = measure(oms.sign_files(digests, key))
    target = out_dir / filled.file_name
    with _writable(target):
        out_dir.mkdir(parents=True, exist_ok=True)
        size, digest = _write_file(target, *_image(filled, tree_files))
    return BundleInfo(target, digest, size, tree.model_bytes(filled), filled)


def _check_sources(files: Mapping[str, Path]) -> None:
    for path, source in files.items():
        if oci.role_of(path) is None or path == CHUNKS:
            raise UsageError(f"a bundle has no place for a file {path}", reason="bad_path")
        if not source.is_file():
            raise UsageError(f"there is no file {source}", reason="no_such_file")
    total = sum(source.stat().st_size for source in files.values())
    if total > MAX_SIZE:
        raise UnsupportedError(
            f"{total / 2**30:.1f} GiB do not fit into a bundle, whose limit is 4 GiB",
            fix="choose a smaller model or a lower precision",
            reason="too_large",
        )


def _chunk_list(files: Mapping[str, Content]) -> bytes:
    return write_chunks({file.sha256: file.chunks for file in files.values() if file.chunks})


def _layers(files: Mapping[str, Content]) -> list[Layer]:
    return [oci.file_layer(path, file.sha256, file.size) for path, file in files.items()]


def _fill(manifest: Manifest, files: Mapping[str, Content]) -> Manifest:
    entries = sorted(map(tree.file_entry, _layers(files)), key=lambda entry: entry.path)
    filled = msgspec.structs.replace(manifest, files=tuple(entries))
    filled = msgspec.structs.replace(filled, build_id=tree.build_id(filled))
    try:
        return read_manifest(write_manifest(filled))
    except IntegrityError as error:
        raise UsageError(
            "the description of the bundle is not valid", why=error.why, reason=error.reason
        ) from error


def _image(manifest: Manifest, files: Mapping[str, Content]) -> tuple[bytes, dict[str, Content]]:
    """Return the image manifest and its blobs: SHA-256 to content."""
    layers = oci.in_order(_layers(files))
    config = oci.write_config(manifest, layers)
    blobs = {content.sha256: content for content in (measure(config), *files.values())}
    return oci.write_oci_manifest(oci.config_layer(config), layers), blobs


def _write_file(target: Path, oci_manifest: bytes, blobs: Mapping[str, Content]) -> tuple[int, str]:
    """Write TARGET in one step; what the reader refuses never gets its name."""
    handle, name = tempfile.mkstemp(prefix=".edgepack-", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            size = write_archive(file, oci_manifest, blobs)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        with open_bundle(part) as written:
            digest = written.digest
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return size, digest


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {target}", why=error.strerror or str(error), reason="unwritable"
        ) from error
