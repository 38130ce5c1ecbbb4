"""Two places for a model on disk, built whole or not at all. Loads no model, chooses none.

    slots/a, slots/b             extracted bundles, hard-linked from the blobs
    slots/current, slots/previous  links for people and for a day without a journal

A slot is built beside its place, every byte verified, everything fsynced, then renamed. Which
slot is the current one is the journal's word; the links follow it.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from pathlib import Path

from edgepack.durable import sync_directory
from edgepack.errors import EdgepackError, IntegrityError
from edgepack.manifest import Manifest, read_manifest
from edgepack.oci import MANIFEST, OciManifest, read_oci_manifest
from edgepack.tree import check_tree
from edgepack_agent.adapters.download import Downloads, disk_errors
from edgepack_agent.core.state import Model, Slot, SlotName, State
from edgepack_agent.runner.slot import open_slot
from edgepack_targets.pipeline.baseline import Baseline, read_baseline

__all__ = ["DamagedBlobError", "Slots", "read_image"]

_NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOTSUP})
"""What file systems without hard links say."""
_NAMES: tuple[SlotName, ...] = ("a", "b")


class DamagedBlobError(EdgepackError):
    """A blob on disk is not what it was; it has been removed and can be fetched again."""

    default_reason = "damaged_blob"


class Slots:
    """The slots below DIRECTORY, built from the blobs in DOWNLOADS."""

    def __init__(self, directory: Path, downloads: Downloads) -> None:
        self._directory, self._downloads = directory, downloads
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(".*"):
            _remove(leftover)

    def path(self, slot: Slot | SlotName) -> Path:
        """Return the directory of SLOT."""
        return self._directory / (slot if isinstance(slot, str) else slot.name)

    def stage(self, slot: Slot) -> Manifest:
        """Build SLOT from its blobs, replacing what is in its place.

        Returns:
            The manifest of the model in it.

        Raises:
            DamagedBlobError: a blob is not what it was.
            IntegrityError: the blobs are what was signed, but no model.
            EdgepackError: no room (`disk_full`), or the disk fails (`storage`).
        """
        place, building = self.path(slot), self._directory / f".building-{slot.name}"
        with disk_errors():
            _remove(building)
            try:
                manifest = self._build(building, slot.model)
                self._put(building, place)
            finally:
                _remove(building)
        return manifest

    def lay_out(self, model: Model) -> Path:
        """Build MODEL from its blobs beside the slots, for a look, and return where it is.

        Raises:
            DamagedBlobError, IntegrityError, EdgepackError: as `stage`.
        """
        with disk_errors():
            self.drop_measured()
            self._build(self._measured, model)
        return self._measured

    def drop_measured(self) -> None:
        """Remove what `lay_out` has built; from any thread."""
        _remove(self._measured)

    @property
    def _measured(self) -> Path:
        return self._directory / ".measured"

    def discard(self, slot: Slot) -> None:
        """Remove SLOT from the disk."""
        _remove(self.path(slot))

    def holds(self, slot: Slot) -> bool:
        """Read all of SLOT and say whether it is the model it is said to be."""
        with contextlib.suppress(IntegrityError, OSError):
            return open_slot(self.path(slot)).digest == slot.model.digest
        return False

    def ram_mb(self, slot: Slot) -> int:
        """Return the MiB that the model in SLOT needs by its manifest; 0: it does not say."""
        manifest = self._manifest(slot)
        return manifest.target.ram_mb if manifest else 0

    def baseline(self, slot: Slot) -> Baseline | None:
        """Return what the model in SLOT saw and said when it was built; None: it does not say."""
        manifest = self._manifest(slot)
        return read_baseline(manifest.drift) if manifest else None

    def _manifest(self, slot: Slot) -> Manifest | None:
        with contextlib.suppress(IntegrityError, OSError):
            return read_manifest((self.path(slot) / MANIFEST).read_bytes())
        return None

    def link(self, state: State) -> None:
        """Make the links say what STATE says."""
        self._link("current", state.current)
        self._link("previous", state.previous)

    def collect(self, *slots: Slot | None) -> None:
        """Remove every blob that no slot of SLOTS and no model they hold needs."""
        kept: set[str] = set()
        for slot in filter(None, slots):
            kept.add(slot.model.sha256)
            kept |= {slot.model.exam.sha256} if slot.model.exam else set()
            # Of a model that was only tried, not even the list of its files may be here.
            with contextlib.suppress(OSError, EdgepackError):
                kept |= read_image(self._downloads, slot.model).blobs().keys()
        self._downloads.keep_only(kept)

    def recover(self) -> Slot | None:
        """Return the slot the `current` link points at, or else the other one, if it is whole.

        None without a link: then nothing has ever been committed here.
        """
        link = self._directory / "current"
        if not link.is_symlink():
            return None
        linked = link.readlink().name
        for name in sorted(_NAMES, key=lambda n: n != linked):
            with contextlib.suppress(IntegrityError, OSError):
                found = open_slot(self.path(name))
                release, digest = found.manifest.release, found.digest.removeprefix("sha256:")
                epoch = found.manifest.security_epoch
                return Slot(name, Model(release, "", digest, 0, epoch))
        return None

    def _build(self, building: Path, model: Model) -> Manifest:
        image = read_image(self._downloads, model)
        building.mkdir()
        for layer in image.layers:
            self._check(layer.sha256)
            target = building / layer.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(self._downloads.path(layer.sha256), target)
        for directory in (building, *(p for p in building.rglob("*") if p.is_dir())):
            sync_directory(directory)
        manifest = check_tree(image, (building / MANIFEST).read_bytes())
        if manifest.release != model.release:
            raise IntegrityError(
                f"the bundle is {manifest.release}, approved was {model.release}",
                reason="mismatch",
            )
        return manifest

    def _check(self, sha256: str) -> None:
        """Check the content of a blob; where it is damaged, remove it."""
        try:
            with self._downloads.path(sha256).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            found = "missing"
        if found != sha256:
            self._downloads.drop(sha256)
            raise DamagedBlobError(f"blob {sha256[:12]} was damaged on disk")

    def _put(self, building: Path, place: Path) -> None:
        # Nobody points at PLACE now: it holds what was neither current nor wanted.
        retired = self._directory / f".retired-{place.name}"
        _remove(retired)
        if place.exists():
            place.rename(retired)
        building.rename(place)
        sync_directory(self._directory)
        _remove(retired)

    def _link(self, name: str, slot: Slot | None) -> None:
        link, new = self._directory / name, self._directory / f".{name}"
        if slot is None:
            link.unlink(missing_ok=True)
        elif not link.is_symlink() or str(link.readlink()) != slot.name:
            new.unlink(missing_ok=True)
            new.symlink_to(slot.name)
            new.replace(link)
        sync_directory(self._directory)


def read_image(downloads: Downloads, model: Model) -> OciManifest:
    """Return the OCI manifest of MODEL from its blob.

    Raises:
        DamagedBlobError: the blob is not what it was; it is removed.
        IntegrityError: it is what was signed, but not an OCI manifest.
    """
    path = downloads.path(model.sha256)
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != model.sha256:
        downloads.drop(model.sha256)
        raise DamagedBlobError("the list of the model's files was damaged on disk")
    return read_oci_manifest(data)


def _place(blob: Path, target: Path) -> None:
    try:
        target.hardlink_to(blob)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(blob, target)
        with target.open("rb") as file:
            os.fsync(file)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.is_dir():
        shutil.rmtree(path)
