"""`edgepack fleet serve|broker|openapi`: the processes. What they do is in `server`."""

import logging
import sys
from pathlib import Path

import click

from edgepack.cli import FiniteRange, print_json
from edgepack.errors import UsageError

__all__ = ["broker", "openapi", "serve"]

data_option = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The fleet's directory: database, keys, repositories.",
)
host_option = click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="Name or address that devices reach this machine under; repeat for several.",
)


database_option = click.option(
    "--database",
    envvar="EDGEPACK_FLEET_DATABASE",
    metavar="URL",
    help="Another database than SQLite below --data: postgresql://USER:PASSWORD@HOST/NAME "
    "[EDGEPACK_FLEET_DATABASE].",
)


@click.command()
@data_option
@host_option
@database_option
@click.option(
    "--content",
    envvar="EDGEPACK_FLEET_CONTENT",
    metavar="URL|DIR",
    help="Keep models elsewhere than below --data: s3://BUCKET/PREFIX, gs://, az:// or a "
    "directory [EDGEPACK_FLEET_CONTENT].",
)
@click.option("--broker", "broker_url", metavar="URL", help="mqtts://HOST:PORT of the MQTT broker.")
@click.option(
    "--public-broker",
    metavar="HOST:PORT",
    help="Where devices reach the broker, if that is another address.",
)
@click.option(
    "--embedded-broker",
    is_flag=True,
    help="Run a broker in this process, on 127.0.0.1. For demos: slower, forgets what it holds.",
)
@click.option(
    "--listen", default="127.0.0.1:8080", show_default=True, help="REST interface and pages."
)
@click.option(
    "--device-listen", default="127.0.0.1:8443", show_default=True, help="Enrolment (HTTPS)."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate of --listen.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key.")
@click.option(
    "--own-tls", is_flag=True, help="Show on --listen a certificate of the fleet's own authority."
)
@click.option(
    "--renew-grace",
    type=FiniteRange(min=0),
    default=730.0,
    show_default=True,
    metavar="DAYS",
    help="How long after its certificate ended a device may still renew it.",
)
@click.option(
    "--webhook-private", is_flag=True, help="Let webhooks lead to addresses of private networks."
)
@click.option(
    "--alerts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of alert rules, and of whom to tell by mail or MQTT.",
)
@click.option(
    "--keep-raw",
    type=FiniteRange(min=0, max=400),
    default=0.0,
    show_default=True,
    metavar="DAYS",
    help="Keep rows of telemetry this long beside what they add up to; 0: do not keep them.",
)
@click.option(
    "--max-per-s",
    type=FiniteRange(min=0),
    default=100.0,
    show_default=True,
    metavar="N",
    help="Requests a second over REST with one token; 0: no limit.",
)
def serve(
    data: Path,
    hosts: tuple[str, ...],
    database: str | None,
    content: str | None,
    broker_url: str | None,
    public_broker: str | None,
    embedded_broker: bool,
    listen: str,
    device_listen: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    own_tls: bool,
    renew_grace: float,
    max_per_s: float,
    webhook_private: bool,
    keep_raw: float,
    alerts: Path | None,
) -> None:
    """Serve the fleet: REST interface and pages, enrolment, and devices over MQTT."""
    from edgepack_fleet import server
    from edgepack_fleet.adapters.broker import known_address, parse_address
    from edgepack_fleet.service import Settings

    if embedded_broker and broker_url:
        raise UsageError("--broker and --embedded-broker exclude each other")
    if own_tls and (tls_cert or tls_key):
        raise UsageError("--own-tls and --tls-cert exclude each other")
    data = data.absolute()
    pair = _own_pair(data, hosts) if own_tls else (tls_cert, tls_key)
    listeners = server.Listeners(parse_address(listen), parse_address(device_listen), *pair)
    address = parse_address(_broker_host(broker_url)) if broker_url else known_address(data)
    server.check_exposure(listeners)
    _log_to_stderr()
    settings = Settings(
        data,
        address,
        database,
        hosts,
        renew_grace,
        max_per_s,
        webhook_private,
        public_broker=parse_address(public_broker) if public_broker else None,
        content=content,
        keep_raw_days=keep_raw,
        alerts=alerts,
    )
    server.serve(settings, listeners, embedded_broker=embedded_broker)


@click.command()
@data_option
@host_option
@click.option(
    "--listen", default="127.0.0.1:8883", show_default=True, help="Where devices connect."
)
@click.option("--print-config", is_flag=True, help="Print the configuration and stop.")
def broker(data: Path, hosts: tuple[str, ...], listen: str, print_config: bool) -> None:
    """Run mosquitto in the foreground: TLS, certificates as identity, one topic tree per device."""
    from edgepack_fleet.adapters import broker as mosquitto
    from edgepack_fleet.adapters.lock import own
    from edgepack_fleet.adapters.pki import Pki

    data = own(data.absolute())
    pki = Pki(data / "pki", hosts)
    files = mosquitto.prepare(data, pki, mosquitto.parse_address(listen))
    if print_config:
        click.echo(files.config.read_text(), nl=False)
        return
    mosquitto.find_mosquitto()
    click.echo(f"mosquitto on {files.address}, configured by {files.config}", err=True)
    sys.stderr.flush()
    mosquitto.start(files, pki)


@click.command()
def openapi() -> None:
    """Print the OpenAPI description of the REST interface as JSON."""
    from edgepack_fleet.web.app import main_app

    print_json(main_app(None).openapi())


def _own_pair(data: Path, hosts: tuple[str, ...]) -> tuple[Path, Path]:
    from edgepack_fleet.adapters.lock import own
    from edgepack_fleet.adapters.pki import Pki

    return Pki(own(data) / "pki", hosts).pair("server")


def _broker_host(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme != "mqtts":
        raise UsageError(
            f"not a broker this fleet can use: {url!r}",
            why="a device is who its certificate says, which needs TLS",
            fix="write mqtts://HOST:PORT",
        )
    return rest


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    for chatty in ("uvicorn", "alembic", "httpx", "tuf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
