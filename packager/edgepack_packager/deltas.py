"""Patches from published versions to a new one: makes, tries and offers them. Signs nothing.

A patch is offered only after it has been applied here and made what it should.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuf.api.metadata import Targets

from edgepack.bundle import Bundle
from edgepack.errors import UsageError
from edgepack.metadata import parse, target_info
from edgepack.oci import Layer, read_oci_manifest
from edgepack.offers import Offer
from edgepack.patch import CODECS
from edgepack.trust import TargetInfo, line_role, model_target
from edgepack_packager.adapters.patch_workshop import Progress, Workshop
from edgepack_packager.adapters.published import Published
from edgepack_packager.core.deltas import WORTH, Delta, Pair, bases_of, changed

__all__ = ["offer_deltas"]


def offer_deltas(
    repository: Published,
    bundles: Sequence[Bundle],
    roles: Mapping[str, bytes],
    wanted: Sequence[str],
    progress: Progress = lambda *_: None,
) -> tuple[Delta, ...]:
    """Offer patches to the large files of BUNDLES in REPOSITORY, which has them already.

    Args:
        repository: Has the bases too.
        bundles: The new versions.
        roles: Every targets role as it is to be, by name.
        wanted: `auto`, releases as `name@version`, or nothing.
        progress: Told how it goes.

    Returns:
        What every file that differs takes from every base, known offers included.

    Raises:
        UsageError: a wanted release is not published, for none of the bundles.
        EdgepackError: a worker crashed, or a patch did not make what it should.
    """
    pairs = _pairs(repository, bundles, roles, wanted)
    sources = {sha: bundle for bundle in bundles for sha in bundle.blobs()}
    found: list[Delta] = []
    with Workshop(progress) as workshop:
        for pair in pairs:
            delta = _known(pair, repository)
            if delta is None:
                _bring(pair, workshop, repository, sources[pair.target])
                delta = _make(pair, workshop, repository)
            found.append(delta)
    return tuple(found)


def _pairs(
    repository: Published,
    bundles: Sequence[Bundle],
    roles: Mapping[str, bytes],
    wanted: Sequence[str],
) -> list[Pair]:
    """Return what differs between the bundles and their bases, each pair of blobs once."""
    pairs: dict[tuple[str, str], Pair] = {}
    met: set[str] = set()
    for bundle in bundles if wanted else ():
        target = model_target(bundle.manifest, bundle.oci_manifest)
        line = parse(roles[line_role(bundle.manifest.name)], Targets).signed.targets
        new = _layers(bundle.oci_manifest)
        for path in bases_of(target.path, line, wanted):
            base = target_info(line[path])
            if not repository.has(base.sha256, base.size):
                continue
            met.add(base.model.release)
            old = _layers(_document(repository, base))
            for pair in changed(base.model.release, old, target.model.release, new):
                if repository.has(pair.base, pair.base_size):
                    pairs.setdefault((pair.base, pair.target), pair)
    if missing := set(wanted) - met - {"auto"}:
        raise UsageError(
            f"{', '.join(sorted(missing))} is not published as a variant of what is to be",
            fix="name another base, or leave it to --delta-from auto",
            reason="unknown_release",
        )
    return list(pairs.values())


def _layers(document: bytes) -> dict[str, Layer]:
    return {layer.path: layer for layer in read_oci_manifest(document).layers}


def _document(repository: Published, target: TargetInfo) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgepack-") as name:
        path = Path(name) / "manifest"
        repository.fetch(target.sha256, target.size, path)
        return path.read_bytes()


def _known(pair: Pair, repository: Published) -> Delta | None:
    """Return what is offered for PAIR already, if the patch is there."""
    for offer in repository.offers(pair.target, pair.target_size).offers:
        known = offer.base == pair.base and offer.codec in CODECS
        if known and repository.has(offer.patch, offer.size):
            codec = CODECS[CODECS.index(offer.codec)]
            return Delta(pair, codec, offer.size, {codec: offer.size})
    return None


def _bring(pair: Pair, workshop: Workshop, repository: Published, bundle: Bundle) -> None:
    """Have both blobs of PAIR in the WORKSHOP."""
    base, target = workshop.file(pair.base), workshop.file(pair.target)
    if not base.exists():
        repository.fetch(pair.base, pair.base_size, base)
    if not target.exists():
        with bundle.open_blob(pair.target) as blob, target.open("wb") as file:
            shutil.copyfileobj(blob, file)


def _make(pair: Pair, workshop: Workshop, repository: Published) -> Delta:
    """Make PAIR's patches and offer the smallest, if it is worth it."""
    made = [patch for codec in CODECS if (patch := workshop.make(pair, codec)) is not None]
    tried: dict[str, int] = {patch.codec: patch.size for patch in made}
    best = min(made, key=lambda patch: patch.size, default=None)
    if best is None or best.size > WORTH * pair.target_size:
        return Delta(pair, "full", pair.target_size, tried)
    digest = workshop.prove(pair, best)
    if not repository.has(digest, best.size):
        with best.path.open("rb") as file:
            repository.put(digest, best.size, file)
    offer = Offer(
        base=pair.base, base_size=pair.base_size, codec=best.codec, patch=digest, size=best.size
    )
    repository.offer(pair.target, pair.target_size, [offer])
    return Delta(pair, best.codec, best.size, tried)
