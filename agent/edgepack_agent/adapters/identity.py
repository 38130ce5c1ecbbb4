"""Who this device is: keys, certificate, CA, roots, broker. Written as a whole, 0600.

    identity/  device.json  key.pem  certificate.pem  ca.pem  image-root.json  director-root.json
               report-key.pem   signs what this device says
               next-key.pem     made for a certificate that has been asked for
               next.pem         key and certificate that have not been used yet
               validity.json    serial number and dates of the certificate in use
               tls.pem          the same once they have; key.pem and certificate.pem are gone then

The directory appears by a rename, so there is all of it or nothing. A new pair is one file, and
becomes the pair by a rename after it has worked: at no moment is there none that works.
"""

import hashlib
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.durable import sync_directory, write_file
from edgepack.errors import UsageError
from edgepack_agent.adapters.keys import new_key, private_pem
from edgepack_agent.adapters.listener import trusting

__all__ = ["Identity", "Validity", "load_identity", "refuse_second", "write_identity"]

_REPORT_KEY, _NEXT_REPORT_KEY = "report-key.pem", "next-report-key.pem"
_FACTS, _PAIR, _NEWER, _NEXT_KEY = "device.json", "tls.pem", "next.pem", "next-key.pem"
_VALIDITY = "validity.json"


class Validity(msgspec.Struct, frozen=True):
    """What a device keeps in mind of its certificate."""

    sha256: str
    """Of the file it is in."""
    serial: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,40}(?![\s\S])")]
    """In hex."""
    begin: float
    """Unix seconds, like `end`."""
    end: float


@dataclass(frozen=True, slots=True)
class Identity:
    """An enrolled device."""

    directory: Path
    device: str
    group: str
    broker_host: str
    broker_port: int
    url: str = ""
    """Base URL of the fleet's device listener; empty: not known."""

    @property
    def broker(self) -> tuple[str, int]:
        """Host and port of the fleet's broker."""
        return self.broker_host, self.broker_port

    @property
    def image_root(self) -> bytes:
        """First root of the image repository."""
        return self._read("image-root.json")

    @property
    def director_root(self) -> bytes:
        """First root of the director."""
        return self._read("director-root.json")

    @property
    def authorities(self) -> str:
        """The certificates of the authorities this device believes, PEM."""
        with _told(self.directory):
            return self._read("ca.pem").decode()

    @property
    def has_newer(self) -> bool:
        """Whether there is a pair that has not been used yet."""
        return (self.directory / _NEWER).exists()

    @property
    def has_report_key(self) -> bool:
        """Whether what this device says is signed; not if it enrolled without such a key."""
        return (self.directory / _REPORT_KEY).exists()

    def validity(self) -> Validity:
        """Return what is to be known of the certificate in use, read once and kept beside it."""
        with _told(self.directory):
            pair = self._pair()[0].read_bytes()
            digest = hashlib.sha256(pair).hexdigest()
            kept = self._kept_validity()
            if kept is None or kept.sha256 != digest:
                from edgepack_agent.adapters.credentials import read_validity

                kept = Validity(digest, *read_validity(pair))
                # A disk that takes no more only costs reading the certificate again.
                with suppress(OSError):
                    write_file(self.directory / _VALIDITY, msgspec.json.encode(kept), 0o600)
        return kept

    def in_use(self) -> dict[str, str]:
        """Return which certificate and which authorities are in use, for the birth message."""
        trusts = hashlib.sha256(self.authorities.encode()).hexdigest()
        return {"cert": self.validity().serial, "trusts": trusts}

    def certificate_pem(self) -> str:
        """Return the certificate in use as PEM, without its key."""
        from edgepack_agent.adapters.credentials import inner_pem

        with _told(self.directory):
            return inner_pem(self._pair()[0].read_bytes())

    def key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key of the certificate in use."""
        with _told(self.directory):
            return new_key(self._pair()[1].read_bytes())

    def report_key(self) -> ec.EllipticCurvePrivateKey | None:
        """Return the key that signs what this device says; None: it enrolled without one."""
        path = self.directory / _REPORT_KEY
        with _told(self.directory):
            return new_key(path.read_bytes()) if path.exists() else None

    def tls(self, *, newer: bool = False) -> ssl.SSLContext:
        """Return a context that trusts the fleet's CA alone and shows our certificate."""
        certificate, key = (self.directory / _NEWER,) * 2 if newer else self._pair()
        with _told(self.directory):
            context = trusting(self.authorities)
            # Asked for a pass phrase, a daemon has none to give; a damaged key may look locked.
            context.load_cert_chain(certificate, key, password="")
        return context

    def next_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key for the next certificate: the same until there is one for it."""
        path = self.directory / _NEXT_KEY
        if path.exists():
            key = new_key(path.read_bytes())
            # A power cut may have left the key of the pair in use here; each has its own.
            if key.public_key() != self.key().public_key():
                return key
        key = new_key()
        write_file(path, private_pem(key), 0o600)
        return key

    def keep(self, certificate: str, authorities: str) -> None:
        """Keep CERTIFICATE for the next key, to be tried, and believe AUTHORITIES."""
        if authorities != self.authorities:
            write_file(self.directory / "ca.pem", authorities.encode(), 0o600)
        if not self.has_report_key:
            (self.directory / _NEXT_REPORT_KEY).replace(self.directory / _REPORT_KEY)
            sync_directory(self.directory)
        pair = private_pem(self.next_key()) + certificate.encode()
        write_file(self.directory / _NEWER, pair, 0o600)

    def next_report_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the report key of a device that enrolled without one; in use once it is known."""
        path = self.directory / _NEXT_REPORT_KEY
        if not path.exists():
            write_file(path, private_pem(new_key()), 0o600)
        return new_key(path.read_bytes())

    def promote(self) -> None:
        """Make the newer pair the one in use: it has worked."""
        (self.directory / _NEWER).replace(self.directory / _PAIR)
        sync_directory(self.directory)
        for name in ("key.pem", "certificate.pem", _NEXT_KEY):
            (self.directory / name).unlink(missing_ok=True)

    def _read(self, name: str) -> bytes:
        with _told(self.directory):
            return (self.directory / name).read_bytes()

    def _kept_validity(self) -> Validity | None:
        path = self.directory / _VALIDITY
        try:
            return msgspec.json.decode(path.read_bytes(), type=Validity)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # made anew from the certificate itself

    def _pair(self) -> tuple[Path, Path]:
        """Return the paths of certificate and key in use; the same if they are one file."""
        pair = self.directory / _PAIR
        if pair.exists():
            return pair, pair
        return self.directory / "certificate.pem", self.directory / "key.pem"


@contextmanager
def _told(directory: Path) -> Iterator[None]:
    """Tell of a file that is lost or damaged in our words: inference must go on without it."""
    try:
        yield
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"the identity in {directory} cannot be read",
            why=str(error),
            fix="enrol this device anew",
            reason="bad_identity",
        ) from error


class _Facts(msgspec.Struct, frozen=True):
    device: str
    group: str
    broker_host: str
    broker_port: int
    url: str = ""


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
    directory: Path,
    *,
    device: str,
    group: str,
    broker: tuple[str, int],
    files: dict[str, bytes],
    url: str = "",
) -> None:
    """Write a new identity: FILES by name, and the facts.

    Raises:
        UsageError: there is one already, or DIRECTORY cannot be written.
    """
    refuse_second(directory)
    facts = _Facts(device, group, *broker, url)
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
    with _told(directory):
        facts = msgspec.json.decode((directory / _FACTS).read_bytes(), type=_Facts)
    return Identity(
        directory, facts.device, facts.group, facts.broker_host, facts.broker_port, facts.url
    )
