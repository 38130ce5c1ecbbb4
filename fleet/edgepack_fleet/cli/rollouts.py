"""`edgepack fleet releases|rollouts`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["releases", "rollouts"]


@click.group()
def releases() -> None:
    """List and show published releases."""


@releases.command("list")
@connection_options
def list_releases(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List all releases."""
    found = Client(url, token, data).list("releases")
    if as_json:
        show.document("releases", found)
        return
    rows = [(r["id"], ", ".join(map(_variant, r["variants"]))) for r in found["releases"]]
    empty = "Nothing is published yet: edgepack repo publish BUNDLE --repo URL"
    show.table(("release", "variants"), rows, empty)


@releases.command("show")
@click.argument("release")
@connection_options
def show_release(
    release: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Show one release, NAME@VERSION."""
    found = Client(url, token, data).get("releases", release)
    if as_json:
        show.document("release", found)
        return
    rows = [
        (_variant(v), v["min_runtime"], ", ".join(v["arch"]) or "any", v["epoch"], v["sha256"])
        for v in found["variants"]
    ]
    show.table(("variant", "runtime from", "machine", "epoch", "sha256"), rows, "No variants.")


@click.group()
def rollouts() -> None:
    """Send a release to a group, wave by wave."""


@rollouts.command("list")
@connection_options
def list_rollouts(url: str | None, token: str | None, data: Path | None, as_json: bool) -> None:
    """List all rollouts, newest first."""
    found = Client(url, token, data).list("rollouts")
    if as_json:
        show.document("rollouts", found)
        return
    rows = [(r["id"], r["release"], r["group"], r["state"], r["reason"]) for r in found["rollouts"]]
    empty = "No rollout yet: edgepack fleet rollouts create NAME@VERSION --group GROUP"
    show.table(("rollout", "release", "group", "state", "where it stands"), rows, empty)


@rollouts.command("show")
@click.argument("rollout")
@connection_options
def show_rollout(
    rollout: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Show one rollout."""
    _print(Client(url, token, data).get("rollouts", rollout), as_json)


@rollouts.command("create")
@click.argument("release")
@click.option("--group", required=True, help="The devices that get it.")
@click.option("--waves", default="1,10%,100%", show_default=True, help="Cumulative sizes.")
@click.option("--max-failures", type=int, default=1, show_default=True,
              help="Pause when this many devices have failed.")  # fmt: skip
@click.option("--max-failure-percent", type=float, default=20.0, show_default=True,
              help="Pause when more of the finished devices have failed.")  # fmt: skip
@click.option("--min-sample", type=int, default=5, show_default=True,
              help="Finished devices before the percentage is looked at.")  # fmt: skip
@click.option("--soak", type=float, default=0.0, show_default=True,
              help="Seconds between waves.")  # fmt: skip
@click.option("--timeout", type=float, default=900.0, show_default=True,
              help="Seconds a device may be silent about its update.")  # fmt: skip
@click.option("--probation", type=int, default=5, show_default=True,
              help="Seconds a new model must stay healthy.")  # fmt: skip
@connection_options
def create_rollout(
    release: str,
    group: str,
    waves: str,
    max_failures: int,
    max_failure_percent: float,
    min_sample: int,
    soak: float,
    timeout: float,
    probation: int,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Send RELEASE (NAME@VERSION) to a group, wave by wave."""
    body = {
        "release": release,
        "group": group,
        "waves": waves,
        "max_failures": max_failures,
        "max_failure_percent": max_failure_percent,
        "min_sample": min_sample,
        "soak_s": soak,
        "timeout_s": timeout,
        "probation_s": probation,
    }
    _print(Client(url, token, data).post("rollouts", body=body), as_json)


def _changing(action: str, text: str) -> Callable[..., None]:
    @rollouts.command(action, help=text)
    @click.argument("rollout")
    @connection_options
    def change(
        rollout: str, url: str | None, token: str | None, data: Path | None, as_json: bool
    ) -> None:
        _print(Client(url, token, data).post("rollouts", rollout, action), as_json)

    return change


pause = _changing("pause", "Assign nothing more until somebody resumes.")
resume = _changing("resume", "Go on; the failures so far are accepted.")
cancel = _changing("cancel", "End it; devices that have not finished are told to stop.")


def _variant(variant: dict[str, Any]) -> str:
    return f"{variant['runtime']}-{variant['precision']}"


def _print(rollout: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("rollout", rollout)
        return
    pairs = [(k, rollout[k]) for k in ("id", "release", "group", "state", "reason")]
    pairs += [
        (f"wave {number}", f"{w['done']} done, {w['failed']} failed, {w['pending']} pending")
        for number, w in enumerate(rollout["waves"], 1)
    ]
    show.facts(pairs)
    rows = [(d["id"], d["status"].lower(), d["state"], d["reason"]) for d in rollout["devices"]]
    show.table(("device", "status", "where", "reason"), rows, "The group has no device yet.")
