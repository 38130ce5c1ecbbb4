"""Blobs made of one that is here and a patch. Fetches by `Downloads`, applies in a child process.

A patch may be wrong in any way: what it makes gets its name only if its SHA-256 is the signed
one. How often a patch was begun is on disk before it is, so that one that takes the device down
does not do so for ever. Killed anywhere, the next try finds the patch, as far as it had come.

    parts/SHA256.goes     how often each patch to the blob was begun
    parts/SHA256.made     what a patch is just making
"""

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import msgspec

from edgepack.durable import sync_directory, write_file
from edgepack.errors import EdgepackError, IntegrityError
from edgepack.offers import MAX_DOCUMENT, MIN_TARGET, Offer, offers_name, read_offers
from edgepack.patch import CODECS
from edgepack_agent.adapters.download import (
    BlobSource,
    Cancelled,
    DiskFullError,
    Downloads,
    disk_errors,
)
from edgepack_agent.core.delta import MAX_GOES, Fallback, Report, choose, may_be_whole
from edgepack_agent.patcher import BAD_PATCH, DISK, MEMORY

__all__ = ["PatchRules", "Patching"]

log = logging.getLogger(__name__)
LOOK_S = 0.1
"""How often a process that applies a patch is looked after."""
BYTES_PER_S = 500_000
"""Slower than this, applying has gone wrong."""
LEAST_S = 60
SPARE_BYTES = 16 * 2**20
WATCH_S = 5.0
"""Between two looks whether a whole file may still be fetched."""


@dataclass(frozen=True, slots=True)
class PatchRules:
    """What the owner of the device has set."""

    use: bool = True
    fallback: Fallback = "full"
    memory: int = 128 * 2**20
    """Bytes of address space of the process that applies a patch."""


class PatchFailedError(EdgepackError):
    """A patch did not make what it should; its reason says why."""

    default_reason = "bad_patch"


class Patching:
    """Completes blobs by patches where that takes fewer bytes, else whole.

    Args:
        downloads: Where blobs are.
        parts: Directory of `downloads` for those under way.
        ask: Returns a file of the image repository's by name, at most so long; None: no such.
        rules: What the owner has set.
        whole: Raises if large blobs must not be fetched whole now: the link is metered.
        tell: Told how every patch did.
    """

    def __init__(
        self,
        downloads: Downloads,
        parts: Path,
        ask: Callable[[str, int], bytes | None],
        rules: PatchRules,
        *,
        whole: Callable[[], None] = lambda: None,
        tell: Callable[[Report], None] = lambda _: None,
    ) -> None:
        self._downloads, self._parts, self._ask, self._rules = downloads, parts, ask, rules
        self._whole, self._tell = whole, tell

    def fetch(
        self,
        sha256: str,
        size: int,
        source: BlobSource,
        *,
        chunks: Sequence[str] = (),
        cancelled: Cancelled = lambda: False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Complete the blob SHA256 of SIZE bytes: by a patch if one works, else whole.

        Args: as those of `Downloads.fetch`.

        Raises:
            EdgepackError: as `Downloads.fetch`; a patch did not work and no fallback is allowed
                (reason `delta_failed`); or what `whole` raises.
        """
        if not self._downloads.has(sha256, size):
            wanted = _Wanted(sha256, size, source, cancelled, progress)
            failed = False
            if self._rules.use and size >= MIN_TARGET and self._has_bases():
                made, failed = self._by_patch(wanted)
                if made:
                    return
            self._check_whole(size, failed=failed)
            self._downloads.fetch(
                sha256,
                size,
                source,
                chunks=chunks,
                cancelled=self._watched(size, cancelled),
                progress=progress,
            )
        self._forget(sha256)

    def _check_whole(self, size: int, *, failed: bool) -> None:
        if not may_be_whole(size, self._rules.fallback, failed=failed):
            raise EdgepackError(
                "no patch worked",
                why="and `transfer.delta.fallback` forbids to fetch the whole file",
                fix="publish again with --delta-from, or allow the fallback",
                reason="delta_failed",
            )
        if size >= MIN_TARGET:
            self._whole()

    def _watched(self, size: int, cancelled: Cancelled) -> Cancelled:
        """Return CANCELLED, which also looks whether the link has become a metered one."""
        if size < MIN_TARGET:
            return cancelled
        looked = time.monotonic()

        def watched() -> bool:
            nonlocal looked
            if time.monotonic() - looked > WATCH_S:
                looked = time.monotonic()
                self._whole()
            return cancelled()

        return watched

    def _has_bases(self) -> bool:
        """Return whether there is a blob here that could be a base: else there is no question."""
        every = self._downloads.path("x").parent.iterdir()
        return any(path.stat().st_size >= MIN_TARGET for path in every)

    def _by_patch(self, wanted: "_Wanted") -> tuple[bool, bool]:
        """Try patches; return whether one made the blob, and whether one did not."""
        failed = False
        offers = self._offers(wanted)
        while True:
            goes = self._goes(wanted.sha256)
            failed = failed or MAX_GOES in goes.values()
            offer = choose(
                offers,
                wanted.size,
                self._downloads.missing(wanted.sha256, wanted.size),
                held={o.base for o in offers if self._downloads.has(o.base, o.base_size)},
                codecs=_codecs(),
                goes=goes,
            )
            if offer is None:
                return False, failed
            if self._try(offer, wanted):
                return True, failed

    def _offers(self, wanted: "_Wanted") -> tuple[Offer, ...]:
        try:
            data = self._ask(offers_name(wanted.sha256), MAX_DOCUMENT)
            return read_offers(data, wanted.sha256, wanted.size).offers if data else ()
        except IntegrityError as error:
            log.warning("%s: %s", error, error.why)
            return ()

    def _try(self, offer: Offer, wanted: "_Wanted") -> bool:
        """Return whether the patch of OFFER made the blob; if not, it is not tried again."""
        try:
            with disk_errors():
                self._make(offer, wanted)
        except (PatchFailedError, IntegrityError, DiskFullError) as error:
            log.warning("the patch to %s: %s (%s)", wanted.sha256[:12], error, error.why)
            self._set_goes(wanted.sha256, offer.patch, MAX_GOES)
            self._end(offer, wanted, error.reason, error.why)
            return False
        self._end(offer, wanted)
        self._forget(wanted.sha256)
        return True

    def _end(self, offer: Offer, wanted: "_Wanted", reason: str = "", why: str = "") -> None:
        self._downloads.drop(offer.patch)
        self._made(wanted.sha256).unlink(missing_ok=True)
        self._tell(Report(wanted.sha256, offer.codec, offer.size, wanted.size, reason, why))

    def _make(self, offer: Offer, wanted: "_Wanted") -> None:
        self._check_base(offer)
        self._check_room(offer, wanted)
        self._downloads.fetch(
            offer.patch,
            offer.size,
            wanted.source,
            cancelled=wanted.cancelled,
            progress=wanted.progress,
        )
        goes = self._goes(wanted.sha256).get(offer.patch, 0)
        self._set_goes(wanted.sha256, offer.patch, goes + 1)
        made = self._made(wanted.sha256)
        with (
            self._downloads.path(offer.base).open("rb") as base,
            self._downloads.path(offer.patch).open("rb") as patch,
            made.open("w+b") as out,
        ):
            files = (base.fileno(), patch.fileno(), out.fileno())
            _apply(files, offer, wanted, self._rules.memory)
            _check_result(out.fileno(), made, wanted)
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())
        place = self._downloads.path(wanted.sha256)
        made.replace(place)
        sync_directory(place.parent)

    def _check_base(self, offer: Offer) -> None:
        with self._downloads.path(offer.base).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != offer.base:
                raise PatchFailedError(
                    "its base was damaged on disk", why=offer.base, reason="damaged_base"
                )

    def _check_room(self, offer: Offer, wanted: "_Wanted") -> None:
        free = shutil.disk_usage(self._parts).free
        needed = wanted.size + self._downloads.missing(offer.patch, offer.size) + SPARE_BYTES
        if needed > free:
            raise DiskFullError(
                "there is no room to apply a patch", why=f"{needed} bytes, {free} are free"
            )

    def _made(self, sha256: str) -> Path:
        return self._parts / f"{sha256}.made"

    def _goes(self, sha256: str) -> dict[str, int]:
        """Return how often each patch to the blob was begun; what cannot be read is none."""
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            return msgspec.json.decode(self._goes_file(sha256).read_bytes(), type=dict[str, int])
        return {}

    def _set_goes(self, sha256: str, patch: str, count: int) -> None:
        goes = self._goes(sha256) | {patch: count}
        with disk_errors():
            write_file(self._goes_file(sha256), msgspec.json.encode(goes))

    def _goes_file(self, sha256: str) -> Path:
        return self._parts / f"{sha256}.goes"

    def _forget(self, sha256: str) -> None:
        """Remove what was kept about patches to the blob: it is here."""
        self._goes_file(sha256).unlink(missing_ok=True)
        self._made(sha256).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The blob that is to be completed."""

    sha256: str
    size: int
    source: BlobSource
    cancelled: Cancelled
    progress: Callable[[int], None]


@cache
def _codecs() -> frozenset[str]:
    """Return the codecs that can be applied here; looks for their libraries, imports none."""
    zstd = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    with contextlib.suppress(ModuleNotFoundError):
        if find_spec(zstd) is not None:
            return frozenset(CODECS)
    return frozenset(CODECS) - {"zstd"}


def _apply(files: tuple[int, int, int], offer: Offer, wanted: _Wanted, memory: int) -> None:
    """Run the process that applies a patch, and look after it until it ends.

    Raises:
        PatchFailedError: it did not work.
        DiskFullError: there was no room.
        EdgepackError: it was cancelled (reason `cancelled`).
    """
    seconds = LEAST_S + (offer.base_size + wanted.size) // BYTES_PER_S
    numbers = (*files, wanted.size, memory, seconds, os.getpid())
    process = subprocess.Popen(
        # -P: the working directory is not a place to import from.
        [sys.executable, "-P", "-m", "edgepack_agent.patcher", *map(str, numbers)],
        pass_fds=files,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            _look_after(process, seconds, wanted.cancelled)
        finally:
            process.kill()
        said = process.stdout.read(400).decode(errors="replace") if process.stdout else ""
    _judge(process.returncode, said)


def _look_after(process: "subprocess.Popen[bytes]", seconds: int, cancelled: Cancelled) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
            return
        if cancelled():
            raise EdgepackError("the download was cancelled", reason="cancelled")
        if time.monotonic() > deadline:
            raise PatchFailedError(
                "it took too long", why=f"more than {seconds} s", reason="patch_timeout"
            )


def _judge(code: int, said: str) -> None:
    if code == 0:
        return
    if code == DISK:
        raise DiskFullError("there is no room to apply a patch", why=said)
    reasons = {BAD_PATCH: "bad_patch", MEMORY: "patch_out_of_memory"}
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    raise PatchFailedError(
        "it cannot be applied", why=said or how, reason=reasons.get(code, "patch_crashed")
    )


def _check_result(handle: int, path: Path, wanted: _Wanted) -> None:
    size = os.fstat(handle).st_size
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if (found, size) != (wanted.sha256, wanted.size):
        raise PatchFailedError(
            "it makes something else than was signed",
            why=f"{size} bytes with the SHA-256 {found[:12]}",
            reason="patch_wrong_result",
        )
