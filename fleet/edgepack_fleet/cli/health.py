"""`edgepack fleet health`: whether the fleet or broker of this machine works. For health checks."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import click

from edgepack.errors import PartialError, UnreachableError
from edgepack_fleet.cli import show

__all__ = ["health"]

TIMEOUT_S = 4.0


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The fleet's directory, on this machine.",
)
@click.option("--part", type=click.Choice(["fleet", "broker"]), default="fleet", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def health(data: Path, part: str, as_json: bool) -> None:
    """Say whether it works: 0 it does, 7 it does not answer, 8 a fleet without its broker."""
    found = _broker(data) if part == "broker" else _fleet(data)
    if as_json:
        show.document("health", {"part": part, "status": found})
    else:
        click.echo(found)
    if found != "ok":
        raise PartialError(
            "the fleet does not reach its broker",
            fix="edgepack fleet broker --data DIR",
            reason="broker_unreachable",
        )


def _fleet(data: Path) -> str:
    import httpx

    try:
        told = urlsplit(json.loads((data / "endpoints.json").read_text())["http"])
        # Who listens everywhere tells its public name, which may lead elsewhere from here.
        host = told.hostname if _is_address(told.hostname or "") else "127.0.0.1"
        url = (
            f"{told.scheme}://{f'[{host}]' if ':' in str(host) else host}:{told.port}/api/v1/health"
        )
        # Nothing secret is asked or told, and a certificate is for the public name.
        answer = httpx.get(url, verify=False, timeout=TIMEOUT_S)  # noqa: S501
        return str(answer.raise_for_status().json()["status"])
    except (OSError, httpx.HTTPError, KeyError, TypeError, ValueError) as error:
        raise _silent("fleet", data, str(error)) from error


def _broker(data: Path) -> str:
    import socket

    from edgepack_fleet.adapters.broker import known_address

    address = known_address(data)
    try:
        with socket.create_connection((address.host, address.port), TIMEOUT_S):
            return "ok"
    except OSError as error:
        raise _silent("broker", data, str(error)) from error


def _is_address(host: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _silent(part: str, data: Path, why: str) -> UnreachableError:
    return UnreachableError(
        f"the {part} of {data} does not answer", why=why, reason=f"{part}_unreachable"
    )
