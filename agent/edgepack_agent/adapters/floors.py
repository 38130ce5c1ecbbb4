"""What a device remembers so that nothing it trusts ever goes back. Verifies nothing itself.

Three kinds of floor, each of which only rises: the version of every metadata role, the epoch
of every model line, and time. A role's floor is kept under the keys it was signed with, so
that a root that changes these keys also lifts a floor that a thief drove too high.

It also keeps the last word of a line's publisher about models that are installed, so that a
revocation holds after a reboot and without a network. That word may change either way: it
comes from metadata whose version cannot go back.

Kept in two copies, written one after the other and merged on reading: losing one costs nothing.
Below the JSON stands its SHA-256: a bit flipped in a number would refuse everything for good.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edgepack.durable import write_file
from edgepack.manifest import Count
from edgepack.trust import OnRevoked, Standing, TrustError

__all__ = ["BUILD_TIME", "SKEW", "Floors"]

BUILD_TIME = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
"""No device runs this agent before then, whatever its clock says."""
_LATEST = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
SKEW = timedelta(hours=1)
"""How far the clocks of device and fleet may differ before it is called an error."""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    min_epoch: Count = 0
    on_revoked: OnRevoked = "keep"


class _State(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    seq: Count = 0
    """Counts the writes: of two copies that differ, the higher is the later."""
    roles: dict[str, Count] = {}
    epochs: dict[str, Count] = {}
    lines: dict[str, _Line] = {}
    time: Annotated[int, msgspec.Meta(ge=0, le=_LATEST)] = BUILD_TIME


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
        return max(self._state.epochs.get(line, 0), self.standing(line).min_epoch)

    @property
    def time(self) -> int:
        """Unix time that is certainly past."""
        return self._state.time

    def standing(self, line: str) -> Standing:
        """Return what the publisher of LINE said last, as far as this device has heard."""
        said = self._state.lines.get(line, _Line())
        return Standing(line, said.min_epoch, said.on_revoked)

    def raise_seen(
        self, roles: Mapping[str, int], issued: int, standing: Standing | None = None
    ) -> None:
        """Remember what verified metadata says.

        Args:
            roles: Version of every role.
            issued: The newest signed time, Unix seconds.
            standing: Word of a line's publisher; None: none was read.

        Raises:
            OSError: the floors cannot be written; they are as they were.
        """
        lines = dict(self._state.lines)
        if standing is not None:
            lines[standing.line] = _Line(
                min_epoch=standing.min_epoch, on_revoked=standing.on_revoked
            )
        self._save(
            roles={**self._state.roles, **{r: max(v, self.role(r)) for r, v in roles.items()}},
            lines=lines,
            time=max(self._state.time, issued),
        )

    def confirm(self, line: str, epoch: int) -> None:
        """Raise the epoch floor of LINE, after a model of EPOCH was committed.

        Raises:
            OSError: the floors cannot be written; they are as they were.
        """
        confirmed = max(epoch, self._state.epochs.get(line, 0))
        self._save(epochs={**self._state.epochs, line: confirmed})

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
                f"{datetime.fromtimestamp(min(floor, _LATEST), UTC):%Y-%m-%d %H:%M}",
                fix="set the clock; updates wait until then, inference goes on",
            )

    def _save(self, **changes: Any) -> None:
        state = msgspec.structs.replace(self._state, **changes)
        if state != self._state:
            state = msgspec.structs.replace(state, seq=state.seq + 1)
            for path in self._files:
                write_file(path, _written(state))
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
    newest = max(states, key=lambda state: state.seq, default=_State())
    return _State(
        seq=newest.seq,
        lines=newest.lines,
        roles=_highest([state.roles for state in states]),
        epochs=_highest([state.epochs for state in states]),
        time=max([BUILD_TIME, *(state.time for state in states)]),
    )


def _written(state: _State) -> bytes:
    body = json.dumps(msgspec.to_builtins(state), sort_keys=True).encode()
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _read(data: bytes) -> _State | None:
    body, _, digest = data.partition(b"\n")
    # Agents wrote none once.
    if digest and digest.strip() != hashlib.sha256(body).hexdigest().encode():
        return None
    try:
        return msgspec.json.decode(body, type=_State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _highest(maps: list[dict[str, int]]) -> dict[str, int]:
    names = {name for each in maps for name in each}
    return {name: max(each.get(name, 0) for each in maps) for name in names}
