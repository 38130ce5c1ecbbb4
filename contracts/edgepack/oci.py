"""The OCI side of a bundle: index, image manifest and ModelPack config. Opens no files.

A bundle is an OCI image of CNCF ModelPack type whose layers are its files, raw. All documents
here are canonical JSON that follows from the list of layers and the bundle's manifest, and the
readers rebuild what they read: one image, one byte string. Any OCI registry can host it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

import msgspec

from edgepack import canonical
from edgepack.errors import IntegrityError
from edgepack.manifest import FilePath, Manifest, Role

__all__ = [
    "CHUNKS",
    "LAYOUT",
    "MANIFEST",
    "MAX_DOCUMENT",
    "MLBOM",
    "PROVENANCE",
    "README",
    "SIGNATURE",
    "Layer",
    "OciManifest",
    "config_layer",
    "file_layer",
    "in_order",
    "read_index",
    "read_oci_manifest",
    "role_of",
    "write_config",
    "write_index",
    "write_oci_manifest",
]

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
MANIFEST = "manifest.json"
CHUNKS = "chunks.json"
SIGNATURE = "model.sig"
PROVENANCE, MLBOM, README = "docs/provenance.json", "docs/mlbom.json", "docs/README.md"
"""How the model came to be, what it is made of, and the same for people."""

MAX_DOCUMENT = 4 * 1024 * 1024
"""Bytes that an image manifest, a config or a bundle's manifest may have."""
_MAX_LAYERS = 4096
_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_FILE_PATH = "org.cncf.model.filepath"
_ROLES: dict[str, Role] = {
    "model/": "model",
    "golden/": "golden",
    "assets/": "asset",
    "docs/": "doc",
}
_SINGLE_FILES: dict[str, Role] = {"labels.txt": "labels", CHUNKS: "chunks"}
_ENDS = {MANIFEST: 0, SIGNATURE: 2}
_MEDIA_TYPES: dict[Role, str] = {
    "model": "application/vnd.cncf.model.weight.v1.raw",
    "golden": "application/vnd.cncf.model.dataset.v1.raw",
    "labels": "application/vnd.cncf.model.weight.config.v1.raw",
    "asset": "application/vnd.cncf.model.weight.config.v1.raw",
    "chunks": "application/vnd.cncf.model.doc.v1.raw",
    "doc": "application/vnd.cncf.model.doc.v1.raw",
}


_Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}(?![\s\S])")]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: _Digest
    size: _Size


class _Annotations(msgspec.Struct, frozen=True):
    path: FilePath = msgspec.field(name=_FILE_PATH)


class _LayerDescriptor(_Descriptor, frozen=True, rename="camel"):
    annotations: _Annotations


class _Image(msgspec.Struct, frozen=True, rename="camel"):
    config: _Descriptor
    layers: Annotated[tuple[_LayerDescriptor, ...], msgspec.Meta(max_length=_MAX_LAYERS)]


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: Annotated[tuple[_Descriptor, ...], msgspec.Meta(min_length=1, max_length=1)]


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of the image and the file it becomes; the config has no path."""

    path: str
    sha256: str
    size: int
    media_type: str


@dataclass(frozen=True, slots=True)
class OciManifest:
    """What one variant of a release is made of; its SHA-256 is the bundle's digest."""

    config: Layer
    layers: tuple[Layer, ...]

    def layer(self, path: str) -> Layer | None:
        """Return the layer that becomes PATH; None if there is none."""
        return next((layer for layer in self.layers if layer.path == path), None)

    def digests(self) -> dict[str, str]:
        """Return path to SHA-256 of every file the signature covers: all but itself."""
        return {layer.path: layer.sha256 for layer in self.layers if layer.path != SIGNATURE}

    def blobs(self) -> dict[str, int]:
        """Return SHA-256 to size of every blob but the image manifest: config, then layers."""
        return {part.sha256: part.size for part in (self.config, *self.layers)}


def role_of(path: str) -> Role | None:
    """Return the role of the file PATH; None if a bundle has no place for it."""
    folder = next((role for prefix, role in _ROLES.items() if path.startswith(prefix)), None)
    return folder or _SINGLE_FILES.get(path)


def file_layer(path: str, sha256: str, size: int) -> Layer:
    """Return the layer for a file, with the media type of its place."""
    role = role_of(path)
    return Layer(path, sha256, size, _MEDIA_TYPES[role or "doc"])


def write_config(manifest: Manifest, layers: Iterable[Layer]) -> bytes:
    """Return the ModelPack config of the bundle with MANIFEST and LAYERS."""
    return canonical.dumps(
        {
            "descriptor": {
                "name": manifest.name,
                "version": manifest.version,
                "revision": manifest.build_id,
            }
            | ({"licenses": [manifest.license]} if manifest.license else {}),
            "config": {
                "format": manifest.target.runtime,
                "precision": manifest.target.precision,
            },
            "modelfs": {
                "type": "layers",
                "diffIds": [f"sha256:{layer.sha256}" for layer in layers],
            },
        }
    )


def in_order(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Return LAYERS in their one order: the manifest, the files by path, the signature."""
    return tuple(sorted(layers, key=lambda layer: (_ENDS.get(layer.path, 1), layer.path)))


def config_layer(data: bytes) -> Layer:
    """Return the description of the config DATA."""
    return Layer("", hashlib.sha256(data).hexdigest(), len(data), _CONFIG_TYPE)


def write_oci_manifest(config: Layer, layers: Iterable[Layer]) -> bytes:
    """Return the image manifest; the layers are put into their one order."""
    return canonical.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "artifactType": _ARTIFACT_TYPE,
            "config": _describe(config),
            "layers": [
                _describe(layer) | {"annotations": {_FILE_PATH: layer.path}}
                for layer in in_order(layers)
            ],
        }
    )


def read_oci_manifest(data: bytes) -> OciManifest:
    """Return the image manifest in DATA.

    Every path is one a bundle may have, so that a device can write the layers below a
    directory as they are named.

    Raises:
        IntegrityError: too large, not canonical, not the one form for its layers, or a path
            that is doubled, out of place or in the way of another.
    """
    image = _read(data, _Image, "image manifest")
    config = Layer("", image.config.digest[7:], image.config.size, _CONFIG_TYPE)
    layers = tuple(
        file_layer(part.annotations.path, part.digest[7:], part.size) for part in image.layers
    )
    _check_layers(layers)
    if write_oci_manifest(config, layers) != data:
        raise _bad("image manifest", "it is not in its one canonical form")
    return OciManifest(config, layers)


def write_index(oci_manifest: bytes) -> bytes:
    """Return the `index.json` of a layout that holds one image."""
    digest = hashlib.sha256(oci_manifest).hexdigest()
    return _index(f"sha256:{digest}", len(oci_manifest))


def read_index(data: bytes) -> tuple[str, int]:
    """Return SHA-256 and size of the image manifest that the index DATA names.

    Raises:
        IntegrityError: not the canonical index of exactly one image.
    """
    found = _read(data, _Index, "index.json").manifests[0]
    if _index(found.digest, found.size) != data or found.size > MAX_DOCUMENT:
        raise _bad("index.json", "it is not in its one canonical form")
    return found.digest[7:], found.size


def _index(digest: str, size: int) -> bytes:
    return canonical.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {
                    "mediaType": _MANIFEST_TYPE,
                    "artifactType": _ARTIFACT_TYPE,
                    "digest": digest,
                    "size": size,
                }
            ],
        }
    )


def _describe(layer: Layer) -> dict[str, Any]:
    return {
        "mediaType": layer.media_type,
        "digest": f"sha256:{layer.sha256}",
        "size": layer.size,
    }


def _check_layers(layers: tuple[Layer, ...]) -> None:
    paths = [layer.path for layer in layers]
    folded = {path.casefold() for path in paths}
    if len(folded) != len(paths) or {MANIFEST, CHUNKS} - set(paths):
        raise _bad("image manifest", "a file is listed twice, or one that must be there is not")
    if any(role_of(path) is None for path in paths if path not in {MANIFEST, SIGNATURE}):
        raise _bad("image manifest", "a file is not in a place that bundles have")
    if any(str(parent) in folded for path in folded for parent in PurePosixPath(path).parents):
        raise _bad("image manifest", "a file has the name of a directory")
    if len({layer.sha256 for layer in layers}) != len({(la.sha256, la.size) for la in layers}):
        raise _bad("image manifest", "one digest has two sizes")


_T = TypeVar("_T")


def _read(data: bytes, kind: type[_T], what: str) -> _T:
    if len(data) > MAX_DOCUMENT:
        raise _bad(what, f"{len(data)} bytes, at most {MAX_DOCUMENT} are read")
    try:
        return msgspec.convert(canonical.loads(data, what=what), kind)
    except msgspec.ValidationError as error:
        raise _bad(what, str(error)) from error


def _bad(what: str, why: str) -> IntegrityError:
    return IntegrityError(f"the {what} is not valid", why=why, reason="bad_image")
