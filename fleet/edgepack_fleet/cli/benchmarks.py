"""`edgepack fleet releases measure|measurements`: how fast a release is on the devices."""

import json
from pathlib import Path
from typing import Any

import click

from edgepack.cli import FiniteRange
from edgepack.errors import EdgepackError, PartialError, UsageError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.asking import until_ended
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["release_measure", "release_measurements"]


@click.command("measure")
@click.argument("release")
@click.option("--group", help="A few devices of every class in this group.")
@click.option("--device", help="This device.")
@click.option(
    "--each", type=click.IntRange(1, 100), default=1, show_default=True,
    help="Devices of every class: same variant, architecture, memory and CPU features.",
)  # fmt: skip
@click.option(
    "--within", "within_s", type=FiniteRange(1, 7 * 86400), default=3600.0, show_default=True,
    metavar="SECONDS", help="How long to wait for devices that are away or busy.",
)  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait for the numbers.")
@connection_options
def release_measure(
    release: str,
    group: str | None,
    device: str | None,
    each: int,
    within_s: float,
    no_wait: bool,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Let idle devices measure RELEASE, which none of them installs or serves.

    They fetch it, check it as they would for an update, and run it in processes of their own
    that give way to the model that serves. The numbers are signed by the devices.

    \b
    Example:
        edgepack fleet releases measure person@1.4.0 --group cameras --data fleet
    """
    if (group is None) == (device is None):
        raise UsageError("name a group or a device", fix="--group G, or --device ID")
    client = Client(url, token, data)
    body = {"group": group, "device": device, "each": each, "within_s": within_s}
    asked = client.post("releases", release, "measurements", body=body)
    for left in asked["left_out"]:
        click.echo(show.printable(f"{left['device']} does not: {left['reason']}"), err=True)
    if no_wait:
        _asked(asked, as_json)
        return
    failed = _failures(client, asked["requests"])
    found = client.get("releases", release, "measurements")
    mine = {request["device"] for request in asked["requests"]}
    _show(found | {"measurements": _newest(found, mine)}, as_json)
    if len(failed) == len(asked["requests"]):
        raise failed[0]
    if failed:
        raise PartialError(
            f"{len(failed)} of {len(asked['requests'])} devices have not measured",
            why=str(failed[0].why), reason=failed[0].reason,
        )  # fmt: skip


@click.command("measurements")
@click.argument("release")
@click.option(
    "--profile", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write the newest of each device to FILE, for `edgepack build --profile`.",
)  # fmt: skip
@connection_options
def release_measurements(
    release: str,
    profile: Path | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Show what devices have measured of RELEASE, the newest of each.

    \b
    Example:
        edgepack fleet releases measurements person@1.4.0 --profile cameras.json --data fleet
    """
    found = Client(url, token, data).get("releases", release, "measurements")
    newest = _newest(found)
    if profile is not None:
        if not newest:
            fix = f"edgepack fleet releases measure {release} --group GROUP"
            raise UsageError("there is nothing to write", fix=fix, reason="no_measurements")
        profile.write_text(json.dumps([m["document"] for m in newest], indent=2) + "\n")
    _show(found | {"measurements": newest}, as_json)


def _failures(client: Client, requests: list[dict[str, Any]]) -> list[EdgepackError]:
    """Wait until REQUESTS have ended; return why those that failed did."""
    failed = []
    for request in requests:
        try:
            until_ended(client, request)
        except EdgepackError as error:
            click.echo(show.printable(f"{request['device']}: {error.why}"), err=True)
            failed.append(error)
    return failed


def _newest(found: dict[str, Any], devices: set[str] | None = None) -> list[dict[str, Any]]:
    """Return the newest measurement of each of DEVICES; None: of all."""
    by_device: dict[str, dict[str, Any]] = {}
    for measured in found["measurements"]:
        by_device.setdefault(measured["device"], measured)
    return [m for name, m in sorted(by_device.items()) if devices is None or name in devices]


def _asked(asked: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("measuring", asked)
        return
    for request in asked["requests"]:
        click.echo(f"{request['id']} {request['device']}")


def _show(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("measurements", found)
        return
    rows = [_row(measured) for measured in found["measurements"]]
    headers = (
        "device", "variant", "p50 ms", "p95 ms", "load ms", "memory MB", "threads", "processor",
        "signed", "at",
    )  # fmt: skip
    empty = f"not measured yet: edgepack fleet releases measure {found['release']} --group GROUP"
    show.table(headers, rows, empty)


def _row(measured: dict[str, Any]) -> tuple[Any, ...]:
    said = measured["document"]
    return (
        measured["device"],
        f"{said['target']} {said['precision']}",
        f"{said['latency_ms']['p50']:.2f}",
        f"{said['latency_ms']['p95']:.2f}",
        f"{said['load_ms']:.0f}",
        f"{said['peak_rss_mb']:.0f}",
        said["effective"]["threads"],
        said["host"]["cpu"] or said["host"]["machine"],
        "yes" if measured["verified"] else "no",
        show.moment(measured["received"]),
    )
