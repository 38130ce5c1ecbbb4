"""What the manifests of published bundles say of telemetry: names, and the baseline of drift.

Reads the content store, judges nothing.
"""

import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from edgepack.counting import CONFIDENCE_EDGES
from edgepack.errors import EdgepackError
from edgepack.manifest import Manifest, read_manifest
from edgepack.oci import MANIFEST, MAX_DOCUMENT, read_oci_manifest
from edgepack_fleet.adapters.content import Content
from edgepack_fleet.core.expectation import NOTHING, Expected
from edgepack_targets.pipeline.baseline import Baseline, read_baseline

__all__ = ["Baselines", "expected_of"]

KEPT = 256
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
AGAIN_S = 60.0
"""Seconds for which a bundle that is not here is not looked for again."""
MISSES, MISSES_S = 100, 10.0
"""Bundles that are not here and are looked for in so many seconds: devices may invent them, and an
object store is far away."""


@dataclass(frozen=True, slots=True)
class _Known:
    baseline: Baseline | None = None
    expected: Expected = NOTHING


class Baselines:
    """What is known of bundles in CONTENT; any thread may ask.

    Args:
        content: Where they are.
        published: Returns the SHA-256 of all bundles that can be rolled out.
    """

    def __init__(
        self, content: Content, published: Callable[[], Collection[str]] = frozenset
    ) -> None:
        self._content, self._published, self._lock = content, published, threading.Lock()
        self._known: dict[str, _Known] = {}
        self._missing: dict[str, float] = {}
        self._listed: Collection[str] = ()
        self._misses, self._since = 0, -MISSES_S

    def of(self, digest: str) -> Baseline | None:
        """Return that of the bundle DIGEST (`sha256:...`); None: it has none, or is not here."""
        return self._about(digest).baseline

    def expected(self, release: str, digest: str) -> Expected:
        """Return what may be told of the bundle DIGEST, if it is one of RELEASE and is here."""
        found = self._about(digest).expected
        return found if found.release == release else NOTHING

    def _about(self, digest: str) -> _Known:
        with self._lock:
            known = self._known.get(digest)
            if known is not None or not self._is_worth_a_look(digest):
                return known or _Known()
        found = self._read(digest.removeprefix("sha256:"))
        with self._lock:
            kept = self._known if found else self._missing
            if len(kept) >= KEPT:
                kept.clear()
            if found:
                self._known[digest] = found
            else:
                self._missing[digest] = time.monotonic()
                self._misses += 1
        return found or _Known()

    def _is_worth_a_look(self, digest: str) -> bool:
        now = time.monotonic()
        if not DIGEST.fullmatch(digest):
            return False
        if now - self._since >= MISSES_S:
            self._misses, self._since, self._listed = 0, now, self._published()
        if digest.removeprefix("sha256:") in self._listed:
            return True
        looked = self._missing.get(digest)
        return self._misses < MISSES and (looked is None or now - looked >= AGAIN_S)

    def _document(self, sha256: str) -> bytes:
        # One byte too many is refused by who reads it: a device may name the digest of a model.
        return self._content.read(sha256, length=MAX_DOCUMENT + 1)

    def _read(self, sha256: str) -> _Known | None:
        """Return what the bundle says; None: it is not here."""
        try:
            layer = read_oci_manifest(self._document(sha256)).layer(MANIFEST)
            if layer is None:
                return _Known()
            manifest = read_manifest(self._document(layer.sha256))
        except (EdgepackError, OSError):
            return None
        baseline = read_baseline(manifest.drift)
        return _Known(baseline, expected_of(manifest, baseline))


def expected_of(manifest: Manifest, baseline: Baseline | None) -> Expected:
    """Return what may be said of the bundle of MANIFEST, which has this BASELINE."""
    known = baseline or Baseline()
    bins = {
        f"{part}.{name}.{moment}": len(counted.counts)
        for part in ("inputs", "outputs")
        for name, moments in known.moments(part).items()
        for moment, counted in moments.items()
    }
    return Expected(
        release=f"{manifest.name}@{manifest.version}",
        classes=frozenset({*manifest.labels, *known.classes}),
        indices=max((size for spec in manifest.outputs for size in spec.shape), default=0),
        features=bins,
        confidence=known.confidence.edges if known.confidence else CONFIDENCE_EDGES,
    )
