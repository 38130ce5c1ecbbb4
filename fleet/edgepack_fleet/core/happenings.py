"""What has happened, as pages show it: of what kind it is, whether it is good, and a sentence.

What the fleet has noted is put into words here; what happened to a device is by `core.timeline`.
What a device says is its own: any of it may be missing, or of another kind than expected.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgepack_fleet.core.timeline import Entry

__all__ = [
    "UNDER_WAY",
    "Happening",
    "Kind",
    "Tone",
    "grouped",
    "of_change",
    "of_entry",
]

Kind = Literal["model", "update", "link", "drift", "people", "device"]
Tone = Literal["good", "bad", "warn", "plain"]
Facts = Mapping[str, Any]
LONGEST = 200
DASH = "\N{EN DASH}"
_NAME = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened: when, what sort it is of, and a sentence on it."""

    at: float
    """Unix seconds, by the fleet's clock."""
    kind: Kind
    tone: Tone
    text: str
    more: str = ""
    """A reason, or whatever else was said."""
    subject: str = ""
    """`devices/ID` or `rollouts/ID`, as a path."""
    signed: bool = False
    """Whether the device has signed it with its report key."""


EVENTS: dict[str, tuple[Kind, Tone]] = {
    "activated": ("model", "good"),
    "rejected": ("model", "bad"),
    "rolled_back": ("model", "bad"),
    "recovered": ("model", "warn"),
    "drift": ("drift", "warn"),
    "drift_over": ("drift", "good"),
    "camera": ("device", "warn"),
    "revoked": ("device", "bad"),
}
"""Kind and tone by type of event; of other types nothing is said by them."""

CHANGES: dict[str, tuple[Kind, Tone, str]] = {
    "edgepack.device.enrolled": ("device", "good", "Enrolled in {group}"),
    "edgepack.device.online": ("link", "plain", "Connected"),
    "edgepack.device.offline": ("link", "warn", "Connection ended"),
    "edgepack.device.bundle": ("model", "plain", "Reports {bundle}"),
    "edgepack.device.revoked": ("device", "bad", "Was revoked"),
    "edgepack.rollout.created": ("update", "plain", "{release} to {group} was created"),
    "edgepack.rollout.state": ("update", "plain", "{release} to {group} is {state}"),
    "edgepack.rollout.progress": ("update", "plain", "{release} to {group}"),
    "edgepack.applicant.state": ("device", "plain", "{name} asks to join {group}: {state}"),
    "edgepack.alert.firing": ("drift", "bad", "Alert {rule} fires"),
    "edgepack.alert.resolved": ("drift", "good", "Alert {rule} is over"),
    "edgepack.job.status": ("update", "plain", "{release}: {status}"),
}
JOBS: dict[str, tuple[Tone, str]] = {
    "QUEUED": ("plain", "waits for the device"),
    "IN_PROGRESS": ("plain", "is under way"),
    "SUCCEEDED": ("good", "succeeded"),
    "FAILED": ("bad", "failed"),
    "REJECTED": ("bad", "was refused"),
    "TIMED_OUT": ("bad", "timed out"),
    "CANCELED": ("plain", "was cancelled"),
}
_SORTS: dict[str, Kind] = {"connection": "link", "job": "update", "audit": "people"}
UNDER_WAY = frozenset({"QUEUED", "IN_PROGRESS"})
"""States of an update that are not its end."""
STATES: dict[str, Tone] = {"paused": "warn", "cancelled": "warn", "reverting": "warn",
                           "reverted": "warn", "completed": "good"}  # fmt: skip


def of_change(at: float, kind: str, subject: str, data: Facts) -> Happening:
    """Return a change that the fleet has noted."""
    sort, tone, text = CHANGES.get(kind, ("device", "plain", kind.rpartition(".")[2]))
    if kind == "edgepack.job.status":
        status = str(data.get("status"))
        tone, word = JOBS.get(status, ("plain", status.lower()))
        data = {**data, "status": word}
    if kind == "edgepack.rollout.state":
        tone = STATES.get(str(data.get("state")), tone)
    state = _word(data.get("state")).replace("_", " ")
    where = subject if subject.startswith(("devices/", "rollouts/")) else ""
    # Of what was just created nothing is known yet but that somebody must start it, or has.
    more = "" if kind == "edgepack.rollout.created" else _word(data.get("reason"))
    return Happening(at, sort, tone, _filled(text, {**data, "state": state}), more, where)


def of_entry(entry: Entry) -> Happening:
    """Return an ENTRY of a device's timeline as pages show it: with its kind and tone."""
    facts = entry.facts
    kind, subject = _SORTS.get(entry.kind, "device"), ""
    tone: Tone = "plain"
    match entry.kind:
        case "event":
            kind, tone = EVENTS.get(facts["type"], ("device", "plain"))
        case "connection":
            tone = "plain" if facts["online"] else "warn"
        case "job":
            tone = JOBS.get(facts["status"], ("plain", ""))[0]
            subject = f"rollouts/{facts['rollout']}"
    signed = bool(facts.get("verified"))
    return Happening(entry.time, kind, tone, entry.sentence, subject=subject, signed=signed)


def grouped(told: Sequence[tuple[str, Happening]]) -> list[Happening]:
    """Return what was TOLD of subjects, newest first, with what says the same in one line.

    One line names the newest subject and counts the others; it ends where another one begins.
    """
    lines: list[tuple[Happening, list[str]]] = []
    for subject, one in told:
        if lines and _alike(lines[-1][0], one):
            lines[-1][1].append(subject)
        else:
            lines.append((one, [subject]))
    return [_line(one, subjects) for one, subjects in lines]


def _alike(one: Happening, other: Happening) -> bool:
    said = (other.kind, other.tone, other.text, other.more)
    return (one.kind, one.tone, one.text, one.more) == said


def _line(one: Happening, subjects: Sequence[str]) -> Happening:
    name = subjects[0].partition("/")[2]
    others = len(set(subjects)) - 1
    if not subjects[0].startswith("devices/"):
        return one
    more = f" and {others} more" if others else ""
    return replace(one, text=f"{name}{more}: {one.text[:1].lower()}{one.text[1:]}")


def _word(value: Any) -> str:
    return value[:LONGEST] if isinstance(value, str) else ""


def _filled(text: str, facts: Facts) -> str:
    """Return TEXT with the FACTS it names; a dash stands for what is no text."""
    return _NAME.sub(lambda found: _word(facts.get(found[1])) or DASH, text)
