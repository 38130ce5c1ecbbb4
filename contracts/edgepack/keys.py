"""Publisher keys: EC P-256 in PEM files. Knows no repository roles and signs nothing itself.

`FILE.pem` holds the private key as PKCS#8, encrypted unless its owner said otherwise, mode
0600; `FILE.pub.pem` beside it the public one. An existing file is never overwritten.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.errors import UsageError

__all__ = [
    "ENV_KEY",
    "ENV_PASSPHRASE",
    "create_keypair",
    "default_key",
    "find_key",
    "key_id",
    "load_private",
    "load_public",
    "public_pem",
]

ENV_KEY = "EDGEPACK_KEY"
ENV_PASSPHRASE = "EDGEPACK_PASSPHRASE"  # noqa: S105  the variable's name, not a secret
_MAX_PEM = 64 * 1024


def create_keypair(path: Path, passphrase: bytes | None) -> Path:
    """Write a new private key to PATH and its public key beside it.

    Args:
        path: `FILE.pem`; its directory is made if it is missing.
        passphrase: Encrypts the private key; None leaves it in the clear.

    Returns:
        Path of the public key, `FILE.pub.pem`.

    Raises:
        UsageError: a file is in the way, the name does not end in `.pem`, the passphrase is
            empty, or the place cannot be written.
    """
    public_path = path.with_suffix(".pub.pem")
    if path.suffix != ".pem" or path.name.endswith(".pub.pem"):
        raise UsageError(f"a key file is called NAME.pem, not {path.name}", reason="bad_name")
    if passphrase == b"":
        raise UsageError("the passphrase is empty", fix="choose one, or pass --no-passphrase")
    _refuse_existing(path, public_path)
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(path, _private_pem(key, passphrase), 0o600)
        _write_new(public_path, public_pem(key.public_key()), 0o644)
    except OSError as error:
        raise UsageError(f"cannot write {path}", why=str(error), reason="unwritable") from error
    return public_path


def load_private(
    path: Path, passphrase: Callable[[], bytes] | None = None
) -> ec.EllipticCurvePrivateKey:
    """Return the private key in PATH.

    Args:
        path: A PEM file: PKCS#8, encrypted or not.
        passphrase: Asks a person for it; only called if the key is encrypted and
            `EDGEPACK_PASSPHRASE` is not set.

    Raises:
        UsageError: no such file, not an EC P-256 key, passphrase missing or wrong.
    """
    pem = _read_pem(path)
    secret = _secret(passphrase, path) if b"ENCRYPTED" in pem else None
    try:
        key = serialization.load_pem_private_key(pem, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "the passphrase is wrong, or the file is damaged" if secret else str(error)
        raise UsageError(
            f"cannot open the private key {path}",
            why=why,
            fix=f"set {ENV_PASSPHRASE}"
            if secret
            else "give the NAME.pem of `edgepack keys create`",
            reason="bad_key",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_p256(key):
        raise _not_p256(path)
    return key


def load_public(path: Path) -> ec.EllipticCurvePublicKey:
    """Return the public key in PATH.

    Raises:
        UsageError: no such file, or not an EC P-256 public key in PEM form.
    """
    try:
        key = serialization.load_pem_public_key(_read_pem(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(
            f"cannot open the public key {path}",
            why=str(error),
            fix="give the NAME.pub.pem that `edgepack keys create` wrote",
            reason="bad_key",
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_p256(key):
        raise _not_p256(path)
    return key


def public_pem(public: ec.EllipticCurvePublicKey) -> bytes:
    """Return PUBLIC as PEM SubjectPublicKeyInfo."""
    return public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of PUBLIC's PEM in hex: the hint in a `model.sig`."""
    return hashlib.sha256(public_pem(public)).hexdigest()


def default_key() -> Path:
    """Return where a person's publisher key lives unless they say otherwise."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "edgepack" / "publisher.pem"


def find_key(option: Path | None) -> Path:
    """Return the private key file to sign with: OPTION, else `EDGEPACK_KEY`, else the user's own.

    Raises:
        UsageError: there is none; names the command that makes one.
    """
    named = option or (Path(os.environ[ENV_KEY]) if os.environ.get(ENV_KEY) else None)
    found = named or default_key()
    if found.is_file():
        return found
    raise UsageError(
        f"there is no key file {named}" if named else "there is no publisher key to sign with",
        why="" if named else f"neither --key nor {ENV_KEY} is given, and {found} does not exist",
        fix=f"edgepack keys create {found}",
        reason="no_key",
    )


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise UsageError(
                f"{path} exists and is not overwritten",
                fix="choose another name, or move it away",
                reason="exists",
            )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise


def _private_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def _secret(ask: Callable[[], bytes] | None, path: Path) -> bytes:
    given = os.environb.get(ENV_PASSPHRASE.encode())
    secret = given if given is not None else (ask() if ask else b"")
    if not secret:
        raise UsageError(
            f"the private key {path} is encrypted and there is no passphrase",
            fix=f"set {ENV_PASSPHRASE}, or run the command on a terminal",
            reason="no_passphrase",
        )
    return secret


def _read_pem(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PEM)
    except OSError as error:
        raise UsageError(
            f"cannot read the key file {path}", why=error.strerror or str(error), reason="no_key"
        ) from error


def _is_p256(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> bool:
    return isinstance(key.curve, ec.SECP256R1)


def _not_p256(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not an EC P-256 key",
        fix="edgepack keys create NAME.pem makes one",
        reason="bad_key",
    )
