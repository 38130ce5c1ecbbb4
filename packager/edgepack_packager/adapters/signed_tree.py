"""A directory with a `model.sig`: is it, to the byte, what was signed? Follows no links.

The signature must list every file there is, and every file it lists must be there. Other tools
let a signature exempt paths, and skip `.git` wherever it is; here nothing is exempt, because who
reads «verified» goes on to use the whole directory.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.errors import IntegrityError, UsageError
from edgepack.oci import SIGNATURE
from edgepack_packager.core.model_signature import (
    ALGORITHMS,
    MAX_SIGNATURE,
    SignedFiles,
    read_signature,
)

__all__ = ["verify_tree"]

MAX_FILES = 100_000


def verify_tree(directory: Path, public: ec.EllipticCurvePublicKey) -> SignedFiles:
    """Return what PUBLIC signed, after checking that it is exactly what is in DIRECTORY.

    Raises:
        UsageError: DIRECTORY cannot be read.
        IntegrityError: there is no signature (reason `unsigned`), it is not PUBLIC's, or the
            files are not those it is over.
        UnsupportedError: it is signed in a way that is not read here.
    """
    try:
        paths = sorted(_files(directory))
        if SIGNATURE not in paths:
            raise IntegrityError(
                f"{directory} is not signed", why=f"there is no {SIGNATURE}", reason="unsigned"
            )
        signed = read_signature(_read(directory / SIGNATURE), public)
        paths.remove(SIGNATURE)
        _check_paths(paths, signed.digests)
        for path in paths:
            if _digest(directory / path, signed.algorithm) != signed.digests[path]:
                raise _mismatch(f"{_shown(path)} was changed")
    except OSError as error:
        raise UsageError(
            f"cannot read {directory}", why=error.strerror or str(error), reason="unreadable"
        ) from error
    return signed


def _files(directory: Path) -> Iterator[str]:
    """Yield the path of every file below DIRECTORY; there may be nothing else."""
    folders, count = [""], 0
    while folders:
        prefix = folders.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in entries:
                count += 1
                path = f"{prefix}{entry.name}"
                if _is_folder(entry, path, count):
                    folders.append(f"{path}/")
                else:
                    yield path


def _is_folder(entry: os.DirEntry[str], path: str, count: int) -> bool:
    """Say whether ENTRY is a directory; refuse what is neither that nor a plain file."""
    if count > MAX_FILES:
        raise _refused(f"there are more than {MAX_FILES} files")
    if entry.name.casefold().startswith(".git"):
        raise _refused(f"{_shown(path)} is a name that signing tools pass over")
    mode = entry.stat(follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise _refused(f"{_shown(path)} is a link or no file")
    return stat.S_ISDIR(mode)


def _check_paths(paths: list[str], digests: Mapping[str, str]) -> None:
    found, listed = set(paths), set(digests)
    if extra := sorted(found - listed):
        raise _mismatch(f"{_shown(extra[0])} is not among the files that were signed")
    if missing := sorted(listed - found):
        raise _mismatch(f"{_shown(missing[0])} is missing")


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read(MAX_SIGNATURE + 1)


def _digest(path: Path, algorithm: str) -> str:
    assert algorithm in ALGORITHMS
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _shown(path: str) -> str:
    return repr(path[:200])


def _mismatch(why: str) -> IntegrityError:
    return IntegrityError(
        "the files are not those that were signed",
        why=why,
        fix="fetch them again from their publisher",
        reason="digest_mismatch",
    )


def _refused(why: str) -> IntegrityError:
    return IntegrityError(
        "the directory is not one that can be signed",
        why=why,
        fix="take it out, if it belongs there; nobody vouches for it",
        reason="bad_tree",
    )
