"""mosquitto as this fleet needs it: its configuration, its access list, its start. No client.

A device's certificate is its identity: its common name becomes user name and client id, and the
access list opens its own topics below `ep/1/d/<that name>/` and nothing else.
"""

import ipaddress
import os
import pwd
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from edgepack.durable import write_file
from edgepack.errors import UnsupportedError, UsageError
from edgepack.topics import PREFIX
from edgepack_fleet.adapters.pki import WORKERS, Pki, worker_name

__all__ = [
    "DEFAULT_PORT",
    "UPLINK_KINDS",
    "Address",
    "BrokerFiles",
    "devices_acl",
    "find_mosquitto",
    "free_port",
    "known_address",
    "parse_address",
    "prepare",
    "reload",
    "start",
]

DEFAULT_PORT = 8883
MAX_PACKET = 384 * 1024
"""Bytes; the largest message of ours is 256 KiB, a block is 64 KiB."""
UPLINK_KINDS = (
    "conn", "tele", "evt", "job/get", "job/update", "req/get", "req/answer", "cert", "meta", "blob",
)  # fmt: skip
"""What a device may speak of."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return `host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """What `prepare` wrote."""

    directory: Path
    config: Path
    address: Address


def parse_address(text: str, *, what: str = "address") -> Address:
    """Return the address in TEXT, `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        UsageError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        raise UsageError(f"not a {what}: {text!r}", fix="write HOST:PORT, e.g. 127.0.0.1:8080")
    return Address(host, int(port))


def prepare(data: Path, pki: Pki, address: Address) -> BrokerFiles:
    """Write the broker's files below DATA and return them; port 0 becomes a free one."""
    directory = data / "broker"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = address if address.port else Address(address.host, free_port(address.host))
    config = directory / "mosquitto.conf"
    write_file(directory / "acl", _acl().encode(), mode=0o600)
    write_file(config, _config(directory, pki, address).encode(), mode=0o600)
    write_file(directory / "address", f"{address}\n".encode())
    return BrokerFiles(directory, config, address)


def known_address(data: Path) -> Address:
    """Return where the broker of DATA was last told to listen, else the default."""
    path = data / "broker" / "address"
    if not path.exists():
        return Address("127.0.0.1", DEFAULT_PORT)
    address = parse_address(path.read_text().strip())
    # Where a broker listens everywhere, it listens here; nobody can connect to `0.0.0.0`.
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not bound
    return Address(local.get(address.host, address.host), address.port)


def find_mosquitto() -> str:
    """Return the path of mosquitto.

    Raises:
        UnsupportedError: it is not installed.
    """
    # Debian keeps it in sbin, which is not on every user's path.
    path = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise UnsupportedError(
            "mosquitto is not installed here",
            fix="apt-get install mosquitto, or `edgepack fleet serve --embedded-broker` for a demo",
            reason="mosquitto_missing",
        )
    return path


def start(files: BrokerFiles, pki: Pki) -> None:
    """Become mosquitto with FILES; does not return."""
    path = find_mosquitto()
    pki.trust.compact()
    os.execv(path, [path, "-c", str(files.config)])


def reload(data: Path) -> bool:
    """Let the broker of DATA read its own certificate again; return whether it was told to.

    It is found by the process id it has written down, if that process is one that runs with the
    configuration of DATA; a broker elsewhere is its operator's to reload.
    """
    directory = data / "broker"
    try:
        pid = int((directory / "pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if os.fsencode(directory / "mosquitto.conf") not in words:
            return False
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return False
    return True


def free_port(host: str) -> int:
    """Return a TCP port of HOST that is free now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def devices_acl() -> str:
    """Return what a device may do: under its own name only."""
    # One by one: under `up/#` a device could leave as many retained messages as it likes.
    own = "\n".join(f"pattern write {PREFIX}/d/%u/up/{kind}" for kind in UPLINK_KINDS)
    return f"""\
{own}
pattern read {PREFIX}/d/%u/dn/#
pattern read {PREFIX}/g/+/dn/hint
"""


def _acl() -> str:
    workers = "".join(
        f"""\
user {worker_name(number)}
topic read {PREFIX}/d/+/up/#
topic write {PREFIX}/d/+/dn/#
topic write {PREFIX}/g/+/dn/hint

"""
        for number in range(1, WORKERS + 1)
    )
    return f"""\
# Written by edgepack on every start; changes are lost.
{workers}
# Every device, under its own certificate's name only.
{devices_acl()}"""


def _config(directory: Path, pki: Pki, address: Address) -> str:
    certificate, key = pki.pair("server")
    return f"""\
# Written by edgepack on every start; changes are lost.
per_listener_settings false
listener {address.port} {address.host}
allow_anonymous false
acl_file {directory / "acl"}

# Who connects is who its certificate says. Authorities and revocation lists are read from the
# directory at every handshake; the list in the file only turns the check on.
capath {pki.trust.path}
certfile {certificate}
keyfile {key}
crlfile {pki.crl_path}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2

# The defaults drop acknowledged messages in a burst; these hold for a fleet that comes back
# all at once.
max_inflight_messages 1000
max_queued_messages 100000
max_queued_bytes 268435456
max_packet_size {MAX_PACKET}
persistent_client_expiration 14d
set_tcp_nodelay true
pid_file {directory / "pid"}

persistence true
persistence_location {directory}/
autosave_interval 30
user {pwd.getpwuid(os.getuid()).pw_name}
log_dest stderr
log_timestamp_format %Y-%m-%d %H:%M:%S
log_type error
log_type warning
"""
