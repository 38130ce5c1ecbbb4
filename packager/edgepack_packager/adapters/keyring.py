"""The keys of a publisher's home, by name. Knows no roles and makes no metadata.

    KEYS/NAME.pem, NAME.pub.pem     the key that signs, in a file
    KEYS/NAME.uri, NAME.pub.pem     or on a token or in a key service
    KEYS/next/                      made for a rotation that has not been published yet
    KEYS/retired/NAME-KEYID.*       replaced; never deleted by us

A rotation becomes real when it is published; only then `settle` moves the keys, and it may be
interrupted anywhere and called again.
"""

import os
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import Key, Signer, SSlibKey

from edgepack.durable import write_file
from edgepack.errors import UsageError
from edgepack.keys import ENV_PASSPHRASE, create_keypair, load_private
from edgepack.signers import public_key, signer_of
from edgepack_packager.adapters.key_uris import import_key, is_uri, open_signer

__all__ = ["KeyRing"]

NEXT, RETIRED = "next", "retired"
_PUBLIC = ".pub.pem"
_PRIVATE = (".pem", ".uri")
MAX_KEY = 64 * 1024


class KeyRing:
    """The keys in PATH.

    Args:
        path: The directory.
        ask: Asks a person for a passphrase or a PIN.
    """

    def __init__(self, path: Path, ask: Callable[[], bytes]) -> None:
        self.path, self._ask = path, ask

    def public(self, name: str) -> Key | None:
        """Return the public key NAME; None if it is not here."""
        path = self._file(name, _PUBLIC)
        return public_key(_read(path)) if path.is_file() else None

    def has(self, name: str) -> bool:
        """Return whether the private key NAME can be used from here."""
        return any(self._file(name, suffix).is_file() for suffix in _PRIVATE)

    def names(self) -> list[str]:
        """Return the names of all keys; one for a rotation to come is called `next/NAME`."""
        found = [*self.path.glob(f"*{_PUBLIC}"), *(self.path / NEXT).glob(f"*{_PUBLIC}")]
        return sorted(str(path.relative_to(self.path)).removesuffix(_PUBLIC) for path in found)

    def signer(self, name: str) -> Signer:
        """Return the signer of the key NAME.

        Raises:
            UsageError: it is not here, or its passphrase is missing or wrong.
        """
        uri, public = self._file(name, ".uri"), self.public(name)
        if uri.is_file() and public is not None:
            return open_signer(_read(uri).decode().strip(), public, self._ask)
        return signer_of(load_private(self._file(name, ".pem"), lambda: self._secret))

    def signers(self, keyids: Collection[str]) -> list[Signer]:
        """Return a signer for each of KEYIDS whose private key is here."""
        found = {name: self.public(name) for name in self.names()}
        return [
            self.signer(name)
            for name, key in found.items()
            if key is not None and key.keyid in keyids and self.has(name)
        ]

    def create(self, name: str) -> Key:
        """Make the key NAME, encrypted if the others are, and return its public half.

        A key that is there already is returned: it was made by an attempt that was interrupted.
        """
        if not self.has(name):
            create_keypair(
                self._file(name, ".pem"), self._new_secret() if self._encrypted else None
            )
        return self._public(name)

    def adopt(self, name: str, source: str) -> Key:
        """Take in the key NAME, which is kept elsewhere, and return its public half.

        Args:
            name: How it is called here.
            source: `FILE.pub.pem` of somebody who signs elsewhere, or `URI[,FILE.pub.pem]`.

        Raises:
            UsageError: there is no such key.
        """
        uri, _, file = source.partition(",")
        if is_uri(uri):
            key = public_key(_read(Path(file))) if file else import_key(uri, self._ask)
            write_file(self._file(name, ".uri"), f"{uri}\n".encode(), 0o600)
        else:
            key = public_key(_read(Path(source)))
        write_file(self._file(name, _PUBLIC), _pem(key))
        return self._public(name)

    def read(self, source: str, role: str) -> Key:
        """Return the public key at SOURCE; one with a URI is adopted, as a further key of ROLE.

        Raises:
            UsageError: there is no such key.
        """
        uri, _, file = source.partition(",")
        if not is_uri(uri):
            return public_key(_read(Path(source)))
        key = public_key(_read(Path(file))) if file else import_key(uri, self._ask)
        name = f"{NEXT}/{role}-{key.keyid[:8]}"
        write_file(self._file(name, ".uri"), f"{uri}\n".encode(), 0o600)
        write_file(self._file(name, _PUBLIC), _pem(key))
        return key

    def settle(self, keyids: Collection[str]) -> None:
        """Put what waits in `next` in its place, if KEYIDS, the keys that count, has it."""
        for name in [name for name in self.names() if name.startswith(f"{NEXT}/")]:
            if self._public(name).keyid in keyids:
                self._replace(name.removeprefix(f"{NEXT}/"))

    def _replace(self, name: str) -> None:
        old, new = self.public(name), self._public(f"{NEXT}/{name}")
        # The public half moves last, on either way: it says how far an interruption got.
        if old is not None and old.keyid != new.keyid:
            (self.path / RETIRED).mkdir(exist_ok=True)
            for suffix in (*_PRIVATE, _PUBLIC):
                self._move(name, f"{RETIRED}/{name}-{old.keyid[:8]}", suffix)
        for suffix in (*_PRIVATE, _PUBLIC):
            self._move(f"{NEXT}/{name}", name, suffix)

    def _move(self, source: str, target: str, suffix: str) -> None:
        if self._file(source, suffix).is_file():
            self._file(source, suffix).replace(self._file(target, suffix))

    def _public(self, name: str) -> Key:
        key = self.public(name)
        if key is None:
            raise UsageError(f"there is no key {self._file(name, _PUBLIC)}", reason="no_key")
        return key

    def _file(self, name: str, suffix: str) -> Path:
        return self.path / f"{name}{suffix}"

    @cached_property
    def _secret(self) -> bytes:
        return self._ask()

    @property
    def _encrypted(self) -> bool:
        """Whether the keys here are encrypted; a new one is as the others are, or encrypted."""
        private = [p for p in self.path.glob("*.pem") if not p.name.endswith(_PUBLIC)]
        return not private or any(b"ENCRYPTED" in _read(path) for path in private)

    def _new_secret(self) -> bytes:
        given = os.environ.get(ENV_PASSPHRASE)
        return given.encode() if given is not None else self._secret


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY)
    except OSError as error:
        raise UsageError(
            f"cannot read the key file {path}", why=error.strerror or str(error), reason="no_key"
        ) from error


def _pem(key: Key) -> bytes:
    if not isinstance(key, SSlibKey):
        raise UsageError("a key of that kind cannot sign here", reason="bad_key")
    crypto = serialization.load_pem_public_key(key.keyval["public"].encode())
    return crypto.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
