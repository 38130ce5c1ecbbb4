"""Keys that sign without a person: made on first use, kept in a file. Signs nothing itself."""

from pathlib import Path

from securesystemslib.signer import CryptoSigner

from edgepack.keys import create_keypair, load_private
from edgepack.metadata import signer_of

__all__ = ["online_signer"]


def online_signer(path: Path) -> CryptoSigner:
    """Return the signer whose key is in PATH, making the key on first use.

    An operator may encrypt the file; `EDGEPACK_PASSPHRASE` opens it then.
    """
    if not path.exists():
        create_keypair(path, None)
    return signer_of(load_private(path))
