"""Exports a repository to a directory, for sites without a network. Signs no model.

A mirror is the publisher's metadata as it is, under a snapshot and timestamp of its own: the
fleet's are good for days, a mirror's for as long as it travels. Blobs first, then metadata,
then the timestamp that makes it count; what is there already is not copied again.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Targets

from edgepack.errors import IntegrityError, UsageError
from edgepack.metadata import parse, target_info
from edgepack.oci import read_oci_manifest
from edgepack.offers import MIN_TARGET
from edgepack.trust import MAX_MODEL_BYTES, TargetInfo
from edgepack_packager.adapters.published import DirectoryRepository, Published
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.core.state import State
from edgepack_packager.standing import current_state

__all__ = ["Exported", "export"]

Blob = tuple[str, int]
"""SHA-256 in hex, and size in bytes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What a mirror holds: releases, bytes of all their blobs and of those copied now, expiry."""

    releases: tuple[str, ...]
    size_bytes: int
    copied_bytes: int
    expires: datetime
    snapshot: int


def export(
    home: PublisherHome,
    source: Published,
    directory: Path,
    releases: Collection[str],
    life: timedelta,
    now: datetime,
    *,
    patches: bool = False,
) -> Exported:
    """Make DIRECTORY a mirror of SOURCE.

    Run again, it copies what is missing and is good for LIFE from NOW.

    Args:
        home: Of the publisher; its export key signs.
        source: Where metadata and blobs come from.
        directory: Gets `metadata/`, `blobs/sha256/`, and `patches/` if they are wanted.
        releases: `NAME@VERSION` of what to take along; empty: everything.
        life: How long devices believe the mirror.
        now: The time, UTC.
        patches: Take the patches along too: for a mirror that devices fetch from over a network.

    Raises:
        UsageError: there is no such release, DIRECTORY is something else, cannot be written,
            or the publisher's own signatures expire before the mirror would.
        IntegrityError: SOURCE is not this publisher's, or damaged.
        UnreachableError: the fleet does not answer.
    """
    keys = home.export_keys()
    state = current_state(home, source)
    _check_expiry(state, now + life)
    place = DirectoryRepository(directory, lambda _: keys, now, life, export=True)
    place.check(state.roots["1.root.json"])
    chosen = list(_chosen(state, releases))
    copied, blobs = 0, []
    for sha256, size in _blobs(place, chosen):
        copied += _copy(place, source, sha256, size)
        blobs.append((sha256, size))
    for sha256, size in _patches(place, source, tuple(blobs) if patches else ()):
        copied += _copy(place, source, sha256, size)
        blobs.append((sha256, size))
    snapshot = place.commit(state.files, state.roles)
    names = {t.model.release for t in chosen if t.path.endswith(".json")}
    total = sum(size for _, size in blobs)
    return Exported(tuple(sorted(names)), total, copied, now + life, snapshot)


def _check_expiry(state: State, until: datetime) -> None:
    dates = {role: parse(data, Targets).signed.expires for role, data in state.roles.items()}
    dates["root"] = state.root.expires
    tired = {role: date for role, date in dates.items() if date < until}
    if tired:
        said = ", ".join(f"{role} on {date:%Y-%m-%d}" for role, date in sorted(tired.items()))
        raise UsageError(
            f"the mirror would outlive the publisher's own signatures: {said}",
            fix="sign again first: edgepack repo refresh; or choose a shorter --valid-for",
            reason="expires_sooner",
        )


def _chosen(state: State, releases: Collection[str]) -> Iterator[TargetInfo]:
    """Yield the models of RELEASES, or all, and the exams of their lines."""
    lines = [parse(data, Targets).signed for role, data in state.roles.items() if role != "targets"]
    targets = [[target_info(file) for file in line.targets.values()] for line in lines]
    known = {t.model.release for line in targets for t in line if t.path.endswith(".json")}
    if unknown := sorted(set(releases) - known):
        raise UsageError(
            f"there is no release {', '.join(unknown)}",
            why=f"published: {', '.join(sorted(known)) or 'nothing'}",
            reason="no_release",
        )
    for line in targets:
        models = [t for t in line if t.path.endswith(".json")]
        taken = [t for t in models if not releases or t.model.release in releases]
        yield from taken
        yield from (t for t in line if taken and t not in models)


def _blobs(place: DirectoryRepository, chosen: Collection[TargetInfo]) -> Iterator[Blob]:
    """Yield every blob of CHOSEN once; what was yielded has to be in PLACE when the next is."""
    done: set[str] = set()
    for target in chosen:
        yield target.sha256, target.size
        if not target.path.endswith(".json"):
            continue
        if target.size > MAX_MODEL_BYTES:
            raise IntegrityError(f"{target.path} is too large", reason="too_long")
        blobs = read_oci_manifest(place.file(target.sha256).read_bytes()).blobs()
        yield from ((sha256, size) for sha256, size in blobs.items() if sha256 not in done)
        done |= blobs.keys()


def _patches(
    place: DirectoryRepository, source: Published, blobs: Sequence[Blob]
) -> Iterator[Blob]:
    """Yield the patches to BLOBS that SOURCE offers; PLACE offers them once they are there."""
    for sha256, size in blobs:
        offers = source.offers(sha256, size).offers if size >= MIN_TARGET else ()
        yield from ((offer.patch, offer.size) for offer in offers)
        if offers:
            place.offer(sha256, size, offers)


def _copy(place: DirectoryRepository, source: Published, sha256: str, size: int) -> int:
    """Copy a blob if it is missing; return the bytes copied."""
    if place.has(sha256, size):
        return 0
    place.fetch_from(source, sha256, size)
    return size
