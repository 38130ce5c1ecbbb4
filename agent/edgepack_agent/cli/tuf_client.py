"""`edgepack-agent tuf-client`: the command line by which a conformance suite judges TUF clients."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.errors import EdgepackError, UnreachableError, UsageError
from edgepack_agent.config import Config, address
from edgepack_agent.settings import load_config

if TYPE_CHECKING:
    from edgepack_agent.adapters.transfer import Transfers
    from edgepack_agent.tuf_client import TufClient

__all__ = ["tuf_client"]

LINK_S = 20.0
"""Seconds to wait for the broker."""


@dataclass(frozen=True, slots=True)
class _Call:
    config: Path | None
    metadata_dir: Path
    target_dir: Path | None
    target_names: tuple[str, ...]


@click.group("tuf-client")
@click.option(
    "--metadata-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where trusted metadata is kept.",
)
@click.option("--metadata-url", help="For whoever answers at the other end of the link.")
@click.option("--target-base-url", help="The same for targets.")
@click.option("--target-name", "target_names", multiple=True, help="Path of a target to download.")
@click.option(
    "--target-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where downloaded targets go.",
)
@click.pass_context
def tuf_client(
    ctx: click.Context,
    metadata_dir: Path,
    metadata_url: str | None,
    target_base_url: str | None,
    target_names: tuple[str, ...],
    target_dir: Path | None,
) -> None:
    """Read a TUF repository through this device's link: for conformance suites.

    The command line is that of the tuf-conformance suite; exit code 1 is any failure. A device
    knows no URLs: it asks over its broker, and what answers there knows where the files are.
    """
    del metadata_url, target_base_url
    ctx.obj = _Call(ctx.obj, metadata_dir, target_dir, target_names)


@tuf_client.command()
@click.argument("trusted_root", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.pass_obj
def init(call: _Call, trusted_root: Path) -> None:
    """Trust the root metadata in TRUSTED_ROOT."""
    from edgepack_agent.tuf_client import TufClient

    with _any_failure_is_one():
        TufClient.init(call.metadata_dir, trusted_root.read_bytes())


@tuf_client.command()
@click.pass_obj
def refresh(call: _Call) -> None:
    """Bring the metadata up to date."""
    with _any_failure_is_one(), _client(call) as client:
        client.refresh()


@tuf_client.command()
@click.pass_obj
def download(call: _Call) -> None:
    """Download targets, with fresh metadata."""
    if call.target_dir is None or not call.target_names:
        raise click.UsageError("download needs --target-name and --target-dir")
    with _any_failure_is_one(), _client(call) as client:
        client.download(call.target_names, call.target_dir)


@contextlib.contextmanager
def _any_failure_is_one() -> Iterator[None]:
    try:
        yield
    except (EdgepackError, OSError) as error:
        click.echo(error.diagnostics() if isinstance(error, EdgepackError) else error, err=True)
        sys.exit(1)


@contextlib.contextmanager
def _client(call: _Call) -> "Iterator[TufClient]":
    from edgepack_agent.tuf_client import TufClient

    with _link(load_config(call.config)) as transfers:
        yield TufClient(call.metadata_dir, transfers)


@contextlib.contextmanager
def _link(config: Config) -> "Iterator[Transfers]":
    """Yield the transfers of this device's link, which no agent may be using."""
    from edgepack_agent.adapters.alone import take_data
    from edgepack_agent.adapters.identity import load_identity
    from edgepack_agent.adapters.mqtt import Heard, Link, LinkChanged

    identity = load_identity(config.identity_dir)
    if identity is None:
        raise UsageError("this device is not enrolled", reason="not_enrolled")
    up = threading.Event()

    def hear(happening: Heard | LinkChanged) -> None:
        if isinstance(happening, LinkChanged) and happening.up:
            up.set()

    broker = address(config.broker) if config.broker else None
    take_data(config.data_dir)
    where = broker or (identity.broker_host, identity.broker_port)
    link = Link(identity, where, dict, hear)
    link.start()
    try:
        if not up.wait(LINK_S):
            raise UnreachableError("the broker cannot be reached", why="{}:{}".format(*where))
        yield link.transfers
    finally:
        link.stop()
