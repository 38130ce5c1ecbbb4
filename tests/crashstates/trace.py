"""What a process did to its files, in order, as the kernel saw it. Knows no file system.

`strace` records every call that changes a file, a name or what is durable, with all its data,
also those of libraries that Python's own hooks never see (SQLite). `read_ops` turns the record
into `Op`s about one directory tree.

Offsets of plain `write` are followed per descriptor, so two processes must not write to one
file at the same time. A call whose effect is not understood is an error, never skipped.
"""

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

__all__ = [
    "Kind",
    "Op",
    "Reader",
    "TraceError",
    "available",
    "joined",
    "read_ops",
    "settled",
    "strace",
]

Kind = Literal[
    "create", "mkdir", "symlink", "link", "rename", "unlink",
    "write", "resize", "extend", "chmod", "sync",
]  # fmt: skip
_CHANGING = (
    "openat,creat,lseek,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,"
    "mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat,sendfile,copy_file_range,splice,sync,syncfs,"
    "sync_file_range,mmap,dup2,dup3"
)
SYNCING = "fsync,fdatasync,rename,renameat,renameat2"


@dataclass(frozen=True, slots=True)
class Op:
    """One change. Paths are relative to the tree.

    Attributes:
        kind: What was done.
        path: To what.
        other: The new name of `rename` and `link`; where a `symlink` points.
        offset: Of a `write`.
        data: Of a `write`.
        size: Of `resize` and `extend`; the mode of `create` and `chmod`.
        sure: Whether it was seen to be done; its process may have been killed before.
    """

    kind: Kind
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""
    size: int = 0
    sure: bool = True

    def __str__(self) -> str:
        more = f" -> {self.other}" if self.other else ""
        more += f" {len(self.data)} bytes at {self.offset}" if self.data else ""
        return f"{self.kind} {self.path}{more}"


class TraceError(Exception):
    """A record holds something that is not understood."""


def available() -> str | None:
    """Return the path of strace; None if it is not installed."""
    return shutil.which("strace")


def strace(record: Path, *options: str) -> list[str]:
    """Return the words that, put before a command, make it leave its RECORD.

    The command stays our child; strace watches it from aside and ends after it (see `settled`).
    """
    return [
        "strace", "-D", "-f", "--seccomp-bpf", "-q", "-y", "-xx", "-s", "100000000",
        "-e", "signal=kill,segv,abrt", "-e", f"trace={_CHANGING}", "-o", str(record), *options,
    ]  # fmt: skip


def settled(record: Path, pid: int, seconds: float = 20.0) -> None:
    """Wait until RECORD holds the end of process PID, whose end has been seen already."""
    end, deadline = re.compile(rb"^%d +\+\+\+ " % pid, re.MULTILINE), time.monotonic() + seconds
    while not end.search(record.read_bytes()):
        if time.monotonic() > deadline:
            raise TraceError(f"{record} says nothing about the end of {pid}")
        time.sleep(0.02)


def read_ops(record: Path, tree: Path) -> list[Op]:
    """Return what RECORD says about the TREE, which must be an absolute path without links."""
    with record.open("rb") as file:
        return list(Reader(str(tree)).read(line.decode("ascii") for line in file))


_LINE = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+|\?)(?:<(\S*?)>)?")
_TEXT = re.compile(r'"((?:\\x..)*)"')
_PLACE = re.compile(r"(?:AT_FDCWD|\d+)<((?:\\x..)*)>(?:\(deleted\))?")
_BROKEN = " <unfinished ...>\n"
_NOTHING = frozenset({"dup2", "dup3", "sync_file_range"})


def _decode(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def joined(lines: Iterable[str]) -> Iterator[str]:
    """Yield whole lines: strace breaks one in two to tell of another thread in between.

    A call whose process was killed in the middle of it ends with `= ?`.
    """
    begun: dict[str, str] = {}
    for line in lines:
        pid, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.endswith(_BROKEN):
            begun[pid] = line[: -len(_BROKEN)]
        elif rest.startswith("<... "):
            yield begun.pop(pid) + rest.partition(" resumed>")[2]
        else:
            if rest.startswith("+++") and pid in begun:
                yield begun.pop(pid) + ") = ?"
            yield line


def _umask() -> int:
    """Return the umask of this process, which what it starts inherits."""
    found = re.search(r"^Umask:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o022


class Reader:
    """Reads a record, or one that is still being written, about one TREE."""

    def __init__(self, tree: str) -> None:
        self._tree = tree
        self.needle = "".join(f"\\x{byte:02x}" for byte in tree.encode())
        self._offsets: dict[tuple[str, str], int] = {}

    def read(self, lines: Iterable[str]) -> Iterator[Op]:
        """Yield the operations that LINES are about."""
        for line in joined(lines):
            yield from self.take(line)

    def take(self, line: str) -> Iterator[Op]:
        """Yield the operations that one whole LINE is about."""
        match = _LINE.match(line)
        if match is None:
            if "+++" not in line and "---" not in line:
                raise TraceError(f"not a line of strace: {line[:120]}")
        elif match[3] != "-1" and (self.needle in line or match[1] in {"sync", "syncfs"}):
            ops = self._call(match[1], match[2], match[3], match[4])
            # A call whose process is killed as it begins has no result, or that of another one.
            doubtful = match[3] == "?" or (match[1] in _SIMPLE and match[3] != "0")
            yield from (replace(op, sure=False) for op in ops) if doubtful else ops

    def _call(self, name: str, args: str, result: str, opened: str | None) -> Iterator[Op]:
        if name == "openat":
            yield from self._open(args, result, opened)
        elif name in {"write", "pwrite64", "writev"}:
            yield from self._write(name, args, result)
        elif name == "lseek":
            self._seek(args, result)
        elif name in _SIMPLE:
            yield from getattr(self, _SIMPLE[name])(args)
        elif name == "mmap":
            self._map(args)
        elif name not in _NOTHING:
            raise TraceError(f"{name} is not understood: {args[:200]}")

    def _open(self, args: str, result: str, opened: str | None) -> Iterator[Op]:
        # Where it ended up, along links.
        path = _decode(opened).decode() if opened else self._paths(args)[0]
        self._offsets[result, path] = 0
        flags, _, mode = args.rpartition(", ")
        if "O_CREAT" not in args:
            flags, mode = args, "0"
        if not self._inside(path):
            return
        if "O_APPEND" in flags or "O_TMPFILE" in flags:
            raise TraceError(f"O_APPEND and O_TMPFILE are not understood: {path}")
        if "O_CREAT" in flags:
            yield Op("create", self._inner(path), size=int(mode, 8) & ~_umask())
        if "O_TRUNC" in flags:
            yield Op("resize", self._inner(path))

    def _write(self, name: str, args: str, result: str) -> Iterator[Op]:
        handle, path = self._handle(args)
        data = b"".join(_decode(text) for text in _TEXT.findall(args))
        if name == "pwrite64":
            offset = int(args.rpartition(", ")[2])
        else:
            offset = self._offsets.get((handle, path), 0)
            self._offsets[handle, path] = offset + len(data)
        if self._inside(path) and (data or result == "?"):
            sure = result == str(len(data))
            yield Op("write", self._inner(path), offset=offset, data=data, sure=sure)

    def _seek(self, args: str, result: str) -> None:
        if result != "?":
            self._offsets[self._handle(args)] = int(result)

    def _map(self, args: str) -> None:
        if "MAP_SHARED" in args and "PROT_WRITE" in args:
            path = _decode(_PLACE.findall(args)[0]).decode()
            # SQLite's index of its log: rebuilt by whoever opens the database first.
            if self._inside(path) and not path.endswith("-shm"):
                raise TraceError(f"{path} is written by mapping it")

    def _sync(self, args: str) -> Iterator[Op]:
        yield from self._one("sync", self._handle(args)[1])

    def _resize(self, args: str) -> Iterator[Op]:
        size = int(args.rpartition(", ")[2])
        yield from self._one("resize", self._target(args), size=size)

    def _allocate(self, args: str) -> Iterator[Op]:
        _, mode, offset, length = args.split(", ")
        if mode != "0":
            raise TraceError(f"fallocate with mode {mode} is not understood")
        yield from self._one("extend", self._target(args), size=int(offset) + int(length))

    def _chmod(self, args: str) -> Iterator[Op]:
        mode = next(word for word in reversed(args.split(", ")) if word.isdigit())
        yield from self._one("chmod", self._target(args), size=int(mode, 8))

    def _mkdir(self, args: str) -> Iterator[Op]:
        yield from self._one("mkdir", self._target(args))

    def _unlink(self, args: str) -> Iterator[Op]:
        yield from self._one("unlink", self._target(args))

    def _symlink(self, args: str) -> Iterator[Op]:
        target = _decode(_TEXT.findall(args)[0]).decode()
        yield from self._one("symlink", self._paths(args.partition(", ")[2])[0], other=target)

    def _rename(self, args: str) -> Iterator[Op]:
        yield from self._two("rename", args)

    def _link(self, args: str) -> Iterator[Op]:
        yield from self._two("link", args)

    def _one(self, kind: Kind, path: str, **more: int | str) -> Iterator[Op]:
        if self._inside(path):
            yield Op(kind, self._inner(path), **more)  # type: ignore[arg-type]

    def _two(self, kind: Kind, args: str) -> Iterator[Op]:
        old, new = self._paths(args)
        if self._inside(old) != self._inside(new):
            raise TraceError(f"{kind} across the edge of the tree: {old} {new}")
        if self._inside(old):
            yield Op(kind, self._inner(old), self._inner(new))

    def _handle(self, args: str) -> tuple[str, str]:
        number, _, rest = args.partition("<")
        return number, _decode(rest.partition(">")[0]).decode()

    def _target(self, args: str) -> str:
        """Return the only path, be it named by a text or by a descriptor."""
        return self._paths(args)[0] if '"' in args else self._handle(args)[1]

    def _paths(self, args: str) -> list[str]:
        """Return the paths named in ARGS, those relative to a directory's descriptor in full."""
        found, base = [], ""
        for match in re.finditer(f"{_PLACE.pattern}|{_TEXT.pattern}", args):
            if match[2] is None:
                base = _decode(match[1]).decode()
                continue
            path = _decode(match[2]).decode()
            if not path.startswith("/") and not base:
                raise TraceError(f"a path relative to nothing known: {path}")
            found.append(path if path.startswith("/") else f"{base}/{path}")
        return found

    def _inside(self, path: str) -> bool:
        return path.startswith(f"{self._tree}/") or path == self._tree

    def _inner(self, path: str) -> str:
        return path[len(self._tree) + 1 :]


_SIMPLE = {
    "fsync": "_sync", "fdatasync": "_sync",
    "ftruncate": "_resize", "truncate": "_resize", "fallocate": "_allocate",
    "chmod": "_chmod", "fchmod": "_chmod", "fchmodat": "_chmod",
    "mkdir": "_mkdir", "mkdirat": "_mkdir",
    "unlink": "_unlink", "unlinkat": "_unlink", "rmdir": "_unlink",
    "symlink": "_symlink", "symlinkat": "_symlink",
    "rename": "_rename", "renameat": "_rename", "renameat2": "_rename",
    "link": "_link", "linkat": "_link",
}  # fmt: skip
