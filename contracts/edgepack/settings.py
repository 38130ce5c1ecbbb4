"""What a fleet may set on its devices: the keys, their values, the signed document. Does no I/O.

Only what makes a device tell less, fetch slower or later, or log more to itself. Never keys,
addresses, trust, sources of pictures, or what leaves the device beyond what it says by itself.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from edgepack.errors import IntegrityError, UsageError
from edgepack.messages import Count, Window

__all__ = ["KEYS", "MAX_DOCUMENT", "SETTINGS", "Settings", "check_settings", "read_settings"]

SETTINGS = "x-edgepack-settings"
"""Field of the director's targets: the settings of the one device they are for."""
MAX_DOCUMENT = 8192
"""Bytes of JSON that the values of one device may have."""

_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
_Seconds = Annotated[float, msgspec.Meta(ge=1, le=86400)]
KEYS: dict[str, tuple[Any, str]] = {
    "telemetry.level": (Literal["off", "health", "metrics"], "how much of inference is told"),
    "telemetry.interval_s": (_Seconds, "seconds of a row of telemetry"),
    "telemetry.max_kb_per_day": (_Positive | None, "then telemetry waits; null: any number"),
    "poll_s": (_Seconds, "seconds between two looks for a job"),
    "transfer.max_kbps": (_Positive | None, "kilobits per second that files may take; null: all"),
    "transfer.min_kbps": (
        Annotated[float, msgspec.Meta(ge=0, le=1e9)], "slower than this counts as no link",
    ),
    "update.windows": (
        Annotated[tuple[Window, ...], msgspec.Meta(max_length=20)], "when updates are welcome",
    ),
    "update.min_battery": (
        Annotated[float, msgspec.Meta(ge=0, le=100)], "percent below which updates wait",
    ),
    "update.max_p95_ratio": (_Positive | None, "how much slower a new model may be; null: any"),
    "cameras.max_fps": (
        Annotated[float, msgspec.Meta(gt=0, le=240)] | None, "of every camera; null: its own",
    ),
    "log_level": (Literal["debug", "info", "warning", "error"], "what the device logs to itself"),
}  # fmt: skip
"""Every key that can be set from afar, as in the agent's configuration: its values, its meaning."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a device is to be set to: value by dotted key; what is not in it, the device decides."""

    version: Count
    values: dict[str, Any] = msgspec.field(default_factory=dict)


def check_settings(values: Mapping[str, Any]) -> None:
    """Check that VALUES, by dotted key, can be set from afar.

    Raises:
        UsageError: one cannot (reason `bad_settings`).
    """
    for key, value in values.items():
        if key not in KEYS:
            raise _bad(f"{key[:100]!r} cannot be set from afar", f"the keys are {', '.join(KEYS)}")
        try:
            msgspec.convert(value, KEYS[key][0])
        except msgspec.ValidationError as error:
            raise _bad(f"{key} cannot be that", str(error)) from error
    size = len(msgspec.json.encode(dict(values)))
    if size > MAX_DOCUMENT:
        raise _bad("these are too many settings", f"{size} bytes, at most {MAX_DOCUMENT}")


def read_settings(raw: Any) -> Settings | None:
    """Return the settings in the director's field RAW; None: it has none.

    The values are not checked: a newer fleet may know more keys.

    Raises:
        IntegrityError: it holds something else (reason `bad_metadata`).
    """
    if raw is None:
        return None
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise IntegrityError(
            "the director's settings cannot be read", why=str(error), reason="bad_metadata"
        ) from error


def _bad(what: str, why: str) -> UsageError:
    return UsageError(what, why=why, reason="bad_settings")
