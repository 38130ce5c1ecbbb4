"""A publisher's own directory: offline keys and the metadata they signed. Goes on no server.

    HOME/keys/{root-1,root-2,root-3,targets,line-NAME}.pem      encrypted PKCS#8
    HOME/keys/export.pem                                        signs mirrors of a fleet
    HOME/keys/{snapshot,timestamp}.pem                          only for a directory repository
    HOME/metadata/{1.root,7.targets,3.line-NAME}.json

Only publishing needs `targets` and the lines' keys: the three root keys are for moving to
three safe places. Whoever holds two of them can replace every other key.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root

from edgepack.errors import UsageError
from edgepack.keys import ENV_PASSPHRASE, create_keypair, load_private
from edgepack.metadata import MetadataDirectory, OnlineKeys, parse, signer_of

__all__ = ["EXPORT_KEY", "ONLINE", "ROOT_KEYS", "PublisherHome", "create_keys", "new_home"]

ROOT_KEYS = ("root-1", "root-2", "root-3")
ONLINE = ("snapshot", "timestamp")
EXPORT_KEY = "export"
"""Name of the key that may sign snapshot and timestamp offline, beside those of a fleet."""


class PublisherHome:
    """The home in PATH.

    Args:
        path: The directory.
        ask: Asks a person for the passphrase of the keys; called once at most, and not if
            `EDGEPACK_PASSPHRASE` is set or the keys are not encrypted.

    Raises:
        UsageError: there is no home in PATH (reason `no_home`).
    """

    def __init__(self, path: Path, ask: Callable[[], bytes]) -> None:
        if not (path / "metadata" / "1.root.json").is_file():
            raise UsageError(
                f"{path} is not a publisher's home",
                fix=f"edgepack repo init {path}",
                reason="no_home",
            )
        self.path = path
        self.metadata = MetadataDirectory(path / "metadata")
        self._keys, self._ask = path / "keys", ask

    @property
    def roots(self) -> dict[str, bytes]:
        """The whole root chain by file name, oldest first."""
        names = [f"{version}.root.json" for version in self.metadata.versions("root")]
        return {name: self.metadata.read(name) or b"" for name in names}

    @property
    def root(self) -> Root:
        """The newest root."""
        return parse(list(self.roots.values())[-1], Root).signed

    def signer(self, name: str) -> CryptoSigner:
        """Return the signer of the key NAME.

        Raises:
            UsageError: the key is not here, or its passphrase is missing or wrong.
        """
        return signer_of(load_private(self._keys / f"{name}.pem", lambda: self._secret))

    def line_signer(self, role: str, *, new: bool) -> CryptoSigner:
        """Return the signer of the line's ROLE.

        Args:
            role: Name of the line's role.
            new: The line has never been published: its key may have to be made.

        Raises:
            UsageError: the key is not here (reason `no_key`), or cannot be opened.
        """
        path = self._keys / f"{role}.pem"
        if not path.exists() and not new:
            raise UsageError(
                f"the key {path} is not here",
                why="the line is published, so there is one somewhere",
                fix="get it from whoever published the line first",
                reason="no_key",
            )
        if not path.exists():
            encrypted = b"ENCRYPTED" in (self._keys / "targets.pem").read_bytes()
            create_keypair(path, self._new_secret() if encrypted else None)
        return self.signer(role)

    def online_keys(self) -> OnlineKeys:
        """Return the signers of snapshot and timestamp, for a directory repository.

        Raises:
            UsageError: they are in a fleet (reason `no_online_keys`).
        """
        if not all((self._keys / f"{role}.pem").exists() for role in ONLINE):
            raise UsageError(
                "this home belongs to a fleet, which holds its online keys",
                fix="give the fleet's URL as --repo, or make another home without --fleet",
                reason="no_online_keys",
            )
        return OnlineKeys(self.signer("snapshot"), self.signer("timestamp"))

    def export_keys(self) -> OnlineKeys:
        """Return the signers of a mirror's snapshot and timestamp.

        Raises:
            UsageError: this home has none (reason `no_export_key`).
        """
        if not (self._keys / f"{EXPORT_KEY}.pem").exists():
            if (self._keys / "timestamp.pem").exists():
                return self.online_keys()
            raise UsageError(
                "this home has no key to sign a mirror with",
                fix="edgepack repo rotate --replace export adds one",
                reason="no_export_key",
            )
        signer = self.signer(EXPORT_KEY)
        return OnlineKeys(signer, signer)

    def save(self, files: Mapping[str, bytes]) -> None:
        """Keep the metadata FILES, by name.

        Raises:
            UsageError: the home cannot be written (reason `unwritable`); publishing again
                catches up from the repository.
        """
        try:
            for name, data in files.items():
                self.metadata.write(name, data)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    @cached_property
    def _secret(self) -> bytes:
        return self._ask()

    def _new_secret(self) -> bytes:
        given = os.environ.get(ENV_PASSPHRASE)
        return given.encode() if given is not None else self._secret


def create_keys(path: Path, passphrase: bytes | None, *, local: bool) -> dict[str, CryptoSigner]:
    """Make the keys of a new home in PATH and return their signers by name.

    Args:
        path: The home.
        passphrase: Encrypts them all; None leaves them in the clear.
        local: Make snapshot and timestamp keys too, for a directory repository; else one
            that signs mirrors, beside the fleet's.

    Raises:
        UsageError: PATH cannot be written, or the passphrase is empty.
    """
    signers = {}
    for name in (*ROOT_KEYS, "targets", *(ONLINE if local else (EXPORT_KEY,))):
        file = path / "keys" / f"{name}.pem"
        create_keypair(file, passphrase)
        signers[name] = signer_of(load_private(file, lambda: passphrase or b""))
    return signers


@contextmanager
def new_home(path: Path) -> Iterator[Path]:
    """Yield a directory that becomes PATH when all went well, and nothing if not.

    Raises:
        UsageError: PATH is there already, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(
            f"{path} exists and is not empty",
            why="keys are never overwritten",
            fix="choose another directory",
            reason="exists",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".edgepack-", dir=path.parent) as part:
            home = Path(part) / "home"
            home.mkdir(mode=0o700)
            yield home
            home.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {path}", why=error.strerror or str(error), reason="unwritable")
