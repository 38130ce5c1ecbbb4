"""The model on disk: what kind it is and the digest of its bytes. Opens no framework."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import UsageError
from edgepack_packager.core.source import SourceKind, recognise

__all__ = ["OpenedSource", "digest_tree", "open_source"]


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A model that can be built from."""

    path: Path
    kind: SourceKind
    sha256: str
    factory: str | None = None
    """The function of a Python module that makes the model."""
    weights: Path | None = None
    trust: bool = False
    """Whether its code and pickles may run."""


def open_source(named: str, *, weights: Path | None = None, trust: bool = False) -> OpenedSource:
    """Return the model that NAMED says, recognised and hashed.

    Raises:
        UsageError: missing, unreadable or no model.
        UnsupportedError: a kind that cannot be built from yet.
    """
    path = Path(named)
    if not path.exists():
        raise UsageError(f"{path} does not exist", reason="no_source")
    try:
        entries = frozenset(entry.name for entry in path.iterdir()) if path.is_dir() else None
        head = b"" if entries is not None else _head(path)
        kind = recognise(path.name, entries=entries, head=head)
        return OpenedSource(path.resolve(), kind, digest_tree(path), weights=weights, trust=trust)
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=str(error), reason="no_source") from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def digest_tree(path: Path) -> str:
    """Return the SHA-256 of a file, or of a directory's relative paths and contents, in hex."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [
        f"{item.relative_to(path).as_posix()}\0{digest_tree(item)}\n"
        for item in sorted(path.rglob("*"))
        if item.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
