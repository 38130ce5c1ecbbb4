"""Decisions as they are kept: what went in and what came out, as JSON.

What is kept of a device leaves out its inventory: a decision knows only the variant that was
resolved from it. Fields that have their default are left out.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edgepack_fleet.core.actions import Action
from edgepack_fleet.core.model import Device, Member, Rollout, Wave

__all__ = ["Inputs", "Packed", "actions_as_json", "pack", "unpack"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything a decision depends on."""

    rollout: Rollout
    members: tuple[Member, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Packed:
    """Inputs as they are kept."""

    data: bytes
    """Canonical JSON, compressed with zlib."""
    digest: str
    """SHA-256 of the JSON, in hex."""


def pack(rollout: Rollout, members: Sequence[Member], now: float) -> Packed:
    """Return the inputs of a decision as they are kept."""
    document = {
        "rollout": _short(rollout) | {"waves": [dataclasses.astuple(w) for w in rollout.waves]},
        "members": [_member(m) for m in members],
        "now": now,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return Packed(zlib.compress(text, 6), hashlib.sha256(text).hexdigest())


def unpack(data: bytes) -> Inputs:
    """Return the inputs that `pack` made DATA of.

    Raises:
        ValueError: it is none of that, or of another version of this program.
    """
    try:
        document = json.loads(zlib.decompress(data))
        kept = document["rollout"]
        kept["waves"] = [Wave(*wave) for wave in kept["waves"]]
        waves = tuple(kept.pop("waves"))
        rollout = msgspec.convert(kept | {"waves": []}, Rollout)
        members = msgspec.convert(document["members"], tuple[Member, ...])
        return Inputs(dataclasses.replace(rollout, waves=waves), members, document["now"])
    except (zlib.error, KeyError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"these inputs cannot be read: {error}") from error


def actions_as_json(actions: Sequence[Action]) -> list[dict[str, Any]]:
    """Return ACTIONS as they are kept and shown: `do` names the kind."""
    return [{"do": type(a).__name__.lower(), **dataclasses.asdict(a)} for a in actions]


def _member(member: Member) -> dict[str, Any]:
    device = _short(member.device)
    device.pop("inventory", None)
    return _short(member) | {"device": device}


def _short(value: Rollout | Member | Device) -> dict[str, Any]:
    """Return the fields of VALUE that do not have their default, as JSON."""
    found = {}
    for name, default in _DEFAULTS[type(value)]:
        one = getattr(value, name)
        if one != default:
            built = msgspec.to_builtins(one)
            found[name] = sorted(built) if isinstance(one, frozenset) else built
    return found


_DEFAULTS: dict[type[Any], tuple[tuple[str, Any], ...]] = {
    kind: tuple(
        (f.name, f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(kind)
    )
    for kind in (Rollout, Member, Device)
}
