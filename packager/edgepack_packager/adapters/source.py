"""The model on disk: what kind it is and the digest of its bytes. Opens no framework."""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import UsageError
from edgepack_packager.adapters.companions import companions
from edgepack_packager.core.source import SourceKind, recognise, split_factory

__all__ = ["OpenedSource", "digest_tree", "open_source"]

HEAD = 64


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A model that can be built from."""

    path: Path
    kind: SourceKind
    sha256: str
    """Of everything that decides what the model computes."""
    factory: str | None = None
    """Of a Python module: the function that makes the model."""
    weights: Path | None = None
    """Of a Python module: what fills the model."""
    trust: bool = False
    """Whether its code and pickles may run."""


def open_source(
    source: str | Path, *, weights: Path | None = None, trust: bool = False
) -> OpenedSource:
    """Return the model that SOURCE names, recognised and hashed.

    Args:
        source: A path, or `module.py:factory`.
        weights: What fills the module of a factory.
        trust: Whether code and pickles of the source may run.

    Raises:
        UsageError: missing, unreadable or no model; code, or links that lead out of a
            directory, without trust; needless weights.
        UnsupportedError: a kind that cannot be built from.
    """
    text, factory = split_factory(str(source))
    path = _existing(Path(text))
    try:
        kind = _kind(path)
        _check(path, kind, weights, trust=trust)
        filled = _existing(weights).resolve() if weights else None
        digest = _digest(path, kind, factory, filled)
        return OpenedSource(path.resolve(), kind, digest, factory, filled, trust)
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=str(error), reason="no_source") from error


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"{path} does not exist", reason="no_source")
    return path


def _kind(path: Path) -> SourceKind:
    if path.is_dir():
        entries = frozenset(entry.name for entry in path.iterdir())
        return recognise(path.name, entries=entries, head=b"")
    with path.open("rb") as file:
        head = file.read(HEAD)
    return recognise(path.name, entries=None, head=head, members=_members(path))


def _members(path: Path) -> frozenset[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return frozenset()


def _check(path: Path, kind: SourceKind, weights: Path | None, *, trust: bool) -> None:
    if kind.name == "torch_module" and not trust:
        raise UsageError(
            f"{path.name} is code, and code of a model is not run",
            fix="if you trust it: --trust-source; or save torch.export.export(...) as .pt2",
            reason="untrusted_source",
        )
    if weights and kind.name != "torch_module":
        raise UsageError(
            f"--weights does not go with {path.name}",
            why="only the model that a Python function makes can be filled",
            fix="leave it out, or give module.py:factory",
            reason="needless_weights",
        )
    if path.is_dir() and not trust:
        _refuse_links(path)
    if kind.name == "openvino" and not path.with_suffix(".bin").is_file():
        raise UsageError(
            f"{path.name} has no weights beside it",
            fix=f"put {path.with_suffix('.bin').name} into the same directory",
            reason="no_weights",
        )


def _refuse_links(folder: Path) -> None:
    """Check that everything in FOLDER lies in it: a model must not read other files."""
    home = folder.resolve()
    for item in _below(folder):
        if not item.resolve().is_relative_to(home):
            raise UsageError(
                f"{item.relative_to(folder)} in {folder.name} is a link out of it",
                why=f"it leads to {item.resolve()}",
                fix="copy what it leads to; or if you trust the model: --trust-source",
                reason="link_outside",
            )


def _below(folder: Path, inside: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield files and directories in FOLDER, also behind links, but none within itself."""
    inside = (*inside, folder.resolve())
    for item in folder.iterdir():
        yield item
        if item.is_dir() and item.resolve() not in inside:
            yield from _below(item, inside)


def _digest(path: Path, kind: SourceKind, factory: str | None, weights: Path | None) -> str:
    """Return the SHA-256, in hex, of the file or of all that belongs together."""
    parts: dict[str, Path | str | None] = {}
    if kind.name == "torch_module":
        parts = {"module": path, "factory": factory, "weights": weights}
    elif others := companions(path):
        parts = {one.name: one for one in (path, *others)}
    else:
        return digest_tree(path)
    lines = [
        f"{name}\0{digest_tree(part) if isinstance(part, Path) else part}\n"
        for name, part in parts.items()
        if part is not None
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_tree(path: Path) -> str:
    """Return the SHA-256 of a file, or of a directory's relative paths and contents, in hex."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [
        f"{item.relative_to(path).as_posix()}\0{digest_tree(item)}\n"
        for item in sorted(_below(path))
        if item.is_file()
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
