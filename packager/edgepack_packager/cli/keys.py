"""`edgepack keys`, and how every command gets the key it signs with. Keeps no secret."""

import os
import sys
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack.keys import (
    ENV_PASSPHRASE,
    create_keypair,
    find_key,
    key_id,
    load_private,
    load_public,
)

__all__ = ["ask_passphrase", "keys", "new_passphrase", "signing_key"]


@click.group()
def keys() -> None:
    """Create publisher keys."""


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--no-passphrase", is_flag=True, help="Leave the private key unencrypted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def create(file: Path, no_passphrase: bool, as_json: bool) -> None:
    """Write a new publisher key to FILE.pem and its public key to FILE.pub.pem.

    The passphrase comes from EDGEPACK_PASSPHRASE or is asked for.

    \b
    Example:
        edgepack keys create publisher.pem
    """
    passphrase = None if no_passphrase else new_passphrase()
    public = create_keypair(file, passphrase)
    facts = {
        "private": str(file),
        "public": str(public),
        "key_id": key_id(load_public(public)),
        "encrypted": passphrase is not None,
    }
    if as_json:
        print_json({"schema": "edgepack.keys/v1", **facts})
    else:
        click.echo(f"private key  {file}  (keep it)\npublic key   {public}  (give it away)")


def signing_key(option: Path | None) -> ec.EllipticCurvePrivateKey:
    """Return the key to sign with: OPTION, else `EDGEPACK_KEY`, else the user's own.

    Raises:
        UsageError: there is none, or it cannot be opened.
    """
    return load_private(find_key(option), ask_passphrase)


def ask_passphrase() -> bytes:
    """Ask the person at the terminal for a key's passphrase.

    Raises:
        UsageError: there is no terminal.
    """
    return _prompt(confirm=False)


def new_passphrase() -> bytes:
    """Return the passphrase for a new key: `EDGEPACK_PASSPHRASE`, else asked for twice.

    Raises:
        UsageError: it is not set and there is no terminal.
    """
    given = os.environ.get(ENV_PASSPHRASE)
    return given.encode() if given is not None else _prompt(confirm=True)


def _prompt(*, confirm: bool) -> bytes:
    if not sys.stdin.isatty():
        raise UsageError(
            "the key needs a passphrase and there is no terminal to ask on",
            fix=f"set {ENV_PASSPHRASE}" + (", or pass --no-passphrase" if confirm else ""),
            reason="no_passphrase",
        )
    text: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return text.encode()
