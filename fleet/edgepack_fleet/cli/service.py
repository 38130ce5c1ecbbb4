"""`edgepack fleet service`: what systemd needs to run broker and fleet."""

import sys
from pathlib import Path

import click

from edgepack.errors import UsageError

__all__ = ["service"]


@click.group()
def service() -> None:
    """Units for systemd: broker and fleet."""


@service.command("print")
@click.argument("part", type=click.Choice(["broker", "fleet", "sysusers"]), required=False)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/edgepack-fleet"),
    show_default=True,
    help="The fleet's directory.",
)
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME",
    help="Name that devices reach this machine under: listen beyond it. Repeat for several.",
)  # fmt: skip
@click.option(
    "--program", type=click.Path(path_type=Path), help="The `edgepack` to run [this one]."
)
@click.option(
    "--into", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="ROOT",
    help="Write both units and the user below ROOT/etc instead, e.g. / or an image.",
)  # fmt: skip
def print_units(
    part: str | None, data: Path, hosts: tuple[str, ...], program: Path | None, into: Path | None
) -> None:
    """Print the unit of PART, or of both; hardened, each with an exposure below 1.5.

    \b
    Example:
        edgepack fleet service print --host fleet.example.com --into /
        systemd-sysusers && systemctl daemon-reload
        systemctl enable --now edgepack-broker edgepack-fleet
    """
    from edgepack_fleet.adapters.units import SYSUSERS, UNITS, hidden, render

    program = program or Path(sys.argv[0]).resolve()
    if hidden(program) or hidden(data):
        click.echo(
            f"warning: the service cannot see {program if hidden(program) else data}; "
            "install edgepack in a venv below /opt",
            err=True,
        )
    words = [word for host in hosts for word in ("--host", host)]
    everywhere = "0.0.0.0" if hosts else "127.0.0.1"  # noqa: S104  asked for by --host
    broker = [*words, "--listen", f"{everywhere}:8883"]
    fleet = [*words, "--broker", "mqtts://127.0.0.1:8883", "--listen", f"{everywhere}:8080"]
    fleet += ["--device-listen", f"{everywhere}:8443", *(["--own-tls"] if hosts else [])]
    texts = {
        "broker": render("broker", program, data, broker),
        "fleet": render("fleet", program, data, fleet),
        "sysusers": SYSUSERS,
    }
    if into is None:
        chosen = [part] if part else list(UNITS)
        click.echo("\n".join(texts[name] for name in chosen), nl=False)
        return
    _write(into, {UNITS[name]: texts[name] for name in UNITS}, texts["sysusers"])


def _write(root: Path, units: dict[str, str], users: str) -> None:
    from edgepack.durable import write_file

    places = {f"etc/systemd/system/{name}": text for name, text in units.items()}
    try:
        for name, text in (places | {"etc/sysusers.d/edgepack-fleet.conf": users}).items():
            write_file(root / name, text.encode())
            click.echo(root / name)
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename}",
            why=error.strerror or str(error),
            fix="run it as root",
            reason="unwritable",
        ) from error
