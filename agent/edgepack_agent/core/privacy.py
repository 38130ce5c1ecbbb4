"""What leaves a device, to whom: in words, by key, and as the very message. Pure.

Keys are dotted paths into a message; `*` stands for any name. Those of a site's own broker are
taken from the messages that are made for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from edgepack.messages import (
    BlobRequest,
    CertRequest,
    Conn,
    Event,
    Inventory,
    JobGet,
    JobUpdate,
    MetaRequest,
    Report,
    Telemetry,
)
from edgepack.requests import Answer, RequestGet
from edgepack_agent.core import shadow as compared
from edgepack_agent.core.announcement import NOTHING, Names, Sights, discovery, messages, sighting
from edgepack_agent.core.sightings import Seen, Sighting
from edgepack_agent.core.telemetry import Level, Tally
from edgepack_agent.core.tidings import Tiding, Told

__all__ = ["Privacy", "Recipient", "example", "fleet", "never", "signed", "site"]


class Recipient(msgspec.Struct, frozen=True):
    """Somebody who is told something."""

    to: str | None
    """Address; null: nobody is."""
    leaves: dict[str, str]
    """What, by topic."""
    keys: dict[str, tuple[str, ...]]
    """The keys of the messages, by topic; none: the message is a word."""


class Privacy(msgspec.Struct, frozen=True, kw_only=True):
    """What leaves a device."""

    schema: Literal["edgepack.agent.privacy/v1"] = "edgepack.agent.privacy/v1"
    level: Level
    to: str | None
    """The fleet's broker; null: the device is not enrolled."""
    leaves: dict[str, str]
    """What goes to the fleet, by topic."""
    keys: dict[str, tuple[str, ...]]
    """The keys of those messages, by topic; `*` stands for any name."""
    signed: tuple[str, ...]
    """Keys beside them in a message that is signed."""
    events: Recipient
    """The broker of the site, by `events` of the configuration."""
    never: tuple[str, ...]
    example: dict[str, Any] | None
    """A row of telemetry, of invented counts; null: none is sent."""


def _names(kind: type[msgspec.Struct], *more: str, below: str = "") -> tuple[str, ...]:
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    return tuple(below + name for name in [*names, *more])


_SIGNED = _names(Report)
_FLEET = {
    "up/conn": "that it is online, the agent's version, which model runs, its certificate's number",
    "up/evt": "what happened to models (installed, refused, rolled back), with the reason; "
    "what this machine is: processor, memory, disk, installed runtimes; a "
    "number that all agents of this box have, and no other box",
    "up/job/get": "that it asks for its job",
    "up/job/update": "how far an update is, and how the new model did in its checks",
    "up/req/get": "that it asks what is asked",
    "up/req/answer": "what the fleet has asked for and `remote.answers` allows, at level `off` "
    "only that it is refused: the findings of `doctor`; the newest messages of the agent's log, "
    "without secrets; how fast a model is here",
    "up/meta": "which signed lists of models are wanted",
    "up/blob": "which files of an update are wanted",
    "up/cert": "a request for a new certificate",
    "https": "the same as up/blob and up/cert, where that is the way",
}
_CHECKS = (
    "release", "message", "code", "until", "inferences", "errors", "rss_mb", "p95_ms", "before_ms",
    "limit", "score", "min_score", "samples", "passed", "golden.share", "golden.cosine",
    "golden.passed", "exam.score", "exam.min_score",
)  # fmt: skip
"""Details of an update that has ended, or waits."""
_PATCHES = ("target", "codec", "bytes", "whole", "reason", "why")
_COMPARED = tuple(compared.Seen(reason="too_few").plain())
_DRIFT = ("psi", "p", "n")
_SETTINGS = ("detail.version", "detail.status", "detail.pinned")
_MEASURED = (
    "load_ms", "first_ms", "latency_ms.p50", "latency_ms.p95", "throughput_per_s", "peak_rss_mb",
    "inferences",
)  # fmt: skip
_EFFECTIVE = ("runtime", "version", "precision", "device", "threads", "hint")
_HOST = ("machine", "system", "cpu", "cpus", "memory_mb", "cpu_features")
_ANSWERS = (
    "result.schema", "result.status",
    *(f"result.findings.{name}" for name in ("check", "status", "what", "why", "fix", "code")),
    "result.lines", "result.kept",
    *(f"result.{name}" for name in ("bundle", "digest", "target", "precision", "threads")),
    *(f"result.{before}{name}" for before in ("", "runs.") for name in _MEASURED),
    *(f"result.effective.{name}" for name in _EFFECTIVE),
    *(f"result.host.{name}" for name in _HOST),
)  # fmt: skip
_KEYS = {
    "up/conn": _names(Conn),
    "up/evt": (
        *_names(Event, "detail.override", "detail.policy", *_SETTINGS),
        *(f"detail.{name}" for name in _CHECKS),
        *_names(Inventory, "runtimes.*", below="detail."),
    ),
    "up/job/get": _names(JobGet),
    "up/job/update": (
        *_names(JobUpdate),
        *(f"detail.{name}" for name in _CHECKS),
        *(f"detail.patches.{name}" for name in _PATCHES),
        *(f"detail.shadow.{name}" for name in _COMPARED),
    ),
    "up/req/get": _names(RequestGet),
    "up/req/answer": (*_names(Answer), *_ANSWERS),
    "up/meta": _names(MetaRequest),
    "up/blob": _names(BlobRequest),
    "up/cert": _names(CertRequest),
}
_TELEMETRY: dict[Level, str] = {
    "health": "counts of inferences and of errors by reason; memory, processor, temperature, "
    "seconds in which the processor was slowed",
    "metrics": "counts of inferences, of errors by reason, of decisions by class; histograms of "
    "latency, confidence, and of what drift is judged by (mean, spread, sharpness of inputs); "
    "memory, processor, temperature, seconds in which it was slowed",
}
_METRICS = ("latency_ms", "confidence", "classes", "features")
_SITE = {
    "available": "`online` or `offline`",
    "stats": "which model runs, what the update does, memory, what drifts, frames a second",
    "update": "the installed and the offered version of the model",
    "status": "`online` or `offline`",
    "objects": "how many of each label the camera sees: ",
    "events": "when and where one begins and ends to be seen: ",
    "snapshot": "the annotated picture of each beginning",
    "config": "for Home Assistant: names of device and cameras, the agent's version, these topics",
}
_BEAT = {
    "rss_mb": 61.5,
    "cpu_percent": 12.0,
    "temperature_c": 51.5,
    "throttled": True,
    "stats": {
        "inferences": 3,
        "errors": {"deadline": 1},
        "classes": {"person": 2},
        "latency_ms": {"edges": [5.0, 10.0], "counts": [1, 2, 0]},
        "confidence": {"edges": [0.5], "counts": [1, 2]},
        "values": [["inputs", "image", "mean", [0, 2, 1]]],
    },
}


def fleet(level: Level, to: str | None) -> Recipient:
    """Return what a device with LEVEL sends to its fleet, whose broker is TO."""
    if level == "off":
        return Recipient(to, dict(_FLEET), dict(_KEYS))
    events = f"{_FLEET['up/evt']}; which measure of the model drifts, and how far"
    drift = (*_KEYS["up/evt"], *(f"detail.{name}" for name in _DRIFT))
    leaves = {**_FLEET, "up/evt": events, "up/tele": _TELEMETRY[level]}
    return Recipient(to, leaves, {**_KEYS, "up/evt": drift, "up/tele": _row_keys(level)})


def site(
    names: Names, cameras: Sequence[str], to: str | None, sights: Sights = NOTHING
) -> Recipient:
    """Return what the broker TO of the site is told of a device, whatever the level.

    Args:
        names: Topics.
        cameras: Names of the sources.
        to: Address of the broker; None: none is told.
        sights: What is told of what cameras see.
    """
    if to is None:
        return Recipient(None, {}, {})
    status: dict[str, Any] = {"cameras": {name: {} for name in cameras}}
    made = {topic: _read(payload) for topic, payload in messages(names, status).items()}
    made |= {names.available: None, names.config: discovery(names, "", status, sights)}
    for camera in cameras:
        made |= _sights(names, camera, sights)
    keys = {topic: tuple(sorted(set(_paths(document)))) for topic, document in made.items()}
    return Recipient(to, {topic: _told(names, topic, sights) for topic in made}, keys)


def _sights(names: Names, camera: str, sights: Sights) -> dict[str, Any]:
    """Return what is told of what CAMERA sees, by topic."""
    if not sights.told:
        return {}
    begun = Sighting(1, "", 0.0, 0.0, 0.0)
    event = sighting(names, Seen(camera, "", 0.0), Tiding("new", begun, Told()))
    made = {names.camera(camera, "objects"): {"*": 1}, names.camera(camera, "events"): event}
    return made | ({names.camera(camera, "snapshot"): None} if sights.pictures else {})


def signed() -> tuple[str, ...]:
    """Return the keys that are beside a message that is signed."""
    return _SIGNED


def never() -> tuple[str, ...]:
    """Return what no level sends."""
    return (
        "pictures, frames, tensors, single answers (to the site's broker: what `events` says)",
        "addresses and passwords of cameras",
        "keys, the API's token",
    )


def example(level: Level) -> dict[str, Any] | None:
    """Return a row of telemetry as LEVEL sends it, of invented counts; None: it sends none."""
    if level == "off":
        return None
    tally = Tally("person@1.4.0", "sha256:...", 0.0)
    tally.add(_BEAT)
    row: Telemetry = tally.row("b1c2d3e4f5a60718", 42, 0, end=30.0, level=level)
    found: dict[str, Any] = msgspec.to_builtins(row)
    return found


def _row_keys(level: Level) -> tuple[str, ...]:
    if level == "metrics":
        parts = [f"{name}.{part}" for name in _METRICS[:2] for part in ("edges", "counts")]
        return _names(Telemetry, "errors.*", "classes.*", "features.*", *parts)
    return tuple(name for name in _names(Telemetry, "errors.*") if name not in _METRICS)


def _told(names: Names, topic: str, sights: Sights) -> str:
    known = {names.config: "config", f"{names.base}/update/state": "update"}
    part = known.get(topic) or topic.rpartition("/")[2]
    which = "all labels" if sights.labels is None else ", ".join(sights.labels)
    return _SITE[part] + (which if part in {"objects", "events"} else "")


def _read(payload: str) -> Any:
    return msgspec.json.decode(payload) if payload[:1] == "{" else None


def _paths(document: Any, before: str = "") -> Iterator[str]:
    """Yield the paths of DOCUMENT that lead to a value."""
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield from _paths(value, f"{before}.{name}" if before else name)
    elif isinstance(document, list) and document and isinstance(document[0], Mapping):
        for value in document:
            yield from _paths(value, before)
    elif before:
        yield before
