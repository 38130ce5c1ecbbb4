"""What has happened, in words: one sentence each, from what devices and people have said.

What a device says is its own: any of it may be missing, or of another kind than expected.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = [
    "UNDER_WAY",
    "Happening",
    "Kind",
    "Tone",
    "grouped",
    "merged",
    "of_audit",
    "of_change",
    "of_event",
    "of_job",
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


EVENTS: dict[str, tuple[Kind, Tone, str]] = {
    "activated": ("model", "good", "Runs {bundle} now"),
    "rejected": ("model", "bad", "Refused {bundle}"),
    "rolled_back": ("model", "bad", "Went back to {bundle}"),
    "recovered": ("model", "warn", "Recovered after a fault, with {bundle}"),
    "drift": ("drift", "warn", "{reason} drifts"),
    "drift_over": ("drift", "good", "{reason} does not drift any more"),
    "camera": ("device", "warn", "A camera changed its state"),
    "inventory": ("device", "plain", "Told what it is made of"),
}
"""Kind, tone and sentence by type of event; of other types the type itself is the sentence."""

CHANGES: dict[str, tuple[Kind, Tone, str]] = {
    "edgepack.device.enrolled": ("device", "good", "Enrolled in {group}"),
    "edgepack.device.online": ("link", "plain", "Connected"),
    "edgepack.device.offline": ("link", "warn", "Connection ended"),
    "edgepack.device.bundle": ("model", "plain", "Reports {bundle}"),
    "edgepack.device.revoked": ("device", "bad", "Was revoked"),
    "edgepack.rollout.created": ("update", "plain", "{release} to {group} was created"),
    "edgepack.rollout.state": ("update", "plain", "{release} to {group} is {state}"),
    "edgepack.rollout.progress": ("update", "plain", "{release} to {group}"),
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
UNDER_WAY = frozenset({"QUEUED", "IN_PROGRESS"})
"""States of an update that are not its end."""
STATES: dict[str, Tone] = {"paused": "warn", "cancelled": "warn", "reverting": "warn",
                           "reverted": "warn", "completed": "good"}  # fmt: skip


def of_event(at: float, kind: str, body: Facts, *, signed: bool = False) -> Happening:
    """Return what a device said has happened on it."""
    sort, tone, text = EVENTS.get(kind, ("device", "plain", kind.replace("_", " ").capitalize()))
    reason = _word(body.get("reason"))
    told = "{reason}" in text
    said = _filled(
        text, {"bundle": body.get("bundle") or "a model", "reason": reason or "Something"}
    )
    return Happening(at, sort, tone, said, "" if told else reason, signed=signed)


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
    return Happening(at, sort, tone, _filled(text, {**data, "state": state}),
                     _word(data.get("reason")), subject)  # fmt: skip


def of_job(job: Facts) -> list[Happening]:
    """Return the beginning and the latest word of the update of one device.

    JOB has `release`, `status`, `state`, `reason`, `rollout`, `kind`, `attempt`, `created`,
    `updated`.
    """
    subject = f"rollouts/{job['rollout']}"
    what = (
        f"{job['release']}" if job["kind"] == "install" else f"The way back from {job['release']}"
    )
    again = f", attempt {job['attempt']}" if job["attempt"] > 1 else ""
    begun = Happening(job["created"], "update", "plain", f"{what} was offered{again}", "", subject)
    if job["status"] == "QUEUED":
        return [begun]
    tone, word = JOBS.get(job["status"], ("plain", str(job["status"]).lower()))
    where = _word(job["state"]).replace("_", " ") if job["status"] == "IN_PROGRESS" else ""
    more = _word(job["reason"]) or where
    return [begun, Happening(job["updated"], "update", tone, f"{what} {word}", more, subject)]


def of_audit(at: float, who: str, action: str, status: int, reason: str) -> Happening:
    """Return what somebody did, or tried to do."""
    done = status < 400
    deed = action.replace("_", " ")
    text = f"{who}: {deed}" if done else f"{who} was refused: {deed}"
    return Happening(at, "people", "plain" if done else "warn", text, "" if done else reason)


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
    return (one.kind, one.tone, one.text) == (other.kind, other.tone, other.text)


def _line(one: Happening, subjects: Sequence[str]) -> Happening:
    name = subjects[0].partition("/")[2]
    others = len(set(subjects)) - 1
    if not subjects[0].startswith("devices/"):
        return one
    more = f" and {others} more" if others else ""
    return replace(one, text=f"{name}{more}: {one.text[:1].lower()}{one.text[1:]}")


def merged(found: Sequence[Happening], limit: int) -> list[Happening]:
    """Return the newest of what was FOUND, newest first, at most LIMIT."""
    return sorted(found, key=lambda h: h.at, reverse=True)[:limit]


def _word(value: Any) -> str:
    return value[:LONGEST] if isinstance(value, str) else ""


def _filled(text: str, facts: Facts) -> str:
    """Return TEXT with the FACTS it names; a dash stands for what is no text."""
    return _NAME.sub(lambda found: _word(facts.get(found[1])) or DASH, text)
