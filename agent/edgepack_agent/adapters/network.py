"""Which interface leads to the fleet, and whether it costs money by the byte. Sends nothing.

A connected UDP socket asks the kernel for the route without a packet; the address it would send
from tells the interface.
"""

import contextlib
import fcntl
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from edgepack.errors import EdgepackError

__all__ = ["Metering", "interface_to"]

_SIOCGIFADDR = 0x8915
_NAME_BYTES = 16
_NMCLI_S = 5.0
_DISCARD = 9
"""Any port will do: nothing is sent."""


class Metering:
    """Says whether the fleet is reached over a link that costs money.

    Args:
        hosts: Returns the hosts that bytes would come from.
        patterns: Names of interfaces that are metered, with wildcards: `wwan*`.
        wait: Whether such a link is not used at all.
        sparing: Whether it is used for patches and small files only. Without either, nothing
            is looked at.
        flag: Returns what the system says about an interface; None: it does not know.
    """

    def __init__(
        self,
        hosts: Callable[[], Sequence[str]],
        patterns: Sequence[str],
        *,
        wait: bool,
        sparing: bool = False,
        flag: Callable[[str], bool | None] | None = None,
    ) -> None:
        self._hosts, self._patterns, self._wait = hosts, tuple(patterns), wait
        self._sparing = sparing
        self._flag = flag or _network_manager
        self._flags: dict[str, bool | None] = {}

    def begin(self) -> None:
        """Begin a download: what the system says about its interfaces is asked again."""
        self._flags.clear()

    def check(self) -> None:
        """Check that bytes may be fetched now.

        Raises:
            EdgepackError: the link is metered (reason `metered`).
        """
        if self._wait:
            self._refuse_metered()

    def check_whole(self) -> None:
        """Check that a large file may be fetched whole now.

        Raises:
            EdgepackError: the link is metered (reason `metered`).
        """
        if self._wait or self._sparing:
            self._refuse_metered()

    def _refuse_metered(self) -> None:
        for host in self._hosts():
            name = interface_to(host)
            if name is not None and self._is_metered(name):
                raise EdgepackError(
                    "the link costs money by the byte",
                    why=f"{host} is reached over {name}, which is metered",
                    fix="connect another link, or set `transfer.metered: allow`",
                    reason="metered",
                )

    def _is_metered(self, name: str) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self._patterns):
            return True
        if name not in self._flags:
            self._flags[name] = self._flag(name)
        return bool(self._flags[name])


def interface_to(host: str) -> str | None:
    """Return the interface over which HOST is reached now; None if there is none."""
    try:
        found = socket.getaddrinfo(host, _DISCARD, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, _, _, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.connect(address)
            return _interface_with(probe.getsockname()[0])
    return None


def _interface_with(address: str) -> str | None:
    if ":" in address:
        return _ipv6_interface(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[: _NAME_BYTES - 1])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    # Any address of 127.0.0.0/8 is on the loopback interface, not only the one it has.
    return "lo" if address.startswith("127.") else None


def _ipv6_interface(address: str) -> str | None:
    wanted = socket.inet_pton(socket.AF_INET6, address.partition("%")[0]).hex()
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            fields = line.split()
            if fields and fields[0] == wanted:
                return fields[-1]
    return None


def _network_manager(name: str) -> bool | None:
    """Return what NetworkManager says, or guesses, about the interface NAME."""
    nmcli = shutil.which("nmcli")
    if nmcli is None:
        return None
    words = [nmcli, "-g", "GENERAL.METERED", "device", "show", name]
    plain = {"LC_ALL": "C"}
    try:
        said = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=_NMCLI_S,
            env=plain,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip().startswith("yes") if said.returncode == 0 else None
