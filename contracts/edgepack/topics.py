"""The MQTT topic tree, built and parsed in this one file. No client, no payloads.

    ep/1/d/{d}/up/conn                retained birth and will of the device
    ep/1/d/{d}/up/tele                telemetry batches
    ep/1/d/{d}/up/evt                 events
    ep/1/d/{d}/up/job/{get|update}    job requests
    ep/1/d/{d}/dn/job/{get|update}/{accepted|rejected}
    ep/1/d/{d}/dn/job/notify          a hint only: server state is the truth
    ep/1/d/{d}/up/req/{get|answer}    what the fleet asks, and the answer
    ep/1/d/{d}/dn/req/{get|answer}/{accepted|rejected}
    ep/1/d/{d}/dn/req/notify          a hint to ask for it
    ep/1/d/{d}/up/cert                request for a new certificate
    ep/1/d/{d}/dn/cert/{accepted|rejected}
    ep/1/d/{d}/dn/cert/notify         a hint to ask for one soon
    ep/1/d/{d}/up/meta                trust metadata request
    ep/1/d/{d}/dn/meta/{xfer}/{i}     its answer: `head`, then blocks 0, 1, ...
    ep/1/d/{d}/up/blob                content request
    ep/1/d/{d}/dn/blob/{xfer}/{i}     its answer: blocks by absolute index, `head` if refused
    ep/1/d/{d}/dn/ack                 what the fleet has committed to its database
    ep/1/g/{g}/dn/hint                "poll within jitter N s"

A device may write `up` and read `dn` under its own id only; the broker's access list says so.
"""

import re
from dataclasses import dataclass

__all__ = [
    "BLOCK_SIZE",
    "DEVICE_ID",
    "PREFIX",
    "UPLINK_FILTER",
    "Uplink",
    "device_filter",
    "down",
    "group_hint",
    "parse_block",
    "parse_up",
    "up",
]

PREFIX = "ep/1"
UPLINK_FILTER = f"{PREFIX}/d/+/up/#"
DEVICE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
BLOCK_SIZE = 64 * 1024
"""Bytes in one block on the wire; fits the packet limits of the common brokers."""


@dataclass(frozen=True, slots=True)
class Uplink:
    """A topic a device wrote: who, and what about (`tele`, `job/get`, ...)."""

    device: str
    kind: str


def up(device: str, kind: str) -> str:
    """Return the topic on which DEVICE says KIND, e.g. `job/get`."""
    return f"{PREFIX}/d/{_checked(device)}/up/{kind}"


def down(device: str, kind: str) -> str:
    """Return the topic on which DEVICE is told KIND, e.g. `job/get/accepted`."""
    return f"{PREFIX}/d/{_checked(device)}/dn/{kind}"


def device_filter(device: str) -> str:
    """Return the filter that matches everything said to DEVICE."""
    return down(device, "#")


def group_hint(group: str) -> str:
    """Return the topic of hints to all devices of GROUP."""
    return f"{PREFIX}/g/{_checked(group)}/dn/hint"


def parse_up(topic: str) -> Uplink | None:
    """Return who wrote TOPIC and what about; None if it is not a device's uplink."""
    parts = topic.removeprefix(f"{PREFIX}/d/").split("/", 2)
    if not topic.startswith(f"{PREFIX}/d/") or len(parts) != 3 or parts[1] != "up":
        return None
    return Uplink(parts[0], parts[2]) if DEVICE_ID.fullmatch(parts[0]) else None


def parse_block(topic: str) -> tuple[str, str, str] | None:
    """Return (`meta` or `blob`, transfer id, block index or `head`) of a downlink TOPIC."""
    parts = topic.split("/")
    if len(parts) != 8 or parts[4] != "dn" or parts[5] not in {"meta", "blob"}:
        return None
    return parts[5], parts[6], parts[7]


def _checked(name: str) -> str:
    if not DEVICE_ID.fullmatch(name):
        raise ValueError(f"not a device or group id: {name!r}")
    return name
