"""What the manifests of published bundles say of drift. Reads the content store, judges nothing."""

import threading

from edgepack.errors import EdgepackError
from edgepack.manifest import read_manifest
from edgepack.oci import MANIFEST, MAX_DOCUMENT, read_oci_manifest
from edgepack_fleet.adapters.content import Content
from edgepack_targets.pipeline.baseline import Baseline, read_baseline

__all__ = ["Baselines"]

KEPT = 256


class Baselines:
    """The baselines of bundles in CONTENT; any thread may ask."""

    def __init__(self, content: Content) -> None:
        self._content, self._lock = content, threading.Lock()
        self._known: dict[str, Baseline | None] = {}

    def of(self, digest: str) -> Baseline | None:
        """Return that of the bundle DIGEST (`sha256:...`); None: it has none, or is not here."""
        with self._lock:
            if digest in self._known:
                return self._known[digest]
        found, here = self._read(digest.removeprefix("sha256:"))
        if here:
            with self._lock:
                if len(self._known) >= KEPT:
                    self._known.clear()
                self._known[digest] = found
        return found

    def _document(self, sha256: str) -> bytes:
        # One byte too many is refused by who reads it: a device may name the digest of a model.
        return self._content.read(sha256, length=MAX_DOCUMENT + 1)

    def _read(self, sha256: str) -> tuple[Baseline | None, bool]:
        """Return the baseline, and whether the bundle is here at all."""
        try:
            layer = read_oci_manifest(self._document(sha256)).layer(MANIFEST)
            if layer is None:
                return None, True
            return read_baseline(read_manifest(self._document(layer.sha256)).drift), True
        except (EdgepackError, OSError):
            return None, False
