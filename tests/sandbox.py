"""Runs a command as the systemd unit would: its system calls, its view of the disk, no rights.

    unshare --mount --propagation private python sandbox.py UNIT [--without CALL] DIR... -- COMMAND

Everything comes from UNIT itself; the groups of system calls are those of the installed systemd.
DIRs are the only ones that can be written, as StateDirectory and RuntimeDirectory would be. For
machines where systemd cannot be asked to run the unit; `scripts/test-service` asks a real one.
"""

import ctypes
import errno
import functools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyseccomp

NOBODY = 65534
_API = ("/proc", "/sys", "/dev")
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAPBSET_DROP = 24


def settings(unit: Path, name: str) -> list[str]:
    """Return every value that UNIT gives NAME, in order."""
    prefix = f"{name}="
    lines = unit.read_text().splitlines()
    return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]


@functools.cache
def expand(name: str) -> frozenset[str]:
    """Return the system calls of NAME, a call or a group of systemd's."""
    if not name.startswith("@"):
        return frozenset({name})
    asked = ["systemd-analyze", "syscall-filter", "--no-pager", name]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    words = [line.strip() for line in told.splitlines()[1:]]
    return frozenset().union(*(expand(w) for w in words if w and not w.startswith("#")))


def allowed_calls(unit: Path) -> frozenset[str]:
    """Return the system calls that UNIT allows: a list of allowed ones, minus those after `~`."""
    first, *more = settings(unit, "SystemCallFilter")
    allowed = expand("@default").union(*map(expand, first.split()))
    for line in more:
        calls = frozenset().union(*map(expand, line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return allowed


def seal(root_is: str, writable: list[Path]) -> None:
    """Make every mount but those of WRITABLE and the kernel's own read-only, and hide homes."""
    visible = [Path(sys.base_prefix)]
    for path in writable:
        _mount("--bind", path, path)
        _mount("-o", "remount,bind,nosuid,noexec", path)
    _hide_home(Path("/root"), visible)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = Path(line.split()[4])
        own = place in writable or str(place).startswith(_API)
        if not own:
            _mount("-o", f"remount,bind,{root_is}", place)


def _hide_home(home: Path, visible: list[Path]) -> None:
    """Put an empty directory over HOME, but leave what is VISIBLE below it."""
    inside = [path for path in visible if path.is_relative_to(home)]
    handles = [os.open(path, os.O_PATH) for path in inside]
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", home)
    for path, handle in zip(inside, handles, strict=True):
        path.mkdir(parents=True)
        # Canonical names would lead to what now hides it.
        _mount("--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{handle}", path)
        os.close(handle)


def _mount(*words: object) -> None:
    subprocess.run([shutil.which("mount") or "mount", *map(str, words)], check=True)


def give_up_rights() -> None:
    """Become nobody, without a capability and without a way to get one."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def restrict_families(unit: Path) -> None:
    """Let sockets be opened of the address families of UNIT alone."""
    (line,) = settings(unit, "RestrictAddressFamilies")
    allowed = {int(getattr(socket, name)) for name in line.split()}
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
    for family in set(range(64)) - allowed:
        rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    rules.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.GE, 64))
    rules.load()


def restrict_calls(calls: frozenset[str]) -> None:
    """Let CALLS be made, and no others."""
    rules = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in sorted(calls):
        # Groups also name calls of other architectures.
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) >= 0:
            rules.add_rule(pyseccomp.ALLOW, name)
    rules.load()


def main() -> None:
    words = sys.argv[1:]
    middle = words.index("--")
    (unit, *rest), command = words[:middle], words[middle + 1 :]
    without = frozenset()
    if "--without" in rest:
        place = rest.index("--without")
        without, rest = expand(rest[place + 1]), rest[:place] + rest[place + 2 :]
    calls = allowed_calls(Path(unit)) - without
    (system,) = settings(Path(unit), "ProtectSystem")
    seal("ro" if system == "strict" else "rw", [Path(each) for each in rest])
    give_up_rights()
    restrict_families(Path(unit))
    restrict_calls(calls)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
