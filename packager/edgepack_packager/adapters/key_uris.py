"""Keys that are not files: PKCS#11 tokens and key services, through securesystemslib's URIs.

`hsm:2?label=TOKEN` is a key on a PKCS#11 token (`PYKCS11LIB` names the module); `awskms:`,
`gcpkms:`, `azurekms:` and `hv:` go the same way and need their own libraries. A PIN comes from
`EDGEPACK_PIN` or a prompt, never from the command line, and is never printed.
"""

import os
import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlparse

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import HSMSigner, Key, Signer

from edgepack.errors import UsageError

__all__ = ["ENV_PIN", "import_key", "is_uri", "open_signer"]

ENV_PIN = "EDGEPACK_PIN"
_URI = re.compile(r"[a-z][a-z0-9]{1,15}:")


def is_uri(text: str) -> bool:
    """Return whether TEXT is the URI of a key and not the path of a file."""
    return bool(_URI.match(text))


def import_key(uri: str, ask: Callable[[], bytes]) -> Key:
    """Return the public half of the key at URI, which must be on a PKCS#11 token.

    Raises:
        UsageError: it cannot be read, or a key service is to be asked, which we cannot.
    """
    parts = urlparse(uri)
    if parts.scheme != HSMSigner.SCHEME:
        raise UsageError(
            f"the public key of {uri} is not known",
            fix="give it too: --public FILE.pub.pem",
            reason="no_key",
        )
    label = dict(parse_qsl(parts.query)).get("label")
    try:
        number = int(parts.path) if parts.path else None
        return HSMSigner.import_(number, label, _pin(ask))[1]
    except _token_errors() as error:
        raise _unusable(uri, error) from error


def open_signer(uri: str, public: Key, ask: Callable[[], bytes]) -> Signer:
    """Return the signer of the key at URI, whose public half is PUBLIC.

    Raises:
        UsageError: there is no way to use it (reason `bad_key`).
    """
    try:
        return Signer.from_priv_key_uri(uri, public, _pin(ask))
    except Exception as error:  # the library of every cloud has errors of its own
        raise _unusable(uri, error) from error


def _pin(ask: Callable[[], bytes]) -> Callable[[str], str]:
    """Return a handler that asks for a PIN once, however many files are signed."""
    known: list[str] = []

    def handler(_: str) -> str:
        if not known:
            given = os.environ.get(ENV_PIN)
            known.append(given if given is not None else ask().decode())
        return known[0]

    return handler


def _token_errors() -> tuple[type[Exception], ...]:
    try:
        from pkcs11.exceptions import PKCS11Error
    except ImportError:
        return (ValueError, UnsupportedLibraryError)
    return (ValueError, UnsupportedLibraryError, PKCS11Error)


def _unusable(uri: str, error: Exception) -> UsageError:
    return UsageError(
        f"cannot use the key {uri}",
        why=str(error) or type(error).__name__,
        fix=f"PYKCS11LIB names the token's module, {ENV_PIN} holds its PIN; "
        "pip install edgepack[hsm]",
        reason="bad_key",
    )
