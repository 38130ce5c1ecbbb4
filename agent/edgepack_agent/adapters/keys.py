"""Keys of a device: EC P-256, made here; none ever leaves it. Keeps no files."""

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["new_key", "private_pem"]


def new_key(pem: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Return the key in PEM; without one, a new key.

    Raises:
        ValueError: there is no key of ours in it.
    """
    if pem is None:
        return ec.generate_private_key(ec.SECP256R1())
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC key")  # noqa: TRY004  what is wrong is the content
    return key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return KEY as it is kept."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
