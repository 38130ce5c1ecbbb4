"""Keys as TUF has them: who signs metadata, and whose signature counts. Reads no file."""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from edgepack.errors import UsageError

__all__ = ["named_by_content", "public_key", "signer_of"]


def public_key(pem: bytes) -> Key:
    """Return the key whose PEM SubjectPublicKeyInfo is PEM, as TUF names it.

    Raises:
        UsageError: it is none that TUF knows (reason `bad_key`).
    """
    try:
        return SSlibKey.from_crypto(load_pem_public_key(pem))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError("this is not a public key", why=str(error), reason="bad_key") from error


def named_by_content(key: Key) -> bool:
    """Return whether the id of KEY follows from its content, as it does for each of ours.

    TUF asks for no such thing, so that another key may stand under an id that people know; who
    is shown ids has to ask this first.
    """
    try:
        return public_key(key.keyval["public"].encode()) == key
    except (UsageError, AttributeError, KeyError):
        return False


def signer_of(key: ec.EllipticCurvePrivateKey) -> CryptoSigner:
    """Return a TUF signer for KEY. securesystemslib's own loader opens no encrypted file."""
    return CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))
