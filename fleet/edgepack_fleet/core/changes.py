"""What counts as a change that others are told of, and how it is said: CloudEvents 1.0.

Stored, streamed and posted in the same words. Knows no table.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "TYPES",
    "WATCHED",
    "Change",
    "cloud_event",
    "of_alert",
    "of_applicant",
    "of_device",
    "of_job",
    "of_rollout",
]

Change = tuple[str, str, dict[str, Any]]
"""Type, subject and data."""
Facts = Mapping[str, Any]

TYPES: dict[str, str] = {
    "edgepack.rollout.created": "A rollout was created",
    "edgepack.rollout.state": "A rollout is in another state: it paused, completed, was cancelled",
    "edgepack.rollout.progress": "The sentence that says where a rollout stands is another one",
    "edgepack.job.status": "The update of one device is in another status",
    "edgepack.device.enrolled": "A device enrolled",
    "edgepack.device.online": "A device connected",
    "edgepack.device.offline": "A device is not connected any more",
    "edgepack.device.bundle": "A device runs another model",
    "edgepack.device.revoked": "A device was revoked",
    "edgepack.applicant.state": "A device asks to join, or was accepted, rejected or let in",
    "edgepack.alert.firing": "An alert fires, or still fires and nobody has taken it up",
    "edgepack.alert.resolved": "An alert is over",
}
"""Every type, and when it is told."""


WATCHED = ("status", "online", "bundle", "revoked", "state", "reason", "told")
"""Fields of any row of which a change may be told."""


def of_rollout(now: Facts, changed: frozenset[str], *, new: bool) -> Iterator[Change]:
    """Yield what is to be told of a rollout that is NOW so, after the fields CHANGED."""
    data = {name: now[name] for name in ("id", "release", "group", "state", "reason")}
    kind = "created" if new else "state" if "state" in changed else "progress"
    if new or changed & {"state", "reason"}:
        yield f"edgepack.rollout.{kind}", f"rollouts/{now['id']}", data


def of_job(now: Facts, changed: frozenset[str], *, new: bool) -> Iterator[Change]:
    """Yield what is to be told of the update of one device."""
    names = ("id", "device", "rollout", "release", "status", "reason")
    if new or "status" in changed:
        data = {name: now[name] for name in names}
        yield "edgepack.job.status", f"devices/{now['device']}", data


def of_device(now: Facts, changed: frozenset[str], *, new: bool) -> Iterator[Change]:
    """Yield what is to be told of a device."""
    data = {name: now[name] for name in ("id", "group", "online", "bundle")}
    kinds = []
    if new:
        kinds.append("enrolled")
    elif "online" in changed:
        kinds.append("online" if now["online"] else "offline")
    if "bundle" in changed and now["bundle"] is not None:
        kinds.append("bundle")
    if "revoked" in changed and now["revoked"] is not None:
        kinds.append("revoked")
    for kind in kinds:
        yield f"edgepack.device.{kind}", f"devices/{now['id']}", data


def of_applicant(now: Facts, changed: frozenset[str], *, new: bool) -> Iterator[Change]:
    """Yield what is to be told of somebody who asks to become a device."""
    names = ("id", "name", "group", "fingerprint", "state", "deadline")
    if new or "state" in changed:
        data = {name: now[name] for name in names}
        yield "edgepack.applicant.state", f"applicants/{now['id']}", data


def of_alert(now: Facts, changed: frozenset[str]) -> Iterator[Change]:
    """Yield what is to be told of an alert; one that is silent changes without a word."""
    names = ("id", "rule", "severity", "labels", "value", "since", "reason")
    data = {name: now[name] for name in names}
    if now["state"] == "firing" and "told" in changed and now["told"] is not None:
        yield "edgepack.alert.firing", f"alerts/{now['id']}", data
    elif now["state"] == "resolved" and "state" in changed and now["told"] is not None:
        yield "edgepack.alert.resolved", f"alerts/{now['id']}", data


def cloud_event(source: str, number: int, time: float, change: Change) -> dict[str, Any]:
    """Return the CloudEvent (structured mode) of a change.

    Args:
        source: URI of the fleet.
        number: Of the change; it is told under this id for ever.
        time: Unix seconds.
        change: What it is.
    """
    kind, subject, data = change
    moment = datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
    return {
        "specversion": "1.0",
        "id": str(number),
        "source": source,
        "type": kind,
        "subject": subject,
        "time": moment.replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }
