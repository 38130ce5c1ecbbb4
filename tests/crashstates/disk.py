"""A disk that forgets: what of a tree is durable after some operations, and what may be lost.

Every file and directory has two versions, the one that programs see and the one that is known
to be on the medium, and a list of changes in between. A crash keeps any part of that list:

- *data* of a file that was not fsynced: each write kept, lost, or torn into sectors of 512
  bytes, in any order, with the size grown or not (a file full of zeros);
- *names* (create, rename, unlink, ...): lost from some moment on. An `ordered` disk has one
  such moment for all directories, and any fsync settles every name, like ext4, XFS and btrfs
  in practice; a disk that is not has one moment per directory, which only an fsync of the
  directory itself settles, which is all that POSIX promises.

A rename is atomic. A sector is. Modes go with the names.
"""

import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crashstates.trace import Op

__all__ = ["SECTOR", "Disk", "Entry", "Image", "materialise"]

SECTOR = 512
ROOT = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What is at a path: a file's `content`, or a directory (`None`), or a link's target."""

    content: bytes | None
    mode: int = 0o644
    target: str = ""


Image = dict[str, Entry]
"""A whole tree: relative path -> entry, parents before children."""


@dataclass(frozen=True, slots=True)
class _Data:
    """A change of a file's content."""

    kind: str
    offset: int = 0
    data: bytes = b""
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Names:
    """A change of names, all of it or nothing: (directory, name) -> inode, None for gone."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(slots=True)
class _File:
    seen: bytearray
    durable: bytes
    mode: int
    pending: list[_Data] = field(default_factory=list)


class Disk:
    """A tree, all of which is durable at first.

    Args:
        image: What is there.
        ordered: Whether it treats names like ext4 does.
    """

    def __init__(self, image: Image, *, ordered: bool = True) -> None:
        self.ordered = ordered
        self._next = ROOT
        self._files: dict[int, _File] = {}
        self._links: dict[int, str] = {}
        self._seen: dict[int, dict[str, int]] = {ROOT: {}}
        self._durable: dict[int, dict[str, int]] = {ROOT: {}}
        self._pending: list[_Names] = []
        for path, entry in image.items():
            self._add(path, entry)
        for each in self._files.values():
            each.durable = bytes(each.seen)
        self._settle_all()

    @classmethod
    def read(cls, tree: Path, *, ordered: bool = True) -> "Disk":
        """Return the disk that holds what is in the directory TREE now."""
        return cls(read_image(tree), ordered=ordered)

    # -- what programs do

    def apply(self, op: Op) -> None:
        """Do OP, as a program sees it."""
        getattr(self, f"_do_{op.kind}")(op)

    def _do_create(self, op: Op) -> None:
        if self._find(op.path) is None:
            self._put(op.path, self._new_file(op.size & 0o777))

    def _do_mkdir(self, op: Op) -> None:
        self._put(op.path, self._new_directory())

    def _do_symlink(self, op: Op) -> None:
        self._put(op.path, self._new_link(op.other))

    def _do_link(self, op: Op) -> None:
        self._put(op.other, self._need(op.path))

    def _do_rename(self, op: Op) -> None:
        inode = self._need(op.path)
        (old, old_name), (new, new_name) = self._place(op.path), self._place(op.other)
        if self._seen[new].get(new_name) != inode:
            self._change((old, old_name, None), (new, new_name, inode))

    def _do_unlink(self, op: Op) -> None:
        self._need(op.path)
        self._change((*self._place(op.path), None))

    def _do_write(self, op: Op) -> None:
        self._edit(op.path, _Data("write", op.offset, op.data))

    def _do_resize(self, op: Op) -> None:
        self._edit(op.path, _Data("resize", size=op.size))

    def _do_extend(self, op: Op) -> None:
        self._edit(op.path, _Data("extend", size=op.size))

    def _do_chmod(self, op: Op) -> None:
        inode = self._find(op.path)
        if inode in self._files:
            self._files[inode].mode = op.size

    def _do_sync(self, op: Op) -> None:
        inode = self._find(op.path)
        if inode is None:
            return  # unlinked while it was open: nothing of it will ever be seen
        if inode in self._files:
            each = self._files[inode]
            each.durable, each.pending = bytes(each.seen), []
        else:
            self._settle(inode)
        if self.ordered:
            self._settle_all()

    # -- what is left

    def seen(self) -> Image:
        """Return what programs see: the state after a kill without a crash."""
        return self._image(self._seen, {n: bytes(f.seen) for n, f in self._files.items()})

    def crash(self, seed: int) -> Image:
        """Return what a crash might leave; which of the possibilities is SEED's choice.

        The first four seeds are the extremes: nothing that is not durable; names without
        data; data without names; everything.
        """
        dice = random.Random(seed)
        names = {0: 0.0, 1: 1.0, 2: 0.0, 3: 1.0}.get(seed)
        data = {0: 0.0, 1: 0.0, 2: 1.0, 3: 1.0}.get(seed)
        share = dice.choice((0.0, 0.5, 1.0)) if data is None else data
        contents = {n: _left(f, share, dice) for n, f in self._files.items()}
        return self._image(self._names_left(names, dice), contents)

    @property
    def unsettled(self) -> bool:
        """Whether a crash can lose anything at all."""
        return bool(self._pending) or any(f.pending for f in self._files.values())

    def _names_left(self, share: float | None, dice: random.Random) -> dict[int, dict[str, int]]:
        left = {inode: dict(names) for inode, names in self._durable.items()}
        for inode in self._seen:
            left.setdefault(inode, {})
        stopped: set[int] = set()
        last = 1.0 if share is None else share
        # One draw decides how far it came: late losses are as likely as early ones.
        moment = dice.uniform(0, 1)
        for index, change in enumerate(self._pending):
            touched = {directory for directory, _, _ in change.changes}
            if share is None:
                if self.ordered:
                    last = float(index / len(self._pending) < moment)
                else:
                    last = float(dice.random() < 0.7)
            if last and not stopped & touched:
                _rename_in(left, change)
            else:
                stopped |= set(self._seen) if self.ordered else touched
        return left

    def _image(self, names: dict[int, dict[str, int]], contents: dict[int, bytes]) -> Image:
        image: Image = {}

        def walk(directory: int, prefix: str) -> None:
            for name, inode in sorted(names[directory].items()):
                path = prefix + name
                if inode in contents:
                    image[path] = Entry(contents[inode], self._files[inode].mode)
                elif inode in self._links:
                    image[path] = Entry(None, target=self._links[inode])
                else:
                    image[path] = Entry(None, 0o755)
                    walk(inode, f"{path}/")

        walk(ROOT, "")
        return image

    # -- inside

    def _add(self, path: str, entry: Entry) -> None:
        if entry.target:
            self._put(path, self._new_link(entry.target))
        elif entry.content is None:
            self._put(path, self._new_directory())
        else:
            inode = self._new_file(entry.mode)
            self._files[inode].seen[:] = entry.content
            self._put(path, inode)

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _new_file(self, mode: int) -> int:
        inode = self._new()
        self._files[inode] = _File(bytearray(), b"", mode)
        return inode

    def _new_directory(self) -> int:
        inode = self._new()
        self._seen[inode], self._durable[inode] = {}, {}
        return inode

    def _new_link(self, target: str) -> int:
        inode = self._new()
        self._links[inode] = target
        return inode

    def _find(self, path: str) -> int | None:
        """Return what PATH leads to, along links; None if nothing is there."""
        inode: int | None = ROOT
        walked = ""
        for name in filter(None, path.split("/")):
            inode = self._seen.get(inode, {}).get(name) if inode is not None else None
            if inode in self._links:
                inode = self._find(f"{walked}/{self._links[inode]}")
            walked += f"/{name}"
        return inode

    def _need(self, path: str) -> int:
        directory, name = self._place(path)
        return self._seen[directory][name]

    def _place(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        directory = self._find(parent)
        assert directory is not None, f"{parent} is not there"
        return directory, name

    def _put(self, path: str, inode: int) -> None:
        self._change((*self._place(path), inode))

    def _change(self, *changes: tuple[int, str, int | None]) -> None:
        change = _Names(changes)
        _rename_in(self._seen, change)
        self._pending.append(change)

    def _edit(self, path: str, change: _Data) -> None:
        inode = self._find(path)
        if inode is None:
            return  # unlinked while it was open
        each = self._files[inode]
        _change(each.seen, change)
        each.pending.append(change)

    def forget(self) -> None:
        """Forget files without a name, which no crash can bring back."""
        places = (*self._seen.values(), *self._durable.values())
        named = {inode for names in places for inode in names.values()}
        named |= {inode for change in self._pending for _, _, inode in change.changes if inode}
        self._files = {inode: each for inode, each in self._files.items() if inode in named}

    def _settle_all(self) -> None:
        for change in self._pending:
            _rename_in(self._durable, change)
        self._pending.clear()

    def _settle(self, directory: int) -> None:
        """Make every name in DIRECTORY durable, and what must have happened before."""
        touched, kept = {directory}, []
        needed: list[_Names] = []
        for change in reversed(self._pending):
            directories = {d for d, _, _ in change.changes}
            if directories & touched:
                touched |= directories
                needed.append(change)
            else:
                kept.append(change)
        for change in reversed(needed):
            _rename_in(self._durable, change)
        self._pending = kept[::-1]


def read_image(tree: Path) -> Image:
    """Return what is in the directory TREE."""
    image: Image = {}
    for path in sorted(tree.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(tree).as_posix()
        if stat.S_ISLNK(mode):
            image[name] = Entry(None, target=str(path.readlink()))
        elif stat.S_ISDIR(mode):
            image[name] = Entry(None, 0o755)
        elif stat.S_ISREG(mode):
            image[name] = Entry(path.read_bytes(), mode & 0o777)
    return image


def materialise(image: Image, tree: Path) -> None:
    """Write IMAGE, or a part of one, into the empty directory TREE."""
    tree.mkdir(parents=True, exist_ok=True)
    for name, entry in image.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.target:
            path.symlink_to(entry.target)
        elif entry.content is None:
            path.mkdir()
        else:
            path.write_bytes(entry.content)
            path.chmod(entry.mode)


def _rename_in(names: dict[int, dict[str, int]], change: _Names) -> None:
    for directory, name, inode in change.changes:
        if inode is None:
            names[directory].pop(name, None)
        else:
            names[directory][name] = inode


def _change(content: bytearray, change: _Data) -> None:
    end = change.offset + len(change.data) if change.kind == "write" else change.size
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if change.kind == "write":
        content[change.offset : end] = change.data
    elif change.kind == "resize":
        del content[end:]


def _left(each: _File, share: float, dice: random.Random) -> bytes:
    """Return what a crash leaves of a file of whose changes about SHARE are kept."""
    if not each.pending or share == 0:
        return each.durable
    if share == 1:
        return bytes(each.seen)
    content = bytearray(each.durable)
    for change in each.pending:
        for part in _torn(change, dice):
            _change(content, part)
    return bytes(content)


def _torn(change: _Data, dice: random.Random) -> Iterator[_Data]:
    fate = dice.random()
    if change.kind != "write" or fate < 0.25:
        if fate < 0.6:
            yield change
        return
    if fate < 0.4:
        return
    end = change.offset + len(change.data)
    if fate < 0.7:
        yield _Data("extend", size=end)  # the size is there, the data only in part
    whole = dice.random() < 0.5
    cut = dice.randrange(change.offset, end + 1)
    start = change.offset
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        if (stop <= cut) if whole else (dice.random() < 0.5):
            piece = change.data[start - change.offset : stop - change.offset]
            yield _Data("write", start, piece)
        start = stop
