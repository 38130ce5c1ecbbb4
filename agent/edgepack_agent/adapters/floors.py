"""What a device remembers so that nothing it trusts ever goes back. Verifies nothing itself.

Three kinds of floor, each of which only rises: the version of every metadata role, the epoch
of every model line, and time. A role's floor is kept under the keys it was signed with, so
that a root that changes these keys also lifts a floor that a thief drove too high.

Kept in two copies, written one after the other and merged on reading: losing one costs nothing.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from edgepack.durable import write_file
from edgepack.manifest import Count
from edgepack.trust import TrustError

__all__ = ["BUILD_TIME", "SKEW", "Floors"]

BUILD_TIME = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
"""No device runs this agent before then, whatever its clock says."""
SKEW = timedelta(hours=1)
"""How far the clocks of device and fleet may differ before it is called an error."""


class _State(msgspec.Struct, kw_only=True):
    v: int = 1
    roles: dict[str, Count] = {}
    epochs: dict[str, Count] = {}
    time: Count = BUILD_TIME


class Floors:
    """The floors of one device, in the file PATH and a copy beside it.

    Raises:
        TrustError: both files are unreadable (reason `floors_unreadable`).
    """

    def __init__(self, path: Path) -> None:
        self._files = (path, path.with_name(f"{path.name}.copy"))
        self._state = _merged(self._files)

    def role(self, role: str) -> int:
        """Return the lowest version that ROLE may have."""
        return self._state.roles.get(role, 0)

    def epoch(self, line: str) -> int:
        """Return the lowest epoch a model of LINE may have on this device."""
        return self._state.epochs.get(line, 0)

    def raise_seen(self, roles: Mapping[str, int], issued: int) -> None:
        """Remember the versions of verified ROLES, and ISSUED, the newest signed Unix time.

        Raises:
            OSError: the floors cannot be written; they are as they were.
        """
        state = _State(
            roles={**self._state.roles, **{r: max(v, self.role(r)) for r, v in roles.items()}},
            epochs=self._state.epochs,
            time=max(self._state.time, issued),
        )
        self._save(state)

    def confirm(self, line: str, epoch: int) -> None:
        """Raise the epoch floor of LINE, after a model of EPOCH was committed.

        Raises:
            OSError: the floors cannot be written; they are as they were.
        """
        epochs = {**self._state.epochs, line: max(epoch, self.epoch(line))}
        self._save(_State(roles=self._state.roles, epochs=epochs, time=self._state.time))

    def check_clock(self, now: datetime, issued: int = 0) -> None:
        """Check that NOW can be the time, given the floor and ISSUED, a signed Unix time.

        A time signed in our future is not believed either: it must not raise the floor,
        or one forged signature would stop the device for good.

        Raises:
            TrustError: the clock is behind (reason `clock`).
        """
        floor = max(self._state.time, issued)
        if now.timestamp() + SKEW.total_seconds() < floor:
            raise TrustError(
                "clock",
                "the clock of this device is behind",
                why=f"it says {now:%Y-%m-%d %H:%M} UTC; it is at least "
                f"{datetime.fromtimestamp(floor, UTC):%Y-%m-%d %H:%M}",
                fix="set the clock; updates wait until then, inference goes on",
            )

    def _save(self, state: _State) -> None:
        if state != self._state:
            for path in self._files:
                write_file(path, json.dumps(msgspec.to_builtins(state), sort_keys=True).encode())
            self._state = state


def _merged(files: tuple[Path, ...]) -> _State:
    contents = [path.read_bytes() for path in files if path.exists()]
    states = [state for state in map(_read, contents) if state is not None]
    if contents and not states:
        raise TrustError(
            "floors_unreadable",
            "the record of what this device has seen is damaged",
            why=f"neither {files[0]} nor its copy can be read",
            fix="enrol the device again",
        )
    return _State(
        roles=_highest([state.roles for state in states]),
        epochs=_highest([state.epochs for state in states]),
        time=max([BUILD_TIME, *(state.time for state in states)]),
    )


def _read(data: bytes) -> _State | None:
    try:
        return msgspec.json.decode(data, type=_State)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _highest(maps: list[dict[str, int]]) -> dict[str, int]:
    names = {name for each in maps for name in each}
    return {name: max(each.get(name, 0) for each in maps) for name in names}
