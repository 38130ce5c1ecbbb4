"""Landlock: shuts this process into a few places, for good, where the kernel has it. Picks none.

Three system calls of Linux 5.13 and later, see landlock(7). What a kernel can refuse depends on
the version of its interface (ABI); what it does not know is left out, never asked for.

    ABI 1  files    2  moving between directories    3  truncating
        5  ioctl on devices    6  signals and abstract sockets

The network (ABI 4) stays as it is: cameras and clients are wherever the site has them.
"""

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Places", "Ruleset", "abi", "confine", "rights", "ruleset"]

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""The same numbers on every architecture."""
_ASK_VERSION = 1
_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_OLDEST, _REFER, _TRUNCATE, _IOCTL = 1 << 12, 1 << 13, 1 << 14, 1 << 15
"""The last bit that ABI 1, 2, 3 and 5 know."""
_OF_FILES = 1 | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_READ = _READ_FILE | _READ_DIR
_WRITE = (
    _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
)
_DEVICE = _READ | _WRITE_FILE | _IOCTL
_ABSTRACT, _SIGNAL = 1, 2


@dataclass(frozen=True, slots=True)
class Places:
    """What a process may still open; a path stands for everything below it."""

    read: tuple[Path, ...]
    write: tuple[Path, ...] = ()
    """Read, too."""
    devices: tuple[Path, ...] = ()
    run: tuple[Path, ...] = ()
    """Read, too; nothing anywhere else may be executed."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What is refused unless a rule allows it, in the bits of the kernel."""

    files: int
    scoped: int

    def pack(self, abi: int) -> bytes:
        """Return it as the structure of ABI."""
        words = struct.pack("=QQQ", self.files, 0, self.scoped)
        return words[: 8 if abi < 4 else 16 if abi < 6 else 24]


def ruleset(abi: int) -> Ruleset:
    """Return all that is to be refused by a kernel with ABI."""
    newest = _IOCTL if abi >= 5 else _TRUNCATE if abi >= 3 else _REFER if abi >= 2 else _OLDEST
    return Ruleset(2 * newest - 1, _ABSTRACT | _SIGNAL if abi >= 6 else 0)


def rights(wanted: int, refused: Ruleset, *, directory: bool) -> int:
    """Return what of WANTED a rule for a path may allow: the kernel takes no other bit."""
    return wanted & refused.files & (~0 if directory else _OF_FILES)


def abi() -> int:
    """Return the version of the kernel's interface; 0: it has none, or it is switched off."""
    return max(0, _call(_CREATE, None, 0, _ASK_VERSION))


def confine(places: Places) -> int:
    """Shut the calling thread, and all that it will start, into PLACES; return the ABI used.

    Must be called after `no_new_privs` and before there are other threads: those would stay
    free. A place that is not there is left out. 0: this kernel cannot.

    Raises:
        OSError: the kernel can and will not.
    """
    version = abi()
    if version == 0:
        return 0
    refused = ruleset(version)
    packed = refused.pack(version)
    rules = _checked(_call(_CREATE, packed, len(packed), 0))
    try:
        _allow(rules, places.read, _READ, refused)
        _allow(rules, places.write, _WRITE, refused)
        _allow(rules, places.devices, _DEVICE, refused)
        _allow(rules, places.run, _READ | _EXECUTE, refused)
        _checked(_call(_RESTRICT, rules, 0))
    finally:
        os.close(rules)
    return version


def _allow(rules: int, paths: Iterable[Path], wanted: int, refused: Ruleset) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                _add(rules, place, wanted, refused)
            finally:
                os.close(place)


def _add(rules: int, place: int, wanted: int, refused: Ruleset) -> None:
    directory = stat.S_ISDIR(os.fstat(place).st_mode)
    allowed = rights(wanted, refused, directory=directory)
    _checked(_call(_ADD, rules, _BENEATH, struct.pack("=Qi", allowed, place), 0))


def _call(number: int, *arguments: int | bytes | None) -> int:
    given = [each if isinstance(each, bytes | None) else ctypes.c_long(each) for each in arguments]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(ctypes.c_long(number), *given))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        # A plain OSError: a PermissionError would be taken for a place that is not ours.
        raise OSError(f"Landlock: {os.strerror(code)}")
    return result
