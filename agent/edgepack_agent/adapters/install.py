"""The long steps of an update, each a function for the worker. Touches no state and no runner.

Every step may be repeated: what is there already is found and not done again.
"""

import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgepack.chunks import CHUNK_SIZE, MAX_LIST, read_chunks
from edgepack.errors import EdgepackError, IntegrityError, UnreachableError
from edgepack.manifest import Manifest, read_manifest
from edgepack.messages import Inventory
from edgepack.oci import CHUNKS, MANIFEST, MAX_DOCUMENT, OciManifest
from edgepack.settings import Settings
from edgepack.trust import Approved as ApprovedModel
from edgepack.trust import DeviceFacts, TargetInfo, TrustError, model_target
from edgepack_agent.adapters.download import BlobSource, Cancelled, DiskFullError, Downloads
from edgepack_agent.adapters.patching import Patching
from edgepack_agent.adapters.route import Route
from edgepack_agent.adapters.slots import DamagedBlobError, Slots, read_image
from edgepack_agent.adapters.trust import DirectoryChannel, TrustClient
from edgepack_agent.core.choice import Wish, choose
from edgepack_agent.core.events import (
    Approved,
    Damaged,
    Downloaded,
    Event,
    Failed,
    Held,
    InstallAsked,
    Staged,
    Stood,
    Troubled,
    Unreachable,
)
from edgepack_agent.core.reasons import kind_of
from edgepack_agent.core.state import Exam, Hold, Job, Model, Slot, Status

if TYPE_CHECKING:
    from edgepack.bundle import Bundle

__all__ = ["Installer", "as_event", "open_foreign"]

log = logging.getLogger(__name__)
SPARE_BYTES = 16 * 2**20
"""Room that must be left for journal, outbox and results."""
BUDGET = 2.0
"""Bytes that a job may cost, as a multiple of what was missing; then it is given up."""
LOCAL_PATIENCE_S = 60.0


class Installer:
    """What an update needs from disk and fleet.

    Args:
        trust: Says what may be installed.
        downloads: The blobs.
        slots: The slots built from them.
        route: Where blocks come from.
        inventory: Says what this device is, now.
        patching: Fetches the blobs, by patches where that takes fewer bytes.
    """

    def __init__(
        self,
        trust: TrustClient,
        downloads: Downloads,
        slots: Slots,
        route: Route,
        inventory: Callable[[], Inventory],
        patching: Patching,
    ) -> None:
        self._trust, self._downloads, self._slots = trust, downloads, slots
        self._route, self._inventory, self._patching = route, inventory, patching
        self._budget: tuple[str, _Budget] = "", _Budget(0)
        """Of the model that was last worked on: trying again does not refill it."""
        self.received = 0
        """Bytes that have arrived since the agent began: a download that grows comes on."""

    def approve(self, job: Job, cancelled: Cancelled) -> Event:
        """Ask both repositories whether JOB's model may run here, and look whether it can.

        Only what is small is fetched for that: the list of its files and its manifest.
        """
        found = self._trust.approve(self._facts())
        if found is None or found.path != job.target:
            wants = found.path if found else "nothing"
            raise TrustError("mismatch", "the director wants another model", why=wants)
        model = _model(found)
        return self._unfit(self._manifest(model, cancelled)) or Approved(model)

    def _manifest(self, model: Model, cancelled: Cancelled) -> Manifest:
        """Fetch the manifest of MODEL, if there is room for all of it.

        Raises:
            DiskFullError: there is not.
        """
        _check_size("the list of the model's files", model.size, MAX_DOCUMENT)
        source = self._route.open(cancelled)
        self._fetch(source, model.sha256, model.size, cancelled)
        image = read_image(self._downloads, model)
        self._room(image, image.blobs())
        layer = image.layer(MANIFEST)
        if layer is None:
            raise IntegrityError("the bundle has no manifest", reason="bad_manifest")
        _check_size("the manifest", layer.size, MAX_DOCUMENT)
        self._fetch(source, layer.sha256, layer.size, cancelled)
        return read_manifest(self._downloads.checked(layer.sha256).read_bytes())

    def _unfit(self, manifest: Manifest) -> Failed | None:
        """Return why the model of MANIFEST cannot run here; None: it can."""
        wanted, ram_mb = manifest.target.ram_mb, self._inventory().ram_mb
        if wanted <= ram_mb:
            return None
        why = f"it needs {wanted} MB of memory, there are {ram_mb}"
        return Failed("REJECTED", "ram", {"message": why})

    def download(self, model: Model, cancelled: Cancelled) -> Event:
        """Complete every blob of MODEL, and its exam."""
        _check_size("the list of the model's files", model.size, MAX_DOCUMENT)
        try:
            self._download(model, cancelled)
        except EdgepackError as error:
            if error.reason in {"byte_budget", "cancelled"}:
                self._budget = "", _Budget(0)
            raise
        self._budget = "", _Budget(0)
        return Downloaded()

    def _download(self, model: Model, cancelled: Cancelled) -> None:
        source = self._route.open(cancelled)
        self._fetch(source, model.sha256, model.size, cancelled)
        image = read_image(self._downloads, model)
        wanted = dict(image.blobs())
        if model.exam:
            wanted[model.exam.sha256] = model.exam.size
        missing = self._room(image, wanted)
        if self._budget[0] != model.sha256:
            self._budget = model.sha256, _Budget(missing)
        budget = self._budget[1]

        def spend(count: int) -> None:
            self.received += count
            budget.spend(count)

        chunks = self._chunks(source, image, cancelled, spend)
        for sha256, size in wanted.items():
            self._fetch(source, sha256, size, cancelled, spend, chunks.get(sha256, ()))

    def lay_out(
        self, wanted: TargetInfo, kept: Iterable[Slot | None], cancelled: Cancelled
    ) -> Path:
        """Fetch the model WANTED, which the publisher must have approved, beside the slots KEPT.

        Of models that were looked at before, nothing stays.

        Raises:
            EdgepackError: it is not approved, does not fit, or cannot be fetched.
        """
        found = _model(self._trust.approve_local(wanted, self._facts()))
        model = replace(found, exam=None)
        self._slots.collect(*kept, Slot("a", model))
        if unfit := self._unfit(self._manifest(model, cancelled)):
            raise EdgepackError(
                "the model does not fit", why=unfit.detail["message"], reason=unfit.reason
            )
        self.download(model, cancelled)
        return self._slots.lay_out(model)

    def stage(self, slot: Slot) -> Event:
        """Build SLOT and look whether what is in it can run here."""
        return self._unfit(self._slots.stage(slot)) or Staged()

    def take(self, file: int, job_id: str, probation_s: float, wish: Wish) -> Event:
        """Take what a person hands in as the open descriptor FILE: a bundle, or a mirror."""
        place = Path(f"/proc/self/fd/{file}")
        try:
            model = self._take_mirror(place, wish) if place.is_dir() else self._take_bundle(place)
        finally:
            os.close(file)
        job = Job(job_id, model.release, model.path, probation_s, LOCAL_PATIENCE_S, local=True)
        return InstallAsked(job, model)

    def standing(self, model: Model, previous: Model | None) -> Event:
        """Ask what the publisher says of MODEL, and whether PREVIOUS may run instead.

        Without an answer, what was said last holds.
        """
        line = model.release.partition("@")[0]
        try:
            found = self._trust.check(line)
        except EdgepackError as error:
            log.info("no news of %s: %s", line, error)
            found = self._trust.standing(line)
        back = previous is not None and not self._revoked(previous)
        return Stood(model.digest, found.revokes(model.epoch), found.stops(model.epoch), back)

    def settings(self) -> Settings | None:
        """Return what the director says this device is to be set to; None: nothing.

        Raises:
            EdgepackError: it cannot be asked, or not be believed.
        """
        return self._trust.settings()

    def _revoked(self, model: Model) -> bool:
        return self._trust.standing(model.release.partition("@")[0]).revokes(model.epoch)

    def _take_bundle(self, path: Path) -> Model:
        # Only few devices ever read a bundle; the others do without its readers.
        from edgepack.bundle import open_bundle

        with open_bundle(path) as bundle:
            found = self._approve_bundle(bundle)
            for sha256 in bundle.blobs():
                self._downloads.put(sha256, _pieces(bundle, sha256))
        return _model(found)

    def _take_mirror(self, mirror: Path, wish: Wish) -> Model:
        """Take the model of WISH from the directory MIRROR, a repository with its own timestamp."""
        channel, facts = DirectoryChannel(mirror), self._facts()
        wanted = choose(self._trust.offered(channel), facts, wish)
        model = _model(self._trust.approve_local(wanted, facts, channel))
        _check_size("the list of the model's files", model.size, MAX_DOCUMENT)
        self._put(mirror, model.sha256, model.size)
        image = read_image(self._downloads, model)
        blobs = dict(image.blobs()) | ({model.exam.sha256: model.exam.size} if model.exam else {})
        self._room(image, blobs)
        for sha256, size in blobs.items():
            self._put(mirror, sha256, size)
        return model

    def _put(self, mirror: Path, sha256: str, size: int) -> None:
        path = mirror / "blobs" / "sha256" / sha256
        try:
            with open_foreign(path) as file:
                pieces = iter(lambda: file.read(CHUNK_SIZE), b"")
                self._downloads.put(sha256, _no_longer_than(size, pieces))
        except OSError as error:
            raise IntegrityError(
                "the mirror is not whole",
                why=f"blob {sha256[:12]}: {error.strerror}",
                fix="run edgepack repo export again",
                reason="blob_missing",
            ) from error

    def _facts(self) -> DeviceFacts:
        found = self._inventory()
        return DeviceFacts(found.runtimes, found.arch, frozenset(found.cpu_features))

    def _approve_bundle(self, bundle: "Bundle") -> ApprovedModel:
        if not bundle.signed:
            raise IntegrityError(
                "the bundle is not signed", why="an agent never installs one", reason="unsigned"
            )
        wanted = model_target(bundle.manifest, bundle.oci_manifest)
        return self._trust.approve_local(wanted, self._facts())

    def _chunks(
        self,
        source: BlobSource,
        image: OciManifest,
        cancelled: Cancelled,
        progress: Callable[[int], None],
    ) -> dict[str, tuple[str, ...]]:
        """Return the signed digests of the chunks of every large file: they come first."""
        layer = image.layer(CHUNKS)
        if layer is None:  # then it is no image that `read_oci_manifest` returns
            return {}
        _check_size("the chunk list", layer.size, MAX_LIST)
        self._fetch(source, layer.sha256, layer.size, cancelled, progress)
        return read_chunks(self._downloads.checked(layer.sha256).read_bytes())

    def _fetch(
        self,
        source: BlobSource,
        sha256: str,
        size: int,
        cancelled: Cancelled,
        progress: Callable[[int], None] = lambda _: None,
        chunks: tuple[str, ...] = (),
    ) -> None:
        self._patching.fetch(
            sha256, size, source, chunks=chunks, cancelled=cancelled, progress=progress
        )

    def _room(self, image: OciManifest, wanted: Mapping[str, int]) -> int:
        """Return the bytes to fetch, after checking that the disk has room for them."""
        missing = sum(self._downloads.missing(sha256, size) for sha256, size in wanted.items())
        needed = sum(self._downloads.room(sha256, size) for sha256, size in wanted.items())
        free = shutil.disk_usage(self._downloads.path(image.config.sha256).parent).free
        if needed + SPARE_BYTES > free:
            raise DiskFullError(
                "there is no room for the model",
                why=f"{needed} bytes and {SPARE_BYTES} to spare are needed, {free} are free",
            )
        return missing


class _Budget:
    """Bytes that may still come."""

    def __init__(self, expected: int) -> None:
        self._left = int(expected * BUDGET) + CHUNK_SIZE

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise EdgepackError("the update costs more bytes than it may", reason="byte_budget")


def as_event(error: Exception) -> Event:
    """Return what ERROR, raised by a step, means for the update; see `core.reasons`."""
    if isinstance(error, DamagedBlobError):
        return Damaged()
    if not isinstance(error, EdgepackError):
        log.error("a step of the update failed", exc_info=error)
        return Troubled("internal_error", {"message": type(error).__name__})
    message = f"{error.what}{': ' if error.why else ''}{error.why}"
    kind = kind_of(error.reason, integrity=isinstance(error, IntegrityError))
    if kind == "defer":
        return Held(Hold(error.reason, None, message))
    if isinstance(error, UnreachableError):
        return Unreachable(error.reason)
    if kind == "retry":
        return Troubled(error.reason, {"message": message})
    status: Status = "REJECTED" if kind == "reject" else "FAILED"
    return Failed(status, error.reason, {"message": message})


def open_foreign(path: Path) -> BinaryIO:
    """Return PATH opened for reading; a pipe or a device, which may never answer, is refused.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(handle, "rb")


def _check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        why = f"{size} bytes, at most {limit} are read"
        raise IntegrityError(f"{what} is too large", why=why, reason="too_large")


def _model(found: ApprovedModel) -> Model:
    exam = found.exam
    return Model(
        f"{found.name}@{found.version}",
        found.path,
        found.sha256,
        found.size,
        found.epoch,
        Exam(exam.sha256, exam.size, exam.min_score) if exam else None,
    )


def _no_longer_than(size: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield PIECES, but no more than SIZE bytes: what is longer is not what was signed."""
    for piece in pieces:
        size -= len(piece)
        if size < 0:
            raise IntegrityError("a file is longer than it was signed", reason="digest_mismatch")
        yield piece


def _pieces(bundle: "Bundle", sha256: str) -> Iterator[bytes]:
    with bundle.open_blob(sha256) as file:
        while piece := file.read(CHUNK_SIZE):
            yield piece
