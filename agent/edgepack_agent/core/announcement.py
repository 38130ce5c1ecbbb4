"""What a site's own broker is told of a device, in the forms that its programs know. Pure.

Topics follow Frigate's: `PREFIX/DEVICE/available`, `.../stats`, `.../CAMERA/status`. Home Assistant
finds the device by one retained message (device discovery, since 2024.11) and shows the model as
an `update`.

Sources: home-assistant.io/integrations/mqtt (discovery), /integrations/update.mqtt,
/integrations/binary_sensor.mqtt, /integrations/sensor.mqtt.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["INSTALL", "Names", "discovery", "messages"]

INSTALL = "install"
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

    @property
    def config(self) -> str:
        """Topic of the discovery message."""
        return f"{self.discovery_prefix}/device/{plain(self.device)}/config"

    @property
    def born(self) -> str:
        """Topic on which Home Assistant says that it has started."""
        return f"{self.discovery_prefix}/status"


def plain(name: str) -> str:
    """Return NAME as it may stand in an identifier or a topic of Home Assistant."""
    return _UNSAFE.sub("_", name)


def discovery(names: Names, agent: str, status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the device discovery payload.

    Args:
        names: Topics.
        agent: Version of the agent.
        status: What `edgepack-agent status` says.
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
        key = plain(camera)
        parts[f"camera_{key}"] = {
            "p": "binary_sensor", "name": camera, "device_class": "connectivity",
            "state_topic": f"{names.base}/{key}/status",
            "payload_on": "online", "payload_off": "offline",
        }  # fmt: skip
        parts[f"fps_{key}"] = _sensor(f"{camera} rate", names, f"fps_{key}", "fps")
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


def _sensor(name: str, names: Names, key: str, unit: str, kind: str = "") -> dict[str, Any]:
    found = {
        "p": "sensor", "name": name, "state_topic": f"{names.base}/stats",
        "value_template": f"{{{{ value_json.{key} }}}}", "unit_of_measurement": unit,
        "state_class": "measurement", "entity_category": "diagnostic",
    }  # fmt: skip
    return found | ({"device_class": kind} if kind else {})


def messages(names: Names, status: Mapping[str, Any]) -> dict[str, str]:
    """Return what STATUS, of `edgepack-agent status`, is told as, by topic."""
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
        f"{names.base}/{plain(name)}/status": "online" if told.get("online") else "offline"
        for name, told in cameras.items()
    }
    return {
        f"{names.base}/stats": json.dumps(stats),
        f"{names.base}/update/state": json.dumps(update),
        **states,
    }
