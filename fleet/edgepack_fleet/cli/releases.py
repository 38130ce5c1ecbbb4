"""`edgepack fleet releases health|drift|compare`: how releases do."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgepack.errors import UsageError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["compare_command", "drift_command", "health_command"]

UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
F = TypeVar("F", bound=Callable[..., Any])


def window_options(command: F) -> F:
    """Add the options that say which time is meant, and of whom."""
    for option in (
        click.option("--group", help="Only of this group."),
        click.option(
            "--last",
            default="1d",
            show_default=True,
            metavar="TIME",
            help="How far back: 30m, 6h, 7d, 4w.",
        ),
    ):
        command = option(command)
    return command


@click.command("health")
@click.argument("release")
@window_options
@click.option("--device", help="Only of this device.")
@connection_options
def health_command(
    release: str,
    group: str | None,
    last: str,
    device: str | None,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Say how RELEASE (NAME@VERSION) does: errors, latencies, updates, memory.

    \b
    Example:
        edgepack fleet releases health person@1.4.0 --last 6h --group cameras
    """
    client = Client(url, token, data)
    found = client.get("releases", release, "health", **_window(last), group=group, device=device)
    if as_json:
        show.document("release-health", found)
        return
    installs, latency = found["installs"], found["latency"]
    show.facts(
        [
            ("devices", found["devices"]),
            ("inferences", found["inferences"]),
            ("errors", _errors(found)),
            *([("not its fault", _counts(found["others"]))] if found["others"] else []),
            *((name, _quantile(latency[name])) for name in ("p50", "p95", "p99")),
            ("agreement", _agreement(found["agreement"])),
            ("updates", f"{installs['succeeded']} succeeded, {_counts(installs['failed'])}"),
            ("rolled back", found["rollbacks"]),
            ("memory", f"{found['rss_mb']:g} MB at most" if found["rss_mb"] else None),
            ("slowed down", f"{found['throttled_s']} s"),
        ]
    )


@click.command("drift")
@click.argument("release")
@window_options
@click.option("--device", help="Only of this device.")
@click.option("--against", type=click.Choice(["baseline", "window"]), default="baseline",
              show_default=True, help="Its baseline, or the same time before.")  # fmt: skip
@connection_options
def drift_command(
    release: str,
    group: str | None,
    last: str,
    device: str | None,
    against: str,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Say whether what RELEASE (NAME@VERSION) sees and says has changed."""
    client = Client(url, token, data)
    about = {"group": group, "device": device, "against": against}
    found = client.get("releases", release, "drift", **_window(last), **about)
    if as_json:
        show.document("release-drift", found)
        return
    rows = [
        (f["feature"], *_judged(f), f["before"], f["now"], v["digest"][7:19])
        for v in found["variants"]
        for f in v["features"]
    ]
    headers = ("feature", "verdict", "PSI", "p", "before", "now", "variant")
    empty = "Nothing to compare: no counts in this time, or the bundle has no baseline."
    show.table(headers, rows, empty)
    if rows:
        click.echo(f"{release}: {found['said']}")


@click.command("compare")
@click.argument("a")
@click.argument("b")
@window_options
@connection_options
def compare_command(
    a: str,
    b: str,
    group: str | None,
    last: str,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Say how release B differs from release A, and how sure that is.

    \b
    Example:
        edgepack fleet releases compare person@1.3.0 person@1.4.0 --last 7d
    """
    client = Client(url, token, data)
    found = client.get("releases", a, "compare", other=b, **_window(last), group=group)
    if as_json:
        show.document("release-comparison", found)
        return
    click.echo(f"A {a}: {found['devices_a']} devices, B {b}: {found['devices_b']}, "
               f"both: {found['devices_both']}")  # fmt: skip
    for sentence in found["said"]:
        click.echo(sentence)


def _window(last: str) -> dict[str, Any]:
    """Return the time from LAST ago until now."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([mhdw])", last)
    if found is None or not float(found[1]):
        raise UsageError(f"not a time: {last!r}", fix="write e.g. --last 30m, 6h, 7d or 4w")
    return {"since": time.time() - float(found[1]) * UNITS[found[2]]}


def _judged(feature: dict[str, Any]) -> tuple[str, str | None, str | None]:
    """Return the verdict on a FEATURE, its PSI and its p: without enough values there are none."""
    if lack := feature["lack"]:
        of_what = "values" if lack["side"] == "now" else "values to compare with"
        return f"too few: {lack['found']} of {lack['needed']} {of_what}", None, None
    return feature["verdict"], f"{feature['psi']:.3f}", f"{feature['adjusted']:.2g}"


def _errors(found: dict[str, Any]) -> str:
    rate = found["error_rate"]
    share = "" if rate is None else f" ({100 * rate:.2g} %)"
    return f"{found['errors']}{share}" + (f": {_counts(found['reasons'])}" if rate else "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none failed"


def _quantile(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    low, high = found["low"] or 0, found["high"]
    end = f"to {high:g}" if high is not None else "or more"
    return f"{found['value']:.3g} ms (counted between {low:g} {end})"


def _agreement(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    return f"{100 * found['mean']:.1f} %, worst {100 * found['worst']:.1f} % ({found['devices']})"
