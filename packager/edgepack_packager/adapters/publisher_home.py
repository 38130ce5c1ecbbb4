"""A publisher's own directory: offline keys and the metadata they signed. Goes on no server.

    HOME/keys/{root-1,root-2,root-3,targets,line-NAME}.pem      encrypted PKCS#8
    HOME/keys/export.pem                                        signs mirrors of a fleet
    HOME/keys/{snapshot,timestamp}.pem                          only for a directory repository
    HOME/metadata/{1.root,7.targets,3.line-NAME}.json

Only publishing needs `targets` and the lines' keys: the three root keys are for moving to
three safe places. Whoever holds two of them can replace every other key. A key may be on a
token instead (see `keyring`).
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Root, Targets

from edgepack.errors import UsageError
from edgepack.keys import create_keypair, load_private
from edgepack.metadata import MetadataDirectory, OnlineKeys, parse, signer_of
from edgepack_packager.adapters.keyring import KeyRing

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
        self.keys = KeyRing(path / "keys", ask)

    @property
    def roots(self) -> dict[str, bytes]:
        """The whole root chain by file name, oldest first."""
        names = [f"{version}.root.json" for version in self.metadata.versions("root")]
        return {name: self.metadata.read(name) or b"" for name in names}

    @property
    def root(self) -> Root:
        """The newest root."""
        return parse(list(self.roots.values())[-1], Root).signed

    def newest(self, role: str) -> bytes | None:
        """Return the newest metadata of ROLE here; None if there is none."""
        versions = self.metadata.versions(role)
        return self.metadata.read(f"{versions[-1]}.{role}.json") if versions else None

    def signer(self, name: str) -> Signer:
        """Return the signer of the key NAME.

        Raises:
            UsageError: the key is not here, or its passphrase is missing or wrong.
        """
        return self.keys.signer(name)

    def online_keys(self, root: Root | None = None) -> OnlineKeys:
        """Return the signers of snapshot and timestamp, for a directory repository.

        Args:
            root: Names the keys that count; None: the newest root here.

        Raises:
            UsageError: they are in a fleet (reason `no_online_keys`).
        """
        found = self._seals(root or self.root, ONLINE)
        if found is None:
            raise UsageError(
                "this home belongs to a fleet, which holds its online keys",
                fix="give the fleet's URL as --repo, or make another home without --fleet",
                reason="no_online_keys",
            )
        return found

    def export_keys(self) -> OnlineKeys:
        """Return the signers of a mirror's snapshot and timestamp.

        Raises:
            UsageError: this home has none (reason `no_export_key`).
        """
        found = self._seals(self.root, (EXPORT_KEY, EXPORT_KEY)) or self._seals(self.root, ONLINE)
        if found is None:
            raise UsageError(
                "this home has no key to sign a mirror with",
                fix="edgepack repo rotate --replace export adds one",
                reason="no_export_key",
            )
        return found

    def _seals(self, root: Root, names: tuple[str, str]) -> OnlineKeys | None:
        """Return the signers called NAMES, if ROOT lets them sign; one may not be settled yet."""
        found = []
        for role, name in zip(ONLINE, names, strict=True):
            for place in (f"next/{name}", name):
                key = self.keys.public(place)
                if key and key.keyid in root.roles[role].keyids and self.keys.has(place):
                    found.append(place)
                    break
        return OnlineKeys(*map(self.signer, found)) if len(found) == len(ONLINE) else None

    def settle(self) -> None:
        """Put the keys of a rotation that counts in their places.

        Raises:
            UsageError: the home cannot be written (reason `unwritable`).
        """
        top = self.newest("targets")
        delegations = parse(top, Targets).signed.delegations if top else None
        try:
            self.keys.settle({*self.root.keys, *(delegations.keys if delegations else ())})
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def save(self, files: Mapping[str, bytes]) -> None:
        """Keep the metadata FILES, by name.

        Raises:
            UsageError: the home cannot be written (reason `unwritable`); publishing again
                catches up from the repository.
        """
        try:
            self.metadata.write_all(files)
        except OSError as error:
            raise _unwritable(self.path, error) from error


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
