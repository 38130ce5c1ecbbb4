"""Where commands of `edgepack repo` find home and repository, and the options that say so."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from edgepack.trust import OnRevoked
from edgepack_packager.adapters.published import DirectoryRepository, Published
from edgepack_packager.adapters.publisher_home import PublisherHome

if TYPE_CHECKING:
    from edgepack_packager.adapters.fleet_repository import FleetRepository

__all__ = [
    "default_home",
    "fleet_at",
    "home_option",
    "json_option",
    "on_revoked_option",
    "online_keys",
    "place",
    "repo_option",
    "source",
    "token_option",
    "valid_option",
]

ENV_HOME = "EDGEPACK_PUBLISHER"
ENV_TOKEN = "EDGEPACK_FLEET_TOKEN"  # noqa: S105  the variable's name, not a secret

token_option = click.option(
    "--token", default="", envvar=ENV_TOKEN, help="Operator's token of the fleet."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


repo_option = click.option(
    "--repo", "where", required=True, metavar="DIR|URL", help="Where the repository is."
)
home_option = click.option("--home", type=click.Path(path_type=Path), help="The publisher's home.")
valid_option = click.option(
    "--valid-for", type=click.IntRange(1, 90), default=1, show_default=True, metavar="DAYS",
    help="How long devices believe a directory repository.",
)  # fmt: skip
on_revoked_option = click.option(
    "--on-revoked", type=click.Choice(get_args(OnRevoked)),
    help="What devices do with a revoked model that serves: keep serving until there is "
    "another, or stop.",
)  # fmt: skip


@contextmanager
def place(
    where: str, token: str, home: PublisherHome, now: datetime, life: timedelta
) -> Iterator[Published]:
    """Yield the repository at WHERE, to publish to."""
    if where.startswith(("http://", "https://")):
        with fleet_at(where, token) as fleet:
            yield fleet
    else:
        home.online_keys()  # a fleet's home has none: say so before anything is written
        yield DirectoryRepository(Path(where), home.online_keys, now, life)


@contextmanager
def source(where: str, token: str, home: PublisherHome, now: datetime) -> Iterator[Published]:
    """Yield the repository at WHERE to read from, for which no key is needed."""
    if where.startswith(("http://", "https://")):
        with fleet_at(where, token) as fleet:
            yield fleet
    else:
        yield DirectoryRepository(Path(where), home.online_keys, now, timedelta())


def online_keys(url: str, token: str) -> dict[str, Any]:
    """Return what the fleet at URL says of its online keys."""
    with fleet_at(url, token) as fleet:
        return fleet.online_keys()


def fleet_at(url: str, token: str) -> "FleetRepository":
    """Return the fleet at URL, for whoever TOKEN is given to."""
    from edgepack_packager.adapters.fleet_repository import FleetRepository  # imports httpx

    return FleetRepository(url, token)


def default_home() -> Path:
    """Return the home to use if none is named."""
    named = os.environ.get(ENV_HOME)
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(named) if named else Path(config) / "edgepack" / "publisher"
