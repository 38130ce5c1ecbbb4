"""Real checks on a sample of devices: both repositories by python-tuf, then the content's digests.

The updater waits for its answers, so it runs in a few threads; what it asks goes over the
device's own connection, block by block.
"""

import hashlib
import json
import queue
import secrets
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface, Updater

from edgepack import messages
from edgepack.errors import EdgepackError, IntegrityError
from edgepack.metadata import target_info
from edgepack.topics import BLOCK_SIZE
from edgepack.trust import (
    DEVICE,
    MIN_EPOCH,
    DeviceFacts,
    DirectorWord,
    ImageWord,
    TargetInfo,
    cross_check,
    line_role,
)
from edgepack_fleet.simulation.device import Device

__all__ = ["Checks"]

AT_ONCE = 4
ANSWER_S = 60.0
"""Seconds a request may take; a fleet has thousands to answer."""
TRIES = 4
WINDOW = 16
"""Blocks that are asked for at a time."""
MAX_METADATA = 4 * 1024 * 1024
Heard = tuple[str, bytes]


class Checks:
    """Checks jobs for devices of one hub.

    Args:
        image_root: First root of the image repository.
        fetch: Whether the content is fetched, too.
    """

    def __init__(self, image_root: bytes, *, fetch: bool = True) -> None:
        self._image_root, self._fetch = image_root, fetch
        self._pool = ThreadPoolExecutor(AT_ONCE, "checks")

    def check(self, device: Device, job: messages.Job, done: Callable[[str], None]) -> None:
        """Check what JOB is about for DEVICE; then call DONE in the hub's thread."""

        def work() -> None:
            reason, fetched = self._outcome(device, job)

            def tell() -> None:
                device.tally.checks[reason or "approved"] += 1
                device.tally.fetched_bytes += fetched
                done(reason)

            device.hub.post(tell)

        self._pool.submit(work)

    def close(self) -> None:
        """Wait for nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _outcome(self, device: Device, job: messages.Job) -> tuple[str, int]:
        way = _Way(device)
        try:
            wanted = self._approved(device, way)
            if wanted.path != job.target:
                return "mismatch", 0
            return "", self._content(way, wanted) if self._fetch else 0
        except EdgepackError as error:
            return error.reason or "internal_error", 0
        except DownloadError:
            return "unreachable", 0
        except RepositoryError:
            return "bad_metadata", 0

    def _approved(self, device: Device, way: "_Way") -> TargetInfo:
        """Return what the director wants, if the image repository says the same and it fits."""
        with tempfile.TemporaryDirectory(prefix="edgepack-sim-") as name:
            director = _updater(Path(name) / "d", "director", way, device.identity.director_root)
            director.refresh()
            trusted = director._trusted_set.targets  # noqa: SLF001  it has no public name
            word = DirectorWord(
                str(trusted.unrecognized_fields.get(DEVICE, "")),
                tuple(target_info(file) for file in trusted.targets.values()),
                trusted.delegations is not None,
            )
            wanted = word.wanted(device.identity.name)
            if wanted is None:
                raise IntegrityError("the director wants nothing", reason="mismatch")
            image = _updater(Path(name) / "i", "image", way, self._image_root)
            image.refresh()
            found = image.get_targetinfo(wanted.path)
            line = image._trusted_set.get(line_role(wanted.model.name))  # noqa: SLF001
            epoch: Any = line.unrecognized_fields.get(MIN_EPOCH, 0) if line else 0
            said = ImageWord(target_info(found) if found else None, None, int(epoch))
            scenario = device.scenario
            features = frozenset(scenario.cpu_features)
            facts = DeviceFacts(scenario.runtimes, scenario.arch, features)
            cross_check(wanted, said, facts, epoch_floor=0)
        return wanted

    def _content(self, way: "_Way", wanted: TargetInfo) -> int:
        """Fetch and check what WANTED names; return how many bytes that was."""
        manifest = way.blob(wanted.sha256, wanted.size)
        fetched = len(manifest)
        for layer in json.loads(manifest).get("layers", ()):
            fetched += len(way.blob(layer["digest"].removeprefix("sha256:"), layer["size"]))
        return fetched


def _updater(directory: Path, repo: str, way: "_Way", root: bytes) -> Updater:
    directory.mkdir()
    base = f"{repo}/"
    return Updater(str(directory), base, fetcher=_Fetcher(way, repo), bootstrap=root)


class _Fetcher(FetcherInterface):
    """Gives python-tuf what the fleet answers to requests for metadata."""

    def __init__(self, way: "_Way", repo: str) -> None:
        self._way, self._repo = way, repo

    def _fetch(self, url: str) -> Iterator[bytes]:
        found = self._way.metadata(self._repo, url.partition("/")[2])
        if found is None:
            raise DownloadHTTPError("the fleet does not have it", 404)
        yield found


class _Way:
    """Requests of one device, from another thread than the hub's."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def metadata(self, repo: Any, name: str) -> bytes | None:
        """Return the metadata file NAME of REPO; None: there is none."""
        for _ in range(TRIES):
            with self._waiting() as (xfer, heard):
                self._ask("meta", messages.MetaRequest(xfer=xfer, repo=repo, name=name))
                if (answer := _whole(heard)) is not None:
                    return answer or None
        raise DownloadError(f"no answer about {name}")

    def blob(self, sha256: str, size: int) -> bytes:
        """Return the content of SHA256, checked.

        Raises:
            IntegrityError: it is not that, or is not there.
        """
        count = -(-size // BLOCK_SIZE)
        blocks: dict[int, bytes] = {}
        for _ in range(TRIES * (1 + count // WINDOW)):
            if len(blocks) == count:
                break
            start = next(i for i in range(count) if i not in blocks)
            blocks |= self._window(sha256, size, start, min(WINDOW, count - start))
        content = b"".join(blocks[i] for i in sorted(blocks))
        if len(blocks) != count:
            raise DownloadError(f"no answer about {sha256[:16]}")
        if hashlib.sha256(content).hexdigest() != sha256:
            raise IntegrityError("not the content that was signed", reason="digest_mismatch")
        return content

    def _window(self, sha256: str, size: int, start: int, n: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        with self._waiting() as (xfer, heard):
            request = messages.BlobRequest(xfer=xfer, sha256=sha256, size=size, start=start, n=n)
            self._ask("blob", request)
            while len(found) < n:
                try:
                    index, payload = heard.get(timeout=ANSWER_S / TRIES)
                except queue.Empty:
                    break
                if index == "head":
                    raise IntegrityError("the fleet does not have it", reason="blob_missing")
                found[int(index)] = payload
        return found

    def _ask(self, kind: str, request: messages.MetaRequest | messages.BlobRequest) -> None:
        self._device.hub.post(lambda: self._device.request(kind, request))

    @contextmanager
    def _waiting(self) -> Iterator[tuple[str, "queue.Queue[Heard]"]]:
        xfer = secrets.token_hex(8)
        heard: queue.Queue[Heard] = queue.Queue()
        self._device.meta[xfer] = lambda index, payload: heard.put((index, payload))
        try:
            yield xfer, heard
        finally:
            self._device.meta.pop(xfer, None)


def _whole(heard: "queue.Queue[Heard]") -> bytes | None:
    """Return an answer of a head and blocks; empty: there is none such; None: it got lost."""
    blocks: dict[int, bytes] = {}
    size: int | None = None
    try:
        while size is None or sum(map(len, blocks.values())) < size:
            index, payload = heard.get(timeout=ANSWER_S / TRIES)
            if index != "head":
                blocks[int(index)] = payload
                continue
            head = messages.decode(payload, messages.Head)
            if head.status != 200 or head.size > MAX_METADATA:
                return b""
            size = head.size
    except queue.Empty:
        return None
    return b"".join(blocks[i] for i in sorted(blocks))
