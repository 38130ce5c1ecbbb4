"""A bundle's files as one whole: what follows from what, whichever way they travelled.

The manifest lists the files, the image names the blobs, the build id and the config are
derived. A reader of the archive and a device that fetched blob by blob check it alike.
"""

import hashlib

import msgspec

from edgepack import canonical, oci
from edgepack.errors import IntegrityError
from edgepack.manifest import FileEntry, Manifest, read_manifest
from edgepack.oci import MANIFEST, SIGNATURE, Layer, OciManifest

__all__ = ["build_id", "check_tree", "file_entry", "model_bytes"]

_UNLISTED = frozenset({MANIFEST, SIGNATURE})


def file_entry(layer: Layer) -> FileEntry:
    """Return the manifest's entry for the file of LAYER."""
    role = oci.role_of(layer.path) or "doc"
    return FileEntry(path=layer.path, role=role, size=layer.size, sha256=layer.sha256)


def build_id(manifest: Manifest) -> str:
    """Return the first 16 hex digits of the SHA-256 of MANIFEST without its build id."""
    fields = msgspec.to_builtins(manifest)
    del fields["build_id"]
    return hashlib.sha256(canonical.dumps(fields)).hexdigest()[:16]


def model_bytes(manifest: Manifest) -> int:
    """Return the sum of the sizes of the model's own files."""
    return sum(entry.size for entry in manifest.files if entry.role == "model")


def check_tree(image: OciManifest, manifest_bytes: bytes) -> Manifest:
    """Return the bundle's manifest, after checking that it and IMAGE describe the same bundle.

    Raises:
        IntegrityError: the manifest is not the one IMAGE names, or they differ on a file, or
            the config or the build id does not follow from them.
    """
    own = image.layer(MANIFEST)
    if own is None or hashlib.sha256(manifest_bytes).hexdigest() != own.sha256:
        raise _contradiction("the manifest is not the one the image names")
    manifest = read_manifest(manifest_bytes)
    listed = tuple(file_entry(layer) for layer in image.layers if layer.path not in _UNLISTED)
    if manifest.files != listed:
        raise _contradiction("the manifest and the image list different files")
    if {manifest.golden.inputs, manifest.golden.outputs} - {entry.path for entry in listed}:
        raise _contradiction("the golden vectors are not among the files")
    if manifest.build_id != build_id(manifest):
        raise _contradiction("the build id does not follow from the manifest")
    if image.config != oci.config_layer(oci.write_config(manifest, image.layers)):
        raise _contradiction("the config does not follow from the manifest")
    return manifest


def _contradiction(why: str) -> IntegrityError:
    return IntegrityError("the bundle contradicts itself", why=why, reason="bad_tree")
