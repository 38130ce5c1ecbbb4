"""`edgepack-agent status | install | rollback | lock | pin | sync`: what an agent is told."""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from edgepack.cli import print_json
from edgepack.errors import UsageError
from edgepack_agent.adapters.control import call
from edgepack_agent.cli.box import show_box
from edgepack_agent.cli.instance import settings_dir
from edgepack_agent.settings import load_config

__all__ = ["export", "install", "lock", "pin", "rollback", "status", "sync", "unlock", "unpin"]

_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.command()
@click.option("--all", "everywhere", is_flag=True, help="Of every agent of this box.")
@_json
@click.pass_obj
def status(config: Path | None, everywhere: bool, as_json: bool) -> None:
    """Show what the agent is doing."""
    if everywhere:
        show_box(settings_dir(config), as_json=as_json)
        return
    found = call(load_config(config).control_socket, "status", timeout_s=15)
    if as_json:
        print_json(found)
        return
    for name, value in _rows(found):
        click.echo(f"{name:<10} {value}")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--release",
    metavar="NAME@VERSION",
    help="Which model of a mirror [default: the newest of the line in use].",
)
@_json
@click.pass_obj
def install(config: Path | None, path: Path, release: str | None, as_json: bool) -> None:
    """Install from PATH, a bundle or a mirror directory, with the same checks as from the fleet.

    Needs `allow_local_install: true`; the fleet is told. A mirror is what `edgepack repo
    export` writes, e.g. on a USB stick.
    """
    socket = load_config(config).control_socket
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot read {path}", why=why, reason="no_such_file") from error
    try:
        found = call(socket, "install", file, args={"release": release})
    finally:
        os.close(file)
    _print_bundle(found, as_json=as_json)


@click.command()
@_json
@click.pass_obj
def rollback(config: Path | None, as_json: bool) -> None:
    """Stop an update that is under way, or else go back to the previous model."""
    _print_bundle(call(load_config(config).control_socket, "rollback"), as_json=as_json)


@click.command()
@_json
@click.pass_obj
def sync(config: Path | None, as_json: bool) -> None:
    """Look for a job and report everything now."""
    found = call(load_config(config).control_socket, "sync", timeout_s=15)
    if as_json:
        print_json({"schema": "edgepack.agent.sync/v1"} | found)
    else:
        click.echo("asked the fleet" if found["connected"] else "no link; will be done later")


@click.command()
@click.option(
    "--for",
    "duration",
    default="2h",
    show_default=True,
    metavar="TIME",
    help="How long, e.g. 90s, 30m, 2h, 1d; 7d at most.",
)
@click.option("--reason", default="", help="Told to the fleet.")
@_json
@click.pass_obj
def lock(config: Path | None, duration: str, reason: str, as_json: bool) -> None:
    """Say "not now": updates from the fleet wait until the time is over, or `unlock`.

    What has already begun to load goes through; it takes seconds.
    """
    found = _ask(config, "lock", for_s=_seconds(duration), reason=reason)
    _print_lock(found, as_json=as_json)


@click.command()
@_json
@click.pass_obj
def unlock(config: Path | None, as_json: bool) -> None:
    """Take `lock` back."""
    _print_lock(_ask(config, "unlock"), as_json=as_json)


@click.command()
@click.option("--reason", default="", help="Told to the fleet.")
@_json
@click.pass_obj
def pin(config: Path | None, reason: str, as_json: bool) -> None:
    """Stay with the model that runs: jobs of the fleet are rejected until `unpin`."""
    _print_pinned(_ask(config, "pin", reason=reason), as_json=as_json)


@click.command()
@_json
@click.pass_obj
def unpin(config: Path | None, as_json: bool) -> None:
    """Take `pin` back: the next job of the fleet is taken."""
    _print_pinned(_ask(config, "unpin"), as_json=as_json)


def _ask(config: Path | None, command: str, **args: Any) -> dict[str, Any]:
    return call(load_config(config).control_socket, command, timeout_s=15, args=args)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([smhd]?)", text.strip())
    if found is None:
        raise UsageError(
            f"{text!r} is no duration", fix="say 90s, 30m, 2h or 1d", reason="bad_duration"
        )
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2] or "s"]


def _print_lock(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({"schema": "edgepack.agent.lock/v1"} | found)
    elif "until" in found:
        at = datetime.fromtimestamp(found["until"]).astimezone()
        click.echo(f"updates wait until {at:%Y-%m-%d %H:%M %Z}")
    elif found["locked"]:
        click.echo(f"still inhibited by {', '.join(found['inhibitors'])}")
    else:
        click.echo("updates are welcome")


def _print_pinned(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({"schema": "edgepack.agent.pin/v1"} | found)
    elif found["pinned"]:
        click.echo(f"this device stays with {found['bundle']}")
    else:
        click.echo("this device takes the models of its fleet")


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_json
@click.pass_obj
def export(config: Path | None, file: Path, as_json: bool) -> None:
    """Write to FILE what waits for the fleet, to be carried there where there is no link.

    The reports are signed by this device; nothing else of it leaves, and no image or tensor. They
    wait here until the fleet says that it has them: what arrives twice counts once.

    \b
    Example:
        edgepack-agent export /media/stick/cam-1.json
        edgepack fleet devices import /media/stick/cam-1.json
    """
    socket = load_config(config).control_socket
    part = file.with_name(f".{file.name}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            found = call(socket, "export", handle, timeout_s=60)
        finally:
            os.close(handle)
        part.replace(file)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"cannot write {file}", why=why, reason="unwritable") from error
    finally:
        part.unlink(missing_ok=True)
    if as_json:
        print_json({"schema": "edgepack.agent.exported/v1", "file": str(file)} | found)
    else:
        click.echo(f"{found['rows']} rows in {file}; carry it to the fleet")


def _print_bundle(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({"schema": "edgepack.agent.bundle/v1"} | found)
    else:
        click.echo(f"this device runs {found['bundle']}")


def _waits(found: dict[str, Any]) -> str:
    held, pinned, lock = found["deferred"], found["pinned"], found["lock"]
    words = [f"waits: {held['reason']}"] if held else []
    words += [f"pinned: {pinned}"] if pinned else []
    words += [f"locked: {lock['reason']}"] if lock else []
    return f" ({'; '.join(words)})" if words else ""


def _spent(found: dict[str, Any]) -> str:
    used = found.get("telemetry")
    if not used:
        return ""
    waits = "telemetry waits: " if used["waits"] else ""
    return f" ({waits}{used['today_kb']} of {used['max_kb_per_day']:g} kB sent today)"


def _rows(found: dict[str, Any]) -> list[tuple[str, Any]]:
    job, previous = found["job"], found["previous"]
    return [
        ("device", f"{found['device']} ({found['group']})"),
        ("fleet", "connected" if found["connected"] else "not connected"),
        ("bundle", found["bundle"] or "none"),
        ("serving", found["serving"] or f"nothing {found['trouble']}"),
        ("previous", previous["bundle"] if previous else "none"),
        ("update", f"{found['phase']} {job['release'] if job else ''}{_waits(found)}"),
        ("outbox", f"{found['outbox']['rows']} rows not confirmed yet{_spent(found)}"),
        ("memory", f"{found['rss_mb']} MB"),
        *(("camera", f"{name}: {_camera(facts)}") for name, facts in found["cameras"].items()),
        *(("alarm", f"{feature} drifts: edgepack-agent drift") for feature in _drifting(found)),
    ]


def _camera(facts: dict[str, Any]) -> str:
    if not facts["online"]:
        age = facts["last_frame_age_s"]
        seen = "no frame yet" if age is None else f"last frame {age:g} s ago"
        return f"{facts['reason'].replace('_', ' ')}, {seen}"
    slowed = ", slowed down because it is hot" if facts["slowed_down"] else ""
    return f"{facts['fps']:g} frames/s{slowed}"


def _drifting(found: dict[str, Any]) -> list[str]:
    return list((found["drift"] or {}).get("alarms", ()))
