"""`edgepack fleet releases|rollouts`."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgepack.errors import IntegrityError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.benchmarks import release_measure, release_measurements
from edgepack_fleet.cli.client import Client, connection_options
from edgepack_fleet.cli.releases import compare_command, drift_command, health_command
from edgepack_fleet.cli.waiting import wait_for_rollout

__all__ = ["releases", "rollouts"]


@click.group()
def releases() -> None:
    """List published releases, measure them, and say how they do."""


releases.add_command(release_measure)
releases.add_command(release_measurements)


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


for command in (health_command, drift_command, compare_command):
    releases.add_command(command)


@click.group()
def rollouts() -> None:
    """Send a release to a group, wave by wave."""


rollouts.add_command(wait_for_rollout)


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
@click.option("--gate", "gates", multiple=True, metavar="GATE",
              help='What a wave must show, e.g. "p95_ratio<=1.2"; may be repeated.')  # fmt: skip
@click.option("--on-breach", type=click.Choice(["pause", "cancel", "revert"]), default="pause",
              show_default=True, help="What a failed gate or too many failures do.")  # fmt: skip
@click.option("--shadow", "shadow_s", type=int, default=0,
              help="Seconds the new model runs beside the old one first.")  # fmt: skip
@click.option("--window", "windows", multiple=True, metavar="DAYS;FROM-TO;ZONE",
              help='When devices may do it, e.g. "sat,sun;22:00-04:00;Europe/Berlin".')  # fmt: skip
@click.option("--max-in-flight", type=int, default=200, show_default=True,
              help="Devices that update at once.")  # fmt: skip
@click.option("--max-per-minute", type=int, default=0, help="Updates begun in a minute; 0: any.")
@click.option("--overrides", type=click.Choice(["accept", "replace"]), default="replace",
              show_default=True, help="What becomes of models installed by hand.")  # fmt: skip
@click.option("--priority", type=int, default=0, help="The higher one goes first on a device.")
@click.option("--approval", is_flag=True, help="Somebody must approve it before it starts.")
@click.option("--draft", is_flag=True, help="Make it; somebody starts it later.")
@click.option("--dry-run", is_flag=True, help="Say who would get what and when; change nothing.")
@connection_options
def create_rollout(
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
    dry_run: bool,
    windows: tuple[str, ...],
    **wanted: Any,
) -> None:
    """Send RELEASE (NAME@VERSION) to a group, wave by wave."""
    for name in ("soak", "timeout", "probation"):
        wanted[f"{name}_s"] = wanted.pop(name)
    body = wanted | {"windows": [_window(text) for text in windows]}
    client = Client(url, token, data)
    if dry_run:
        _print_rehearsal(client.post("rollouts", "rehearse", body=body), as_json)
    else:
        _print(client.post("rollouts", body=body), as_json)


@rollouts.command("replay")
@click.argument("rollout")
@connection_options
def replay_rollout(
    rollout: str, url: str | None, token: str | None, data: Path | None, as_json: bool
) -> None:
    """Make the newest decisions about a rollout once more from what they were made of."""
    found = Client(url, token, data).get("rollouts", rollout, "decisions")
    if as_json:
        show.document("decisions", found)
    else:
        rows = [
            (show.moment(d["at"]), d["by"] or "fleet", _deeds(d["actions"]), d["sentence"],
             {True: "same", False: "DIFFERS", None: ""}[d["same"]])
            for d in found["decisions"]
        ]  # fmt: skip
        show.table(("when", "who", "did", "why", "again"), rows, "Nothing was decided yet.")
    if any(d["same"] is False for d in found["decisions"]):
        raise IntegrityError(
            "a decision would not be made again",
            why="its inputs were changed, or another version of this program made it",
            reason="decision_differs",
        )


def _deeds(actions: list[dict[str, Any]]) -> str:
    counts = Counter(action["do"] for action in actions)
    return ", ".join(f"{count} x {name}" for name, count in counts.items())


def _window(text: str) -> dict[str, Any]:
    """Return the window of TEXT; days and zone may be left out, as in `22:00-04:00`."""
    parts = text.split(";")
    hours = next((part for part in parts if ":" in part), "")
    start, _, end = hours.partition("-")
    place = parts.index(hours) if hours else 0
    found: dict[str, Any] = {"from": start.strip(), "to": end.strip()}
    if place:
        found["days"] = [day.strip() for day in parts[0].split(",")]
    if len(parts) > place + 1:
        found["zone"] = parts[place + 1].strip()
    return found


def _print_rehearsal(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("rehearsal", found)
        return
    rows = [
        (d["device"], d["target"], None if d["wave"] is None else d["wave"] + 1, d["why"])
        for d in found["devices"]
    ]
    show.table(("device", "variant", "wave", "why"), rows, "The group has no device yet.")


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
resume = _changing("resume", "Go on; the failures and breaches so far are accepted.")
start = _changing("start", "Start a draft.")
approve = _changing("approve", "Let a rollout begin that waits for approval.")
revert = _changing("revert", "Give every device that has the release what it had before.")
cancel = _changing("cancel", "End it; devices that have not finished are told to stop.")


def _variant(variant: dict[str, Any]) -> str:
    return f"{variant['runtime']}-{variant['precision']}"


def _where(device: dict[str, Any]) -> str:
    way = "way back" if device["way"] == "revert" else ""
    return ", ".join(filter(None, (way, device["state"])))


def _counts(wave: dict[str, Any], state: str) -> str:
    rest = "not reached" if state in {"reverting", "reverted", "cancelled"} else "pending"
    return f"{wave['done']} done, {wave['failed']} failed, {wave['pending']} {rest}"


def _print(rollout: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.document("rollout", rollout)
        return
    pairs = [(k, rollout[k]) for k in ("id", "release", "group", "state", "reason")]
    if rollout["overtaken_by"]:
        pairs.append(("overtaken by", rollout["overtaken_by"]))
    for number, wave in enumerate(rollout["waves"], 1):
        pairs.append((f"wave {number}", _counts(wave, rollout["state"])))
        pairs += [("", f"{gate['verdict']}: {gate['said']}") for gate in wave["gates"]]
    show.facts(pairs)
    rows = [(d["id"], d["status"].lower(), _where(d), d["reason"]) for d in rollout["devices"]]
    show.table(("device", "status", "where", "reason"), rows, "The group has no device yet.")
