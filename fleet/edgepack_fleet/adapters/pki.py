"""The fleet's certificate authority: who a server, the fleet and a device are on TLS.

    DATA/pki/ca.pem, ca.key          the first root of all of them, 10 years; later ones `ca-2`, ...
             authorities.json        which one issues, which ones are trusted; missing: `ca` alone
             bundle.pem              all trusted ones: what the fleet and devices believe
             server.pem, server.key  the broker and the device listener
             fleet.pem, fleet.key    the fleet as a client of the broker, CN=fleet; further
                                     workers are fleet.2, ...
             crl.pem                 revoked device certificates, a list per trusted authority
             trust/                  the same as the broker reads it, at every handshake

Keys are EC P-256 and 0600. Signs nothing about models: that is the repositories' business.
"""

import contextlib
import hashlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from edgepack import dsse
from edgepack.durable import write_file
from edgepack.errors import IntegrityError, UsageError
from edgepack.signed import AUTHORITIES
from edgepack.topics import DEVICE_ID
from edgepack_fleet.adapters.certificates import (
    SKEW,
    Authority,
    alt_names,
    as_pem,
    common_name,
    csr_key,
    half_gone,
    key_pem,
    new_authority,
    serial_of,
)
from edgepack_fleet.adapters.hash_directory import HashDirectory
from edgepack_fleet.adapters.lock import alone

__all__ = ["FLEET", "WORKERS", "Issued", "Pki", "worker_name"]

FLEET = "fleet"
"""The name of the fleet itself on the broker; no device gets it."""
WORKERS = 16
"""Processes of one fleet at most; the broker knows them by name."""
SERVER_LIFE, DEVICE_LIFE = timedelta(days=397), timedelta(days=90)
STAND_IN_LIFE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new device certificate."""

    device: str
    pem: str
    serial: str
    """Hexadecimal."""


def worker_name(number: int) -> str:
    """Return what worker NUMBER, from 1 on, is called; no device can be called that."""
    return FLEET if number == 1 else f"{FLEET}.{number}"


_Stamp = tuple[int, int]


class _Roles(msgspec.Struct, frozen=True):
    """Which authorities there are, by file name without its end."""

    issuing: str = "ca"
    trusted: tuple[str, ...] = ("ca",)


class Pki:
    """The certificate authority in one directory; made on first use.

    Args:
        directory: Where keys and certificates are kept.
        hosts: Names and addresses, beside `localhost`, that the servers are reached under.
        now: The time certificates count from; None: the clock's.
        client: What this process is called on the broker.
    """

    def __init__(
        self,
        directory: Path,
        hosts: tuple[str, ...] = (),
        now: datetime | None = None,
        client: str = FLEET,
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.ca_path = directory / "ca.pem"
        self.bundle_path = directory / "bundle.pem"
        self.crl_path = directory / "crl.pem"
        self.trust = HashDirectory(directory / "trust")
        self._names = tuple(sorted({"localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts}))
        self._clock: Callable[[], datetime] = lambda: now or datetime.now(UTC)
        self._guard = threading.RLock()
        self._roles_path = directory / "authorities.json"
        self._client = client
        self._read: _Stamp | None = None
        self._shown: _Stamp | None = None
        """Which file the authorities were read from, and the server's certificate that we know."""
        with self._alone():
            self._load()
            self._write_trust()
        self.keep_fresh()

    @property
    def ca_pem(self) -> str:
        """The certificate of the authority that issues, as PEM."""
        return as_pem(self._issuing.certificate)

    @property
    def ca_sha256(self) -> str:
        """SHA-256 of that certificate's DER, hexadecimal: what an enrolment token pins."""
        return self._issuing.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def bundle(self) -> str:
        """All trusted authorities as PEM: what a device shall believe."""
        return "".join(as_pem(a.certificate) for a in self._authorities.values())

    @property
    def bundle_sha256(self) -> str:
        """SHA-256 of the bundle: what a device says it trusts."""
        return hashlib.sha256(self.bundle.encode()).hexdigest()

    @property
    def authorities(self) -> dict[str, Authority]:
        """The trusted authorities by name, the oldest first."""
        return dict(self._authorities)

    @property
    def issuing(self) -> str:
        """The name of the authority that issues."""
        return self._roles.issuing

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the paths of certificate and key of `server`, `fleet` or an authority."""
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    def issue(self, csr_pem: str, device: str, now: datetime) -> Issued:
        """Return a certificate for the key in CSR_PEM; the name is DEVICE, whatever it asks for.

        Raises:
            IntegrityError: no CSR, a bad self-signature, or a key other than EC P-256 (reason
                `bad_csr`).
        """
        if device == FLEET or not DEVICE_ID.fullmatch(device):
            raise UsageError(f"not a device id: {device!r}")
        certificate = self._issue(device, csr_key(csr_pem), DEVICE_LIFE, now)
        return Issued(device, as_pem(certificate), serial_of(certificate))

    def knows(self, certificate: x509.Certificate, device: str) -> bool:
        """Return whether CERTIFICATE is one of ours for DEVICE that is not revoked.

        It may have expired: that is judged elsewhere.
        """
        return (
            common_name(certificate) == device
            and certificate.serial_number not in self.revoked()
            and any(a.vouches_for(certificate) for a in self._authorities.values())
        )

    def issued_last(self, certificate: x509.Certificate) -> bool:
        """Return whether the authority that issues now has issued CERTIFICATE, unrevoked."""
        revoked = certificate.serial_number in self.revoked()
        return not revoked and self._issuing.vouches_for(certificate)

    @property
    def next(self) -> str | None:
        """The name of the authority that is announced and does not issue yet."""
        newest = self._roles.trusted[-1]
        return None if newest == self._roles.issuing else newest

    def announce_next(self) -> None:
        """Make the authority that will issue next; from now on it is trusted."""
        with self._alone():
            name = f"ca-{1 + max(int(n[3:] or 1) for n in self._roles.trusted)}"
            self._make_authority(name)
            self._set_roles(_Roles(self._roles.issuing, (*self._roles.trusted, name)))

    def switch(self) -> None:
        """Let the newest authority issue; our own certificates follow with `keep_fresh`."""
        with self._alone():
            self._set_roles(_Roles(self._roles.trusted[-1], self._roles.trusted))

    def retire_old(self) -> None:
        """Trust only the authority that issues."""
        with self._alone():
            for name, authority in self._authorities.items():
                if name != self._roles.issuing:
                    self.trust.remove_authority(authority.certificate)
            self._set_roles(_Roles(self._roles.issuing, (self._roles.issuing,)))

    @contextlib.contextmanager
    def stand_in(self, device: str) -> Iterator[tuple[ssl.SSLContext, str]]:
        """Yield what it takes to be DEVICE on the broker for a moment, and its serial number."""
        now = self._clock()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(device, key.public_key(), STAND_IN_LIFE, now)
        context = ssl.create_default_context(cafile=str(self.bundle_path))
        with tempfile.NamedTemporaryFile(dir=self.directory) as file:  # 0600 by default
            file.write(key_pem(key) + as_pem(certificate).encode())
            file.flush()
            context.load_cert_chain(file.name)
        yield context, serial_of(certificate)

    def revoke(self, *serials: str) -> None:
        """Put the certificates with SERIALS (hexadecimal) on the revocation lists."""
        with self._alone():
            known = self.revoked()
            if not (wanted := {int(serial, 16) for serial in serials}) <= known.keys():
                self._write_lists(dict.fromkeys(wanted, self._clock() - SKEW) | known)

    def revoked(self) -> dict[int, datetime]:
        """Return the serial numbers on the revocation lists, and since when.

        What has been there longer than a device's certificate lives has expired, and is not.
        """
        oldest = self._clock() - DEVICE_LIFE - timedelta(days=1)
        lists = [found for name in self._authorities if (found := self._list(name))]
        entries = {e.serial_number: e.revocation_date_utc for crl in lists for e in crl}
        return {serial: since for serial, since in entries.items() if since > oldest}

    def announcement(self) -> str:
        """Return the trusted authorities, signed by the oldest: the one every device knows."""
        oldest = next(iter(self._authorities.values()))
        return dsse.seal(AUTHORITIES, self.bundle.encode(), oldest.key).decode()

    def keep_fresh(self) -> set[str]:
        """Renew what is past half of its life; return which of `server`, `fleet`, `crl` are new.

        Also if another process has renewed it since we looked last.
        A list that goes out of date would lock every device out.
        """
        now, renewed = self._clock(), set()
        with self._alone():
            self._ensure("server", self._names, ExtendedKeyUsageOID.SERVER_AUTH, now)
            if (shown := _stamp(self.pair("server")[0])) != self._shown:
                self._shown = shown
                renewed.add("server")
            if self._ensure(self._client, (), ExtendedKeyUsageOID.CLIENT_AUTH, now):
                renewed.add("fleet")
            lists = [self._list(name) for name in self._authorities]
            if any(crl is None or half_gone(crl, now) for crl in lists):
                self._write_lists(self.revoked())
                renewed.add("crl")
        return renewed

    def _issue(
        self, name: str, key: ec.EllipticCurvePublicKey, life: timedelta, now: datetime
    ) -> x509.Certificate:
        return self._issuing.issue(name, key, ExtendedKeyUsageOID.CLIENT_AUTH, life, now)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # Broker and fleet may start at the same moment on a new directory, and another worker
        # may have replaced the authority.
        with self._guard, alone(self.directory):
            self.look()
            yield

    def look(self) -> None:
        """Learn which authorities there are, if another worker has changed that."""
        with self._guard:
            if self._read is not None and _stamp(self._roles_path) != self._read:
                self._load()

    def _load(self) -> None:
        path = self._roles_path
        self._read = _stamp(path)
        self._roles = (
            msgspec.json.decode(path.read_bytes(), type=_Roles) if path.exists() else _Roles()
        )
        if not self.ca_path.exists() and self._roles == _Roles():
            self._make_authority("ca")
        self._authorities = {
            name: Authority(*_read_pair(*self.pair(name))) for name in self._roles.trusted
        }
        self._issuing = self._authorities[self._roles.issuing]

    def _set_roles(self, roles: _Roles) -> None:
        revoked = self.revoked()
        write_file(self._roles_path, msgspec.json.encode(roles))
        self._load()
        self._write_lists(revoked)
        self._write_trust()

    def _make_authority(self, name: str) -> None:
        certificate_path, key_path = self.pair(name)
        # The key first: a certificate without its key is what must never be left behind.
        authority = new_authority(_new_key(key_path), self._clock())
        write_file(certificate_path, as_pem(authority.certificate).encode())

    def _write_trust(self) -> None:
        write_file(self.bundle_path, self.bundle.encode())
        for name, authority in self._authorities.items():
            if (crl := self._list(name)) is not None:
                self.trust.add_list(crl)
            self.trust.add_authority(authority.certificate)

    def _ensure(
        self, name: str, names: tuple[str, ...], usage: x509.ObjectIdentifier, now: datetime
    ) -> bool:
        """Make certificate and key NAME unless there are some that serve a while yet."""
        certificate_path, key_path = self.pair(name)
        if certificate_path.exists() and key_path.exists():
            key, certificate = _read_pair(certificate_path, key_path)
            fits = (
                key.public_key() == certificate.public_key()
                and alt_names(certificate) >= set(names)
                and self._issuing.vouches_for(certificate)
            )
            if fits and not half_gone(certificate, now):
                return False
        new = _new_key(key_path)
        issued = self._issuing.issue(name, new.public_key(), usage, SERVER_LIFE, now, names)
        write_file(certificate_path, as_pem(issued).encode())
        return True

    def _list_path(self, name: str) -> Path:
        return self.directory / f"crl{name.removeprefix('ca')}.pem"

    def _list(self, name: str) -> x509.CertificateRevocationList | None:
        path = self._list_path(name)
        return x509.load_pem_x509_crl(path.read_bytes()) if path.exists() else None

    def _write_lists(self, serials: Mapping[int, datetime]) -> None:
        for name, authority in self._authorities.items():
            crl = authority.revoke(serials, self._clock(), self._list(name))
            write_file(self._list_path(name), as_pem(crl).encode())
            self.trust.add_list(crl)


def _stamp(path: Path) -> _Stamp:
    """Return what tells a file from the one that replaces it; zeros: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_ino, found.st_mtime_ns


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    write_file(path, key_pem(key), mode=0o600)
    return key


def _read_pair(
    certificate_path: Path, key_path: Path
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"the fleet's key {key_path} cannot be used",
            why=str(error),
            fix="restore the data directory from a backup",
            reason="pki",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IntegrityError(f"{key_path} is not an EC key", reason="pki")
    return key, certificate
