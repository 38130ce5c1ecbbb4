"""What plain `edgepack-agent status` says, line by line. Asks nobody."""

from collections.abc import Iterator
from typing import Any

__all__ = ["rows"]


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of each line about the status FOUND; sources and alarms come last."""
    job, previous = found["job"], found["previous"]
    lines = [
        ("device", f"{found['device']} ({found['group']})"),
        ("fleet", "connected" if found["connected"] else "not connected"),
        ("bundle", found["bundle"] or "none"),
        ("serving", found["serving"] or f"nothing {found['trouble']}"),
        ("previous", previous["bundle"] if previous else "none"),
        ("update", f"{found['phase']} {job['release'] if job else ''}{_waits(found)}"),
        ("outbox", f"{found['outbox']['rows']} rows not confirmed yet{_spent(found)}"),
        ("memory", f"{found['rss_mb']} MB"),
    ]
    lines += [("camera", f"{name}: {_camera(how)}") for name, how in found["cameras"].items()]
    folders = found.get("folders", {})  # an agent that has not been started anew tells of none
    lines += [("folder", f"{name}: {_folder(how)}") for name, how in folders.items()]
    return lines + [("alarm", told) for told in _alarms(found)]


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


def _camera(how: dict[str, Any]) -> str:
    age = how["last_frame_age_s"]
    words = ["online" if how["online"] else how["reason"].replace("_", " ")]
    words += [f"{how['fps']:g} frames/s"] if how["online"] else []
    words += ["no frame yet" if age is None else f"last frame {age:g} s ago"]
    words += ["slowed down, it is too hot"] if how["slowed_down"] else []
    return ", ".join(words)


def _folder(how: dict[str, Any]) -> str:
    words = [] if how["online"] else [how["reason"]]
    words += [f"{how['pictures']} pictures seen"]
    words += [f"{how['failed']} could not be used"] if how["failed"] else []
    return ", ".join(words)


def _alarms(found: dict[str, Any]) -> Iterator[str]:
    for feature in (found["drift"] or {}).get("alarms", ()):
        yield f"{feature} drifts: edgepack-agent drift"
    if found["serving"] and found["trouble"]:
        yield f"{found['bundle']} does not serve: {found['trouble']}"
    if trouble := found["certificate"]["trouble"]:
        yield f"no new certificate, {trouble['reason']}: edgepack-agent doctor"
