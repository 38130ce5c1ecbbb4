"""Who this device is: key, certificate, CA, roots, broker. Written once, as a whole, 0600.

    identity/  device.json  key.pem  certificate.pem  ca.pem  image-root.json  director-root.json

The directory appears by a rename, so there is all of it or nothing.
"""

import shutil
import ssl
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgepack.durable import sync_directory, write_file
from edgepack.errors import UsageError

__all__ = ["Identity", "load_identity", "refuse_second", "write_identity"]

_FACTS = "device.json"


@dataclass(frozen=True, slots=True)
class Identity:
    """An enrolled device."""

    directory: Path
    device: str
    group: str
    broker_host: str
    broker_port: int

    @property
    def image_root(self) -> bytes:
        """First root of the image repository."""
        return (self.directory / "image-root.json").read_bytes()

    @property
    def director_root(self) -> bytes:
        """First root of the director."""
        return (self.directory / "director-root.json").read_bytes()

    def tls(self) -> ssl.SSLContext:
        """Return a context that trusts the fleet's CA alone and shows our certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(self.directory / "ca.pem")
        context.load_cert_chain(self.directory / "certificate.pem", self.directory / "key.pem")
        return context


class _Facts(msgspec.Struct, frozen=True):
    device: str
    group: str
    broker_host: str
    broker_port: int


def refuse_second(directory: Path) -> None:
    """Refuse to enrol a device twice.

    Raises:
        UsageError: there is an identity already.
    """
    if directory.exists():
        raise UsageError(
            "this device is enrolled already",
            why=f"{directory} exists",
            fix=f"move {directory} away to enrol it anew",
            reason="already_enrolled",
        )


def write_identity(
    directory: Path, *, device: str, group: str, broker: tuple[str, int], files: dict[str, bytes]
) -> None:
    """Write a new identity: FILES by name, and the facts.

    Raises:
        UsageError: there is one already, or DIRECTORY cannot be written.
    """
    refuse_second(directory)
    facts = _Facts(device, group, *broker)
    building = directory.with_name(f".{directory.name}.new")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700, parents=True)
        for name, data in {**files, _FACTS: msgspec.json.encode(facts)}.items():
            write_file(building / name, data, 0o600)
        building.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise UsageError(
            f"cannot write {directory}", why=str(error), reason="unwritable"
        ) from error


def load_identity(directory: Path) -> Identity | None:
    """Return the identity in DIRECTORY; None if this device is not enrolled.

    Raises:
        UsageError: it cannot be read.
    """
    if not directory.exists():
        return None
    try:
        facts = msgspec.json.decode((directory / _FACTS).read_bytes(), type=_Facts)
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"the identity in {directory} cannot be read",
            why=str(error),
            fix="enrol this device anew",
            reason="bad_identity",
        ) from error
    return Identity(directory, facts.device, facts.group, facts.broker_host, facts.broker_port)
