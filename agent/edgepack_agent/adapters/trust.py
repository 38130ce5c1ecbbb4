"""Asks both repositories what this device may run. Fetches no model and installs nothing.

Two python-tuf updaters, one per repository, over whatever channel the device has; then the
cross-check of `edgepack.trust`; then the floors. python-tuf does not fsync and can be fed an
older state if its cache is lost: the floors are what makes "never back" survive a power cut,
and everything in the cache can be deleted at any time.

A mirror for a site without a network is the same image repository under a snapshot and a
timestamp of its own. It has a cache of its own, so that mirror and fleet may come by turns;
what they both say, the publisher's roles, has the same floors on either way.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import TargetFile, Targets

from edgepack.errors import UnreachableError
from edgepack.metadata import target_info
from edgepack.settings import SETTINGS, Settings, read_settings
from edgepack.trust import (
    DEVICE,
    MIN_EPOCH,
    ON_REVOKED,
    Approved,
    DeviceFacts,
    DirectorWord,
    ExamTarget,
    ImageWord,
    OnRevoked,
    Standing,
    TargetInfo,
    TrustError,
    cross_check,
    exam_path,
    line_role,
)
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.repository import (
    CacheChannel,
    DirectoryChannel,
    MetadataChannel,
    Repository,
    in_our_words,
    is_export,
)

__all__ = [
    "Approved",
    "DirectoryChannel",
    "ExamTarget",
    "MetadataChannel",
    "TrustClient",
    "TrustError",
    "remember",
]

log = logging.getLogger(__name__)


class TrustClient:
    """The trust of one device: its roots, its cache of metadata and its floors.

    Args:
        directory: Cache of metadata; may be lost.
        device: This device's id.
        channel: Where metadata comes from.
        image_root: First root of the image repository, as the publisher gave it.
        director_root: First root of the director, as enrolment gave it.
        floors: What this device has seen; must not be lost.
        now: The device's clock, UTC.
    """

    def __init__(
        self,
        directory: Path,
        device: str,
        channel: MetadataChannel,
        image_root: bytes,
        director_root: bytes,
        floors: Floors,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory, self._device, self._channel = directory, device, channel
        self._roots = {"image": image_root, "director": director_root}
        self._floors, self._now = floors, now

    def approve(self, facts: DeviceFacts) -> Approved | None:
        """Return the model this device shall run now; None if the director wants none.

        Raises:
            TrustError: something does not hold; nothing may be installed.
            UnreachableError: no answer; what was approved before stays as it is.
        """
        with in_our_words():
            director = self._refreshed("director", self._channel)
            word = _director_word(director.targets)
            remember(director, self._floors)
            wanted = word.wanted(self._device)
            return self._cross_check(wanted, facts, self._image(None)) if wanted else None

    def settings(self) -> Settings | None:
        """Return what the director says this device is to be set to; None: nothing.

        Raises:
            TrustError: something does not hold.
            UnreachableError: no answer.
        """
        with in_our_words():
            director = self._refreshed("director", self._channel)
            _director_word(director.targets).wanted(self._device)
            remember(director, self._floors)
            return read_settings(director.targets.unrecognized_fields.get(SETTINGS))

    def approve_local(
        self, wanted: TargetInfo, facts: DeviceFacts, mirror: MetadataChannel | None = None
    ) -> Approved:
        """Return the model of a bundle at hand, if the image repository approves it.

        Args:
            wanted: What the bundle is: `edgepack.trust.model_target` of its manifests.
            facts: What this device can run.
            mirror: The mirror it comes from; None: ask the fleet.

        Without an answer the cached metadata decides, for as long as it has not expired.

        Raises:
            TrustError: something does not hold; nothing may be installed.
        """
        with in_our_words(mirror=mirror is not None):
            try:
                return self._cross_check(wanted, facts, self._image(mirror))
            except UnreachableError:
                log.info("no answer; going by what is known")
        return self._approve_by_cache(wanted, facts)

    def offered(self, mirror: MetadataChannel) -> tuple[TargetInfo, ...]:
        """Return the models that MIRROR has by its signed metadata; none is approved by that.

        Raises:
            TrustError: something does not hold.
        """
        with in_our_words(mirror=True):
            image = self._image(mirror)
            delegated = image.targets.delegations
            names = [
                role.removeprefix(line_role("")) for role in (delegated and delegated.roles) or ()
            ]
            for name in names:
                image.get_targetinfo(exam_path(name))
            lines = filter(None, (image.line(name) for name in names))
            files = [file for line in lines for file in line.targets.values()]
            return tuple(target_info(f) for f in files if f.path.endswith(".json"))

    def check(self, line: str, mirror: MetadataChannel | None = None) -> Standing:
        """Ask the image repository what the publisher of LINE says of installed models.

        What it says is remembered: `standing` repeats it after a reboot and without a network.

        Raises:
            TrustError: something does not hold; what was said before still holds.
            UnreachableError: no answer.
        """
        with in_our_words(mirror=mirror is not None):
            image = self._image(mirror)
            image.get_targetinfo(exam_path(line))
            remember(image, self._floors, _standing(image, line))
        return self.standing(line)

    def standing(self, line: str) -> Standing:
        """Return what the publisher of LINE said last. Asks nobody."""
        return self._floors.standing(line)

    def confirm(self, name: str, epoch: int) -> None:
        """Never again run a model of the line NAME below EPOCH: one of it was committed.

        To be called after every commit, and only then: an update that is rolled back must
        leave the way back open.

        Raises:
            TrustError: the floors cannot be written (reason `storage`).
        """
        with in_our_words():
            self._floors.confirm(name, epoch)

    def _approve_by_cache(self, wanted: TargetInfo, facts: DeviceFacts) -> Approved:
        """Go by what the fleet said last, else by a mirror, which is good for longer."""
        try:
            with in_our_words():
                return self._cross_check(wanted, facts, self._cached(export=False))
        except TrustError:
            if not (self._directory / _CACHES[True] / "timestamp.json").exists():
                raise
        with in_our_words(mirror=True):
            return self._cross_check(wanted, facts, self._cached(export=True))

    def _cross_check(self, wanted: TargetInfo, facts: DeviceFacts, image: Repository) -> Approved:
        word = _image_word(image, wanted)
        name = wanted.model.name
        remember(image, self._floors, _standing(image, name))
        return cross_check(wanted, word, facts, epoch_floor=self._floors.epoch(name))

    def _image(self, mirror: MetadataChannel | None) -> Repository:
        """Return the image repository, refreshed from the fleet or from MIRROR."""
        export = mirror is not None and is_export(mirror)
        return self._refreshed("image", mirror or self._channel, export=export)

    def _cached(self, *, export: bool) -> Repository:
        channel = CacheChannel(self._directory / _CACHES[export])
        return self._refreshed("image", channel, export=export)

    def _refreshed(
        self, repo: str, channel: MetadataChannel, *, export: bool = False
    ) -> Repository:
        now = self._now()
        self._floors.check_clock(now)
        cache = self._directory / (_CACHES[export] if repo == "image" else repo)
        also = (self._directory / _CACHES[not export],) if repo == "image" else ()
        root = self._roots[repo]
        repository = Repository(repo, cache, channel, root, now, export=export, also=also)
        try:
            repository.refresh()
        except UnsignedMetadataError:
            # A root with new online keys may have arrived there while we were reading.
            repository = Repository(repo, cache, channel, root, now, export=export, also=also)
            repository.refresh()
        self._floors.check_clock(now, repository.issued)
        return repository


def remember(repository: Repository, floors: Floors, standing: Standing | None = None) -> None:
    """Refuse what is below a floor, then make what was seen durable and the new floor.

    Args:
        repository: What was read and verified.
        floors: Where it is remembered.
        standing: Word of a line's publisher in it; None: none was read.

    Raises:
        TrustError: a role went back (reason `rollback`).
        OSError: it cannot be written.
    """
    seen = repository.seen()
    for role, version in seen.items():
        if version < floors.role(role):
            raise TrustError(
                "rollback",
                f"{role.partition('@')[0]} went back to version {version}",
                why=f"this device has seen version {floors.role(role)}",
                fix="a mirror: export it again; a fleet restored from a backup: publish again",
            )
    repository.sync()
    floors.raise_seen(seen, repository.issued, standing)


_CACHES = {False: "image", True: "mirror"}
"""Cache of the image repository, by whether it is read from an exported mirror."""


def _director_word(targets: Targets) -> DirectorWord:
    device = targets.unrecognized_fields.get(DEVICE)
    return DirectorWord(
        device if isinstance(device, str) else "",
        tuple(target_info(file) for file in targets.targets.values()),
        targets.delegations is not None,
    )


def _image_word(image: Repository, wanted: TargetInfo) -> ImageWord:
    name = wanted.model.name
    target = image.get_targetinfo(wanted.path)
    standing = _standing(image, name)
    line = image.line(name)
    if target is None or line is None or standing is None:
        return ImageWord(None, None, 0)
    exam = line.targets.get(exam_path(name))
    return ImageWord(target_info(target), _info(exam), standing.min_epoch)


def _standing(image: Repository, name: str) -> Standing | None:
    """Return what the line NAME says of installed models; None if it was not read."""
    line = image.line(name)
    if line is None:
        return None
    min_epoch = line.unrecognized_fields.get(MIN_EPOCH, 0)
    policy = line.unrecognized_fields.get(ON_REVOKED, "keep")
    if type(min_epoch) is not int or min_epoch < 0:
        raise TrustError("bad_metadata", f"the line {name} has a floor that is no number")
    if policy not in get_args(OnRevoked):
        raise TrustError(
            "bad_metadata",
            f"the line {name} asks for what this agent does not know",
            why=f"{ON_REVOKED}: {str(policy)[:80]!r}",
            fix="a newer agent may be needed",
        )
    return Standing(name, min_epoch, policy)


def _info(file: TargetFile | None) -> TargetInfo | None:
    return target_info(file) if file is not None else None
