"""Authorities and revocation lists as OpenSSL looks for them: by the hash of their name.

A broker that is given this directory reads a new authority or a newer list at the next handshake,
without a signal and without a restart. Newer lists get the next number; a process that has read
number 3 looks for number 4, so numbers are never used again while a broker runs.
"""

import hashlib
from pathlib import Path

from cryptography import x509

from edgepack.durable import write_file
from edgepack_fleet.adapters.certificates import as_pem

__all__ = ["HashDirectory"]


class HashDirectory:
    """The directory PATH, made on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add_authority(self, certificate: x509.Certificate) -> None:
        """Let whoever reads the directory trust CERTIFICATE."""
        self._put(self.path / f"{_hash(certificate.subject)}.0", as_pem(certificate))

    def add_list(self, crl: x509.CertificateRevocationList) -> None:
        """Let CRL replace the list of its issuer; the same one again changes nothing."""
        stem = _hash(crl.issuer)
        numbers = self._numbers(stem)
        if numbers and (self.path / f"{stem}.r{numbers[-1]}").read_text() == as_pem(crl):
            return
        self._put(self.path / f"{stem}.r{numbers[-1] + 1 if numbers else 0}", as_pem(crl))

    def remove_authority(self, certificate: x509.Certificate) -> None:
        """Trust CERTIFICATE no more, from the next start of whoever reads the directory."""
        (self.path / f"{_hash(certificate.subject)}.0").unlink(missing_ok=True)

    def compact(self) -> None:
        """Keep only the newest list of each issuer. Nobody may be reading the directory."""
        for stem in {path.stem for path in self.path.glob("*.r*")}:
            *older, newest = self._numbers(stem)
            for number in older:
                (self.path / f"{stem}.r{number}").unlink()
            (self.path / f"{stem}.r{newest}").replace(self.path / f"{stem}.r0")

    def _put(self, path: Path, text: str) -> None:
        if not path.exists() or path.read_text() != text:
            self.path.mkdir(mode=0o700, exist_ok=True)
            write_file(path, text.encode())

    def _numbers(self, stem: str) -> list[int]:
        return sorted(int(p.suffix[2:]) for p in self.path.glob(f"{stem}.r*"))


def _hash(name: x509.Name) -> str:
    """Return OpenSSL's hash of NAME, which is one of ours: lower case, no double spaces.

    SHA-1 over the name without its outer header, the first four bytes read from the right.
    """
    content = name.public_bytes()[2:]
    digest = hashlib.sha1(content).digest()  # noqa: S324  a file name, no security
    return digest[3::-1].hex()
