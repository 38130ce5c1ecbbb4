"""What a site's own broker is told of a device, in the forms that its programs know. Pure.

Topics follow Frigate's: `PREFIX/DEVICE/available`, `.../stats`, `.../camera/NAME/status`. Home
Assistant finds the device by one retained message (device discovery, since 2024.11) and shows the
model as an `update`.

Sources: home-assistant.io/integrations/mqtt (discovery), /integrations/update.mqtt,
/integrations/binary_sensor.mqtt, /integrations/sensor.mqtt, /integrations/event.mqtt,
/integrations/image.mqtt.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack_agent.core.sightings import Seen
from edgepack_agent.core.tidings import Tiding

__all__ = [
    "INSTALL", "NOTHING", "Names", "Sights", "discovery", "messages", "plain", "sighting",
]  # fmt: skip

INSTALL = "install"
_UNQUOTED = re.compile(r"[^A-Za-z0-9 _-]")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Names:
    """Where things are told."""

    device: str
    prefix: str = "edgepack"
    discovery_prefix: str = "homeassistant"

    @property
    def base(self) -> str:
        """Topic below which everything about the device is."""
        return f"{self.prefix}/{self.device}"

    @property
    def available(self) -> str:
        """Topic of `online` and `offline`; also that of the will."""
        return f"{self.base}/available"

    @property
    def command(self) -> str:
        """Topic that takes `INSTALL`: look for an update now."""
        return f"{self.base}/update/set"

    def camera(self, name: str, what: str) -> str:
        """Return the topic for WHAT of the camera NAME."""
        return f"{self.base}/camera/{plain(name)}/{what}"

    @property
    def config(self) -> str:
        """Topic of the discovery message."""
        return f"{self.discovery_prefix}/device/{plain(self.device)}/config"

    @property
    def born(self) -> str:
        """Topic on which Home Assistant says that it has started."""
        return f"{self.discovery_prefix}/status"


@dataclass(frozen=True, slots=True)
class Sights:
    """What is told of what cameras see."""

    labels: tuple[str, ...] | None = ()
    """None: all; (): nothing is told."""
    pictures: bool = False
    """Whether snapshots are, too."""

    @property
    def told(self) -> bool:
        """Whether anything is."""
        return self.labels != ()


NOTHING = Sights()


def plain(name: str) -> str:
    """Return NAME as it may stand in an identifier or a topic of Home Assistant."""
    return _UNSAFE.sub("_", name)


def discovery(
    names: Names, agent: str, status: Mapping[str, Any], sights: Sights = NOTHING
) -> dict[str, Any]:
    """Return the device discovery payload.

    Args:
        names: Topics.
        agent: Version of the agent.
        status: What `edgepack-agent status` says.
        sights: What is told of what cameras see.
    """
    own = plain(names.device)
    parts: dict[str, dict[str, Any]] = {
        "model": {
            "p": "update", "name": "Model", "state_topic": f"{names.base}/update/state",
            "command_topic": names.command, "payload_install": INSTALL,
        },
        "memory": _sensor("Memory", names, "rss_mb", "MiB", "data_size"),
    }  # fmt: skip
    for camera in status.get("cameras", {}):
        parts |= _camera(names, camera) | (_sights(names, camera, sights) if sights.told else {})
    for key, part in parts.items():
        part["unique_id"] = f"{own}_{key}"
    return {
        "dev": {
            "ids": [f"edgepack_{own}"], "name": names.device, "mf": "edgepack",
            "mdl": "edge device", "sw": agent,
        },
        "o": {"name": "edgepack", "sw": agent},
        "availability": [{"topic": names.available}],
        "cmps": parts,
    }  # fmt: skip


def _camera(names: Names, camera: str) -> dict[str, dict[str, Any]]:
    key = plain(camera)
    connected = {
        "p": "binary_sensor", "name": camera, "device_class": "connectivity",
        "state_topic": names.camera(camera, "status"),
        "payload_on": "online", "payload_off": "offline",
    }  # fmt: skip
    rate = _sensor(f"{camera} rate", names, f"fps_{key}", "fps")
    return {f"camera_{key}": connected, f"fps_{key}": rate}


def _sights(names: Names, camera: str, sights: Sights) -> dict[str, dict[str, Any]]:
    key, objects = plain(camera), names.camera(camera, "objects")
    parts: dict[str, dict[str, Any]] = {
        f"seen_{key}": {
            "p": "binary_sensor", "name": f"{camera} sees something", "device_class": "occupancy",
            "state_topic": objects, "value_template": "{{ 'ON' if value_json else 'OFF' }}",
            "json_attributes_topic": objects,
        },
        f"objects_{key}": {
            "p": "sensor", "name": f"{camera} objects", "state_topic": objects,
            "value_template": "{{ value_json.values() | sum }}", "state_class": "measurement",
        },
        f"events_{key}": {
            "p": "event", "name": f"{camera} events", "event_types": ["new", "end"],
            "state_topic": names.camera(camera, "events"),
        },
    }  # fmt: skip
    if sights.pictures:
        parts[f"snapshot_{key}"] = {
            "p": "image", "name": f"{camera} snapshot", "content_type": "image/jpeg",
            "image_topic": names.camera(camera, "snapshot"),
        }  # fmt: skip
    for label in sights.labels or ():
        # Of one length, so that no camera and label are called as two others together.
        parts[f"label_{key}_{zlib.crc32(label.encode()):08x}"] = {
            "p": "binary_sensor", "name": f"{camera} {label}", "device_class": "occupancy",
            "state_topic": objects,
            "value_template": f"{{{{ 'ON' if {_quoted(label)} in value_json else 'OFF' }}}}",
        }  # fmt: skip
    return parts


def _quoted(text: str) -> str:
    """Return TEXT as a literal of Jinja, whatever is in it."""
    escaped = _UNQUOTED.sub(lambda found: f"\\U{ord(found[0]):08x}", text)
    return f"'{escaped}'"


def _sensor(name: str, names: Names, key: str, unit: str, kind: str = "") -> dict[str, Any]:
    found = {
        "p": "sensor", "name": name, "state_topic": f"{names.base}/stats",
        "value_template": f"{{{{ value_json.{key} }}}}", "unit_of_measurement": unit,
        "state_class": "measurement", "entity_category": "diagnostic",
    }  # fmt: skip
    return found | ({"device_class": kind} if kind else {})


def messages(
    names: Names,
    status: Mapping[str, Any],
    objects: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, str]:
    """Return what is told of a device and kept by the broker, by topic.

    Args:
        names: Topics.
        status: What `edgepack-agent status` says.
        objects: By name of a camera, by label: how many are there; None: it is not told.
    """
    cameras = status.get("cameras", {})
    job, bundle = status.get("job") or {}, status.get("bundle") or ""
    title, _, installed = bundle.partition("@")
    latest = str(job.get("release", bundle)).partition("@")[2] or installed
    stats = {
        "bundle": bundle or None,
        "digest": status.get("digest"),
        "phase": status.get("phase"),
        "rss_mb": status.get("rss_mb"),
        "drift": (status.get("drift") or {}).get("alarms", []),
    } | {f"fps_{plain(name)}": told.get("fps") for name, told in cameras.items()}
    update = {"installed_version": installed or None, "latest_version": latest or None,
              "title": title or None, "in_progress": bool(job)}  # fmt: skip
    states = {
        names.camera(name, "status"): "online" if told.get("online") else "offline"
        for name, told in cameras.items()
    }
    if objects is not None:
        # Of a camera that says nothing yet, an agent before this one may have left something.
        seen: dict[str, Mapping[str, int]] = {name: {} for name in cameras}
        seen |= objects
        states |= {names.camera(name, "objects"): json.dumps(seen[name]) for name in seen}
    return {
        f"{names.base}/stats": json.dumps(stats),
        f"{names.base}/update/state": json.dumps(update),
        **states,
    }


def sighting(names: Names, seen: Seen, tiding: Tiding) -> dict[str, Any]:
    """Return what TIDING, of what is SEEN, is told as."""
    found = tiding.sighting
    return {
        "event_type": tiding.kind,
        "id": seen.ident(found),
        "device": names.device,
        "camera": seen.camera,
        "label": found.label,
        "score": found.score,
        "top_score": found.top_score,
        "box": found.box,
        "start_time": round(found.start, 3),
        "end_time": None if found.end is None else round(found.end, 3),
        "snapshot": found.snapshot or None,
        "digest": seen.digest,
    }
