"""A TUF repository that is not ours, through this agent's own link, updater and downloads.

What a conformance suite needs to judge the code that devices trust: the same fetcher and
rules (`adapters.repository`), the same floors, the same transfers over the broker and the same
store of blobs as an update. Only the director and the models' own rules are left out, because
a foreign repository knows neither. Installs nothing, and shares no state with the agent.

    METADATA_DIR/  bootstrap         the first root, as it was given
                   root.json, ...    verified metadata
                   floors            what may never go back (and a copy)
                   blobs/  parts/    content, complete and under way
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from tuf.api.metadata import TargetFile

from edgepack.durable import write_file
from edgepack.errors import UsageError
from edgepack.trust import TrustError
from edgepack_agent.adapters.download import BlobSource, Downloads
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.repository import MetadataChannel, Repository, in_our_words
from edgepack_agent.adapters.trust import remember

__all__ = ["Source", "TufClient"]

MAX_UNNAMED = 2 * 1024 * 1024
"""Bytes of a target that is not named by its SHA-256: it is held in memory."""


class Source(MetadataChannel, BlobSource, Protocol):
    """Where metadata and content come from: the transfers of a link."""


class TufClient:
    """A client with its state in DIRECTORY.

    Args:
        directory: See above.
        source: Asked for what is not there.
        now: The clock, UTC.
    """

    def __init__(
        self,
        directory: Path,
        source: Source,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory, self._source, self._now = directory, source, now
        self._floors = Floors(directory / "floors")

    @staticmethod
    def init(directory: Path, root: bytes) -> None:
        """Trust ROOT from now on; nobody is asked.

        Raises:
            OSError: DIRECTORY cannot be written.
        """
        write_file(directory / "bootstrap", root)
        write_file(directory / "root.json", root)

    def refresh(self) -> Repository:
        """Bring the metadata up to date and return the repository.

        Raises:
            UsageError: `init` was never called.
            TrustError: something does not hold.
            UnreachableError: no answer.
        """
        bootstrap = self._directory / "bootstrap"
        if not bootstrap.is_file():
            raise UsageError("no root is trusted yet", fix="call init first", reason="no_root")
        with in_our_words():
            root = bootstrap.read_bytes()
            repository = Repository("image", self._directory, self._source, root, self._now())
            repository.refresh()
            remember(repository, self._floors)
        return repository

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Put the targets NAMES, in their order, into FOLDER, unless they are there already.

        Raises:
            TrustError: something does not hold, or there is no such target.
            IntegrityError: the content is not what was signed.
            UnreachableError: no answer.
        """
        repository = self.refresh()
        for name in names:
            with in_our_words():
                target = repository.get_targetinfo(name)
                remember(repository, self._floors)
                if target is None:
                    raise TrustError("not_in_image_repo", f"there is no target {name}")
                # A path becomes one name, so that nothing can point out of the folder.
                destination = folder / quote(target.path, safe="")
                if not repository.find_cached_target(target, str(destination)):
                    write_file(destination, self._content(target))

    def _content(self, target: TargetFile) -> bytes:
        sha256 = target.hashes.get("sha256")
        data = self._blob(sha256, target.length) if sha256 else self._by_name(target)
        # Its other hashes, if it has any.
        target.verify_length_and_hashes(data)
        return data

    def _blob(self, sha256: str, size: int) -> bytes:
        downloads = Downloads(self._directory / "blobs", self._directory / "parts")
        downloads.fetch(sha256, size, self._source)
        data = downloads.checked(sha256).read_bytes()
        downloads.drop(sha256)
        return data

    def _by_name(self, target: TargetFile) -> bytes:
        """Return a target that no blob can be: one without a SHA-256, which we never publish."""
        folder, slash, name = target.path.rpartition("/")
        prefixed = f"{folder}{slash}{next(iter(target.hashes.values()))}.{name}"
        length = min(target.length, MAX_UNNAMED)
        data = self._source.metadata("image", prefixed, length)
        if data is None:
            raise TrustError("metadata_missing", f"the target {target.path} is missing")
        return data
