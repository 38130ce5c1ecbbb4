"""`edgepack simulate`: thousands of devices in one process, to rehearse a rollout."""

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from edgepack.cli import FiniteRange, print_json
from edgepack.errors import UsageError

__all__ = ["simulate"]


@click.command()
@click.option("--devices", type=click.IntRange(1, 10_000), help="How many.  [default: 100]")
@click.option("--scenario", "path", type=click.Path(dir_okay=False, path_type=Path),
              help="YAML file: devices, faults, models, rollout.")  # fmt: skip
@click.option("--local", is_flag=True, help="Start a fleet and a broker for it on this machine.")
@click.option("--dir", "home", type=click.Path(file_okay=False, path_type=Path),
              help="Where the fleet of --local lives, and stays.")  # fmt: skip
@click.option("--publish", "bundles", multiple=True, metavar="BUNDLE",
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Publish it there first; may be repeated.")  # fmt: skip
@click.option("--mtls", is_flag=True, help="With --local: connect with certificates.")
@click.option("--enroll", "token", metavar="TOKEN", help="Join a fleet that is there.")
@click.option("--yes", is_flag=True, help="With --enroll: do not ask.")
@click.option("--release", metavar="NAME@VERSION", help="What the devices run at first.")
@click.option("--rollout", metavar="NAME@VERSION", help="With --local: roll this out.")
@click.option("--waves", help="Cumulative sizes of its waves.  [default: 1,10%,100%]")
@click.option("--gate", "gates", multiple=True, metavar="GATE",
              help='What a wave must show, e.g. "agreement>=0.95"; may be repeated.')  # fmt: skip
@click.option("--on-breach", type=click.Choice(["pause", "cancel", "revert"]),
              help="What a failed gate or too many failures do.  [default: pause]")  # fmt: skip
@click.option("--for", "seconds", type=FiniteRange(min=1), metavar="SECONDS",
              help="Stop after this.  [default: when the rollout ends, or Ctrl-C]")  # fmt: skip
@click.option("--seed", type=int, help="What chance begins with; the same seed, the same faults.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def simulate(
    devices: int | None,
    path: Path | None,
    local: bool,
    home: Path | None,
    bundles: tuple[Path, ...],
    mtls: bool,
    token: str | None,
    yes: bool,
    release: str | None,
    seconds: float | None,
    seed: int | None,
    as_json: bool,
    **rollout: Any,
) -> None:
    """Simulate devices that speak the real protocol, and rehearse a rollout on them.

    \b
    Example:
        edgepack simulate --devices 200 --local --for 60
        edgepack simulate --local --scenario rehearsal.yaml --publish old.edgepack \\
            --publish new.edgepack --release person@1.4.0 --rollout person@1.5.0
    """
    from edgepack_fleet.simulation import scenario as scenarios

    if local == (token is not None):
        raise UsageError("give either --local or --enroll TOKEN", reason="no_fleet")
    if token is not None and (bundles or mtls or home or any(rollout.values())):
        raise UsageError("--publish, --rollout, --mtls and --dir belong to --local")
    # Broker and fleet are processes of their own: they must end however this one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = scenarios.load(path, devices=devices, release=release, seed=seed)
    found = scenarios.with_rollout(found, **rollout)
    if token is None:
        document = _rehearse(found, home, bundles, mtls=mtls, seconds=seconds)
    else:
        _confirm(found.devices, yes=yes)
        document = _join(found, token, seconds)
    print_json(document) if as_json else _print(document)


def _rehearse(
    scenario: Any,
    home: Path | None,
    bundles: tuple[Path, ...],
    *,
    mtls: bool,
    seconds: float | None,
) -> dict[str, Any]:
    from edgepack_fleet.simulation.rehearsal import Rehearsal

    place = home or Path(tempfile.mkdtemp(prefix="edgepack-simulate-"))
    try:
        rehearsal = Rehearsal(scenario, place.resolve(), bundles, mtls, _say)
        return _document(rehearsal.run(seconds))
    finally:
        if home is None:
            shutil.rmtree(place, ignore_errors=True)


def _join(scenario: Any, token: str, seconds: float | None) -> dict[str, Any]:
    from edgepack_fleet.simulation.driver import allow_files
    from edgepack_fleet.simulation.rehearsal import DRAIN_S, joined

    allow_files(scenario.devices)
    _say(f"enrolling {scenario.devices} devices")
    with joined(scenario, token, None) as simulation:
        simulation.run_for(seconds)
        simulation.drain(DRAIN_S)
        return _document(simulation.result())


def _confirm(devices: int, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "simulated devices would be enrolled in a fleet that is there",
            why="nobody can be asked here, and --yes is not given",
            fix="use --local, or give --yes",
            reason="not_confirmed",
        )
    click.confirm(
        f"{devices} simulated devices will be enrolled, and stay in that fleet's list until they "
        "are revoked. Go on?", abort=True, err=True,
    )  # fmt: skip


def _say(line: str) -> None:
    click.echo(line, err=True)


def _document(result: Any) -> dict[str, Any]:
    import msgspec

    return dict(msgspec.to_builtins(result))


def _print(document: dict[str, Any]) -> None:
    from edgepack_fleet.cli import show

    show.facts(_facts(document))
    for title in ("states", "releases", "jobs"):
        show.table((title, "devices"), sorted(document[title].items()), f"No {title}.")
    if rollout := document["rollout"]:
        show.facts([(name, rollout[name]) for name in ("release", "state", "reason", "seconds")])


def _facts(document: dict[str, Any]) -> list[tuple[str, Any]]:
    said, count = document["messages"], document["count"]
    sent, heard = (sum(said[way].values()) for way in ("sent", "heard"))
    reports = f"{said['reports']} made, {said['acknowledged']} acknowledged"
    return [
        ("devices", document["devices"]),
        ("seconds", document["seconds"]),
        ("all connected after", document["connected_s"]),
        ("connections", f"{said['connects']} made, {said['disconnects']} lost"),
        ("messages", f"{sent} sent, {heard} heard, {said['lost']} lost on the way"),
        ("reports", f"{reports}, {said['sent_again']} sent again"),
        ("acknowledged after", _words(document["ack_ms"], " ms")),
        ("inferences", ", ".join(f"{number} {name}" for name, number in count.items())),
        ("refused", _words(said["refused"])),
        ("checks", _words(document["checks"])),
    ]


def _words(counts: dict[str, Any], unit: str = "") -> str:
    return ", ".join(f"{name} {value}{unit}" for name, value in sorted(counts.items()))
