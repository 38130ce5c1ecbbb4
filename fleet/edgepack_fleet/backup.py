"""A fleet in one file, taken while it serves, and a fleet made of such a file.

The database first, as it is at one moment, then the files: what is in the files may be newer than
the database, never older, because the director speaks before a job exists and blobs arrive before
what names them. A file holds the fleet's keys: whoever has it is the fleet.

    backup.json     schema, revision of the database, time
    database/T      the rows of table T, a line of JSON each
    data/...        the data directory
    SHA256SUMS      of all of them, the last one
"""

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from edgepack.durable import PART, sync_directory
from edgepack.errors import IntegrityError, UsageError
from edgepack_fleet.adapters import dump
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.lock import alone

__all__ = ["SCHEMA", "Backup", "restore", "take"]

SCHEMA = "edgepack.fleet-backup/v1"
FACTS, SUMS = "backup.json", "SHA256SUMS"
WHOLE = ("pki", "image", "patches", "director/root", "director/keys")
"""Directories that change under the lock of the topmost one, and are small."""
FILES = ("secret", "broker/address", "broker/embedded-port")
PIECE = 1024 * 1024


class Backup(msgspec.Struct, frozen=True):
    """What a backup says of itself."""

    schema: str
    created: float
    """Unix seconds."""
    revision: str
    """Of the schema of the database."""
    content: bool
    """Whether the blobs are in it."""
    rows: int = 0
    files: int = 0


@dataclass(slots=True)
class _Writer:
    """The file as it grows."""

    archive: tarfile.TarFile
    now: float
    sums: dict[str, str]

    def add(self, name: str, file: IO[bytes], size: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = size, int(self.now), 0o600
        reader = _Hashing(file)
        self.archive.addfile(entry, reader)
        self.sums[name] = reader.hash.hexdigest()

    def add_bytes(self, name: str, data: bytes) -> None:
        self.add(name, io.BytesIO(data), len(data))

    def add_tree(self, root: Path, part: Path) -> None:
        """Add the file or directory PART of the data directory ROOT; what is in motion is left."""
        path = root / part
        if path.is_dir():
            for inner in sorted(path.iterdir()):
                if not inner.name.startswith("."):
                    self.add_tree(root, part / inner.name)
            return
        # A file that is gone meanwhile was an old version.
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            self.add(f"data/{part.as_posix()}", file, os.fstat(file.fileno()).st_size)


class _Hashing(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.hash.update(data)
        return data


def take(data: Path, database: Database, target: Path, *, content: bool = True) -> Backup:
    """Write the fleet of DATA and DATABASE into the file TARGET; it may go on serving.

    Args:
        data: The fleet's directory.
        database: Its database.
        target: Appears when it is whole; readable by its owner only.
        content: Whether blobs go in, too; without, they must be kept some other way.

    Raises:
        UsageError: there is no fleet in DATA, or TARGET exists.
    """
    _check(data, target)
    handle, name = tempfile.mkstemp(prefix=PART, dir=target.absolute().parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive:
            facts = _write(_Writer(archive, time.time(), {}), data, database, content=content)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    sync_directory(target.absolute().parent)
    return facts


def _check(data: Path, target: Path) -> None:
    if not (data / "secret").exists():
        raise UsageError(
            f"no fleet has been served from {data} yet",
            fix=f"edgepack fleet serve --data {data}",
            reason="no_fleet",
        )
    if target.exists():
        raise UsageError(f"{target} exists", fix="give a new name", reason="exists")


def _write(writer: _Writer, data: Path, database: Database, *, content: bool) -> Backup:
    with dump.reading(database) as reader:
        content = content and (data / "blobs").exists()
        facts = Backup(SCHEMA, writer.now, reader.revision, content)
        writer.add_bytes(FACTS, msgspec.json.encode(facts))
        rows = sum(_add_table(writer, reader, table) for table in reader.tables)
    files = len(writer.sums)
    _add_files(writer, data, content=content)
    facts = msgspec.structs.replace(facts, rows=rows, files=len(writer.sums) - files)
    writer.add_bytes(SUMS, "".join(f"{s}  {n}\n" for n, s in writer.sums.items()).encode())
    return facts


def _add_table(writer: _Writer, reader: dump.Reader, table: str) -> int:
    count = 0
    with tempfile.TemporaryFile() as file:
        for line in reader.lines(table):
            file.write(line)
            count += 1
        size = file.tell()
        file.seek(0)
        writer.add(f"database/{table}", file, size)
    return count


def _add_files(writer: _Writer, data: Path, *, content: bool) -> None:
    for name in FILES:
        writer.add_tree(data, Path(name))
    devices = data / "director" / "devices"
    # Device by device: nobody waits for all of them.
    ones = sorted(devices.iterdir()) if devices.exists() else []
    for path in (*(data / name for name in WHOLE), *ones):
        top = data / path.relative_to(data).parts[0]
        if top.exists():
            with alone(top):
                writer.add_tree(data, path.relative_to(data))
    if content:
        writer.add_tree(data, Path("blobs"))


def restore(source: Path, data: Path, url: str | None = None) -> Backup:
    """Make a fleet of the file SOURCE in the directory DATA, which must not be there yet.

    It appears when all of it is right. A database elsewhere must be empty.

    Args:
        source: What `take` wrote, with this program or an older one.
        data: The new fleet's directory.
        url: Another database than SQLite in DATA.

    Raises:
        UsageError: DATA or the database is not empty, or SOURCE is of a newer program.
        IntegrityError: SOURCE is damaged; nothing is left behind.
    """
    if data.exists() and any(data.iterdir()):
        raise UsageError(
            f"{data} is not empty",
            why="a backup is put into a new directory only, so that nothing is overwritten",
            fix="move it away first",
            reason="not_empty",
        )
    data.absolute().parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=PART, dir=data.absolute().parent))
    try:
        facts = _unpack(source, staging)
        facts = _fill(facts, staging, url)
        if data.exists():
            data.rmdir()
        (staging / "data").replace(data)
        sync_directory(data.absolute().parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return facts


def _unpack(source: Path, staging: Path) -> Backup:
    """Unpack SOURCE into STAGING and check every file of it."""
    try:
        with tarfile.open(source, mode="r:") as archive:
            # Nothing leaves the directory, and nothing but files comes in.
            archive.extractall(staging, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise IntegrityError(
            f"{source} cannot be read as a backup", why=str(error), reason="bad_backup"
        ) from error
    found = {p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file()}
    sums = dict(_sums(staging / SUMS))
    wrong = found ^ {*sums, SUMS}
    wrong |= {name for name, digest in sums.items() if _digest(staging / name) != digest}
    if wrong:
        raise IntegrityError(
            f"{source} is damaged",
            why=f"not as it was written: {', '.join(sorted(wrong)[:5])}",
            fix="take an older backup",
            reason="bad_backup",
        )
    facts = msgspec.json.decode((staging / FACTS).read_bytes(), type=Backup)
    if facts.schema != SCHEMA:
        raise UsageError(f"{source} is {facts.schema}, not {SCHEMA}", fix="update edgepack")
    return msgspec.structs.replace(facts, files=sum(n.startswith("data/") for n in sums))


def _sums(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines() if path.exists() else ():
        digest, _, name = line.partition("  ")
        yield name, digest


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(facts: Backup, staging: Path, url: str | None) -> Backup:
    data = staging / "data"
    data.chmod(0o700)
    database = Database(url) if url else Database.in_directory(data)
    try:
        with dump.loading(database, facts.revision) as loader:
            files = {path.name: path for path in (staging / "database").iterdir()}
            rows = sum(loader.load(table, _lines(files[table])) for table in loader.order(files))
    finally:
        database.close()
    return msgspec.structs.replace(facts, rows=rows)


def _lines(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        yield from file
