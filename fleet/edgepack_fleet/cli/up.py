"""`edgepack fleet up`: a broker and a fleet on this machine, with everything that they need."""

import contextlib
import json
import os
import socket
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgepack.errors import UnreachableError, UsageError
from edgepack_fleet.cli import show

__all__ = ["up"]

PORTS = {"listen": 8080, "device_listen": 8443, "broker_listen": 8883}


def _default_data() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "edgepack" / "fleet"


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=_default_data,
    show_default="~/.local/share/edgepack/fleet",
    help="The fleet's directory; made on first use.",
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Listen beyond this machine, with TLS; devices know it as NAME. Repeat for several.",
)
@click.option("--listen", metavar="HOST:PORT", help="REST interface and pages [port 8080].")
@click.option("--device-listen", metavar="HOST:PORT", help="Enrolment [port 8443].")
@click.option("--broker-listen", metavar="HOST:PORT", help="MQTT with TLS [port 8883].")
@click.option("--json", "as_json", is_flag=True, help="Print where it serves as JSON.")
@click.argument("serve_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SERVE_OPTIONS]...")
def up(
    data: Path,
    hosts: tuple[str, ...],
    listen: str | None,
    device_listen: str | None,
    broker_listen: str | None,
    as_json: bool,
    serve_options: tuple[str, ...],
) -> None:
    """Run mosquitto and the fleet until Ctrl-C or SIGTERM; start again what ends by itself.

    Keys, certificates and the first access token are made on first use and kept. Options after
    `--` go to `edgepack fleet serve`.

    \b
    Example:
        edgepack fleet up
        edgepack fleet up --data /srv/fleet --host fleet.example.com
    """
    from edgepack_fleet.adapters.broker import find_mosquitto
    from edgepack_fleet.adapters.lock import if_free, own

    find_mosquitto()
    data = own(data.absolute())
    # `localhost` is everybody's name: nothing beyond this machine is asked for.
    wide = bool(set(hosts) - {"localhost", "127.0.0.1", "::1"})
    given = {"listen": listen, "device_listen": device_listen, "broker_listen": broker_listen}
    with if_free(data, "up.lock") as first:
        if not first:
            _print(_standing(data), as_json)
            click.echo(f"it already runs from {data}", err=True)
            return
        addresses = {name: _address(text, PORTS[name], wide) for name, text in given.items()}
        _run(data, hosts, addresses, serve_options, as_json)


def _run(
    data: Path,
    hosts: Sequence[str],
    addresses: Mapping[str, str],
    serve_options: Sequence[str],
    as_json: bool,
) -> None:
    from edgepack_fleet.supervising import Part, Supervisor

    endpoints = data / "endpoints.json"
    # One that was killed leaves its own behind, and a fleet that somebody else started has one.
    before = _version(endpoints)
    new = not (data / "secret").exists()
    names = [word for host in hosts for word in ("--host", host)]
    fleet: list[str | Path] = [Path(sysconfig.get_path("scripts"), "edgepack"), "fleet"]
    place = ["--data", str(data), *names]
    broker = addresses["broker_listen"]
    serve = ["--listen", addresses["listen"], "--device-listen", addresses["device_listen"]]
    serve += _own_tls(addresses["listen"], serve_options)
    parts = [
        Part("broker", [*fleet, "broker", *place, "--listen", broker], lambda: _accepts(broker)),
        Part(
            "fleet",
            [
                *fleet,
                "serve",
                *place,
                "--broker",
                f"mqtts://{_near(broker)}",
                *serve,
                *serve_options,
            ],
            lambda: _version(endpoints) not in {None, before},
        ),
    ]
    Supervisor(parts, _log).run(lambda: _print(_standing(data, new=new), as_json))


def _address(text: str | None, port: int, wide: bool) -> str:
    """Return the address in TEXT, or PORT of every address if WIDE, else of this machine's own.

    Raises:
        UsageError: it is none, or taken (reason `listen`).
    """
    from edgepack_fleet.adapters.broker import Address, free_port, parse_address

    everywhere = "0.0.0.0" if wide else "127.0.0.1"  # noqa: S104  asked for by --host
    address = parse_address(text) if text else Address(everywhere, port)
    if address.port == 0:
        return str(Address(address.host, free_port(address.host)))
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {address}",
                why=error.strerror or str(error),
                fix="stop what listens there, or choose another port with --listen, "
                "--device-listen or --broker-listen",
                reason="listen",
            ) from error
    return str(address)


def _version(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at PATH from one that replaces it; None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _own_tls(listen: str, serve_options: Sequence[str]) -> list[str]:
    from edgepack_fleet.adapters.broker import parse_address

    own = {"--tls-cert", "--tls-key", "--own-tls"} & {w.partition("=")[0] for w in serve_options}
    return [] if own or parse_address(listen).is_loopback else ["--own-tls"]


def _near(address: str) -> str:
    """Return how we ourselves reach what listens on ADDRESS."""
    from edgepack_fleet.adapters.broker import Address, parse_address

    found = parse_address(address)
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not bound
    return str(Address(near.get(found.host, found.host), found.port))


def _accepts(address: str) -> bool:
    from edgepack_fleet.adapters.broker import parse_address

    found = parse_address(_near(address))
    with contextlib.suppress(OSError), socket.create_connection((found.host, found.port), 1):
        return True
    return False


def _standing(data: Path, *, new: bool = False) -> dict[str, Any]:
    """Return where the fleet of DATA serves; of a NEW one with the token that only now is shown.

    Raises:
        UnreachableError: another process is just starting or stopping it.
    """
    from edgepack_fleet.access import bootstrap_token, fleet_secret

    try:
        endpoints = json.loads((data / "endpoints.json").read_text())
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"the fleet of {data} is not ready",
            why="another process is starting or stopping it",
            fix="try again in a moment",
            reason="fleet_unreachable",
        ) from error
    token = bootstrap_token(fleet_secret(data, create=False), "admin") if new else None
    more = {"data": str(data), "ca": str(data / "pki" / "ca.pem"), "token": token}
    return {**endpoints, **more}


def _print(standing: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("fleet-up", dict(standing))
    else:
        told = {name: value for name, value in standing.items() if value is not None}
        if not sys.stdout.isatty():
            # What a service manager or a container runtime collects is a log.
            told.pop("token", None)
        show.facts(list(told.items()))
        if "token" not in told:
            hint = f"edgepack fleet tokens show --data {standing['data']} --role admin"
            click.echo(f"its token: {hint}", err=True)
    sys.stdout.flush()


def _log(name: str, line: str) -> None:
    click.echo(f"{name:<6} | {line}", err=True)
