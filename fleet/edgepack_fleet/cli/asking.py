"""`edgepack fleet devices doctor|logs`: asks a device, waits, shows what it says."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from edgepack.cli import FiniteRange
from edgepack.errors import EdgepackError, UnreachableError, UnsupportedError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["device_doctor", "device_logs", "until_ended"]

PAUSE_S = 0.5
OPEN = {"QUEUED", "IN_PROGRESS"}
within = click.option(
    "--within",
    "within_s",
    type=FiniteRange(1, 7 * 86400),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a device that is away or busy.",
)
no_wait = click.option("--no-wait", is_flag=True, help="Print the request, do not wait for it.")


@click.command("doctor")
@click.argument("device")
@within
@no_wait
@connection_options
def device_doctor(
    device: str,
    within_s: float,
    no_wait: bool,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Let DEVICE check itself as `edgepack-agent doctor` does, and show what it finds.

    The exit code is that of the first finding that fails; 5 if the device refuses (its level of
    telemetry is `off`, or its configuration does not allow it), 7 if it does not answer in time.

    \b
    Example:
        edgepack fleet devices doctor cam-1 --data fleet
    """
    client = Client(url, token, data)
    asked = client.post(
        "devices", device, "requests", body={"kind": "doctor", "within_s": within_s}
    )
    done = asked if no_wait else until_ended(client, asked)
    if as_json or no_wait:
        _document(done, as_json)
    else:
        rows = [_finding(found) for found in done["result"].get("findings", [])]
        show.table(("", "check", "found", "fix"), rows, "nothing was found")
    failed = [f for f in done["result"].get("findings", []) if f.get("status") == "fail"]
    # Not through click, which returns the code instead of leaving with it.
    sys.exit(int(failed[0].get("code") or 1) if failed else 0)


@click.command("logs")
@click.argument("device")
@click.option("-n", "--lines", type=click.IntRange(1, 1000), default=200, show_default=True)
@within
@no_wait
@connection_options
def device_logs(
    device: str,
    lines: int,
    within_s: float,
    no_wait: bool,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Show the newest messages of DEVICE's agent since it started, without secrets.

    \b
    Example:
        edgepack fleet devices logs cam-1 --lines 50 --data fleet
    """
    client = Client(url, token, data)
    body = {"kind": "logs", "lines": lines, "within_s": within_s}
    asked = client.post("devices", device, "requests", body=body)
    done = asked if no_wait else until_ended(client, asked)
    if as_json or no_wait:
        _document(done, as_json)
        return
    for line in done["result"].get("lines", []):
        click.echo(show.printable(str(line)))


def until_ended(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what was ASKED once there is an answer.

    Raises:
        UnsupportedError: the device does not do this.
        UnreachableError: it did not answer in time.
        EdgepackError: it could not, or somebody cancelled.
    """
    done = asked
    if sys.stderr.isatty():
        click.echo(f"waiting for {asked['device']} ({asked['id']})", err=True)
    while done["status"] in OPEN:
        time.sleep(PAUSE_S)
        done = client.get("requests", asked["id"])
    if done["status"] == "SUCCEEDED":
        return done
    what, why = f"{done['device']} does not answer", done["message"] or done["reason"]
    if done["status"] == "REJECTED":
        raise UnsupportedError(
            what, why=why, fix="see its configuration: telemetry.level, remote.answers",
            reason=done["reason"],
        )  # fmt: skip
    if done["status"] == "TIMED_OUT":
        why = "it was not there, or too busy, until the deadline"
        raise UnreachableError(what, why=why, fix="wait longer: --within", reason="deadline")
    raise EdgepackError(what, why=why, reason=done["reason"] or done["status"].lower())


def _document(done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("device-request", done)
    else:
        click.echo(done["id"])


def _finding(found: dict[str, Any]) -> tuple[Any, ...]:
    told = found.get("what", "") + (f": {found['why']}" if found.get("why") else "")
    return found.get("status"), found.get("check"), told, found.get("fix")
