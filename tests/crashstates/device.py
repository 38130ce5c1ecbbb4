"""What a cut leaves of a device, as the agent's own adapters find it. Starts no agent.

`Examiner` opens everything an agent would open, in the same way, and says what it found and what
must never be found, whatever was cut when. `Promises` follows the record of an agent and says,
for every moment, what had been promised by then: what was saved and fsynced is never taken
back, what was not yet saved is never believed.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from crashstates.disk import Disk, Image, materialise
from crashstates.trace import Op
from edgepack.chunks import CHUNK_SIZE
from edgepack.durable import PART
from edgepack.errors import EdgepackError, IntegrityError
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.identity import load_identity
from edgepack_agent.adapters.journal import Journal
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.adapters.partial import Partial
from edgepack_agent.core.state import State
from edgepack_agent.runner.slot import open_slot

__all__ = ["Examiner", "Left", "Promises"]

_STAGED = frozenset({"staged", "self_test", "shadow", "switching", "probation", "committed"})
"""Phases whose candidate is on disk, whole."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a device."""

    state: State | None
    rows: frozenset[tuple[str, int]] = frozenset()
    floors: tuple[tuple[str, int], ...] = ()
    troubles: tuple[str, ...] = ()
    """What must never be found."""


class Examiner:
    """Examines images of a device's data directory.

    What it found out about a journal, a slot, ... it remembers by its content: most cuts differ
    in one of them only.

    Args:
        place: A scratch directory, best in memory.
        contents: Every blob there is, by SHA-256.
    """

    def __init__(self, place: Path, contents: Mapping[str, bytes]) -> None:
        self._place, self._contents = place, contents
        self._known: dict[tuple[str, int], Any] = {}

    def examine(self, image: Image) -> Left:
        """Return what is left in IMAGE."""
        state = self._look("journal", image, ("journal.db",), _state)
        rows = self._look("outbox", image, ("outbox.db",), _rows)
        floors = self._look("floors", image, ("floors.json",), _floors)
        named = self._look("identity", image, ("identity",), _named)
        found = {
            "the journal is lost": state is None,
            "the outbox is lost": rows is None,
            "the floors are lost": floors is None,
            "it does not know who it is": not named,
        }
        troubles = [trouble for trouble, so in found.items() if so]
        troubles += [*self._blobs(image), *self._chunks(image)]
        troubles += self._slots(image, state or State())
        return Left(state, rows or frozenset(), floors or (), tuple(troubles))

    def _look(
        self, name: str, image: Image, prefixes: tuple[str, ...], look: Callable[[Path], Any]
    ) -> Any:
        """Let LOOK see the files of IMAGE whose paths begin with PREFIXES."""
        part = {
            path: entry
            for path, entry in image.items()
            if path.startswith(prefixes) and not path.endswith("-shm")
        }
        key = name, hash(frozenset(part.items()))
        if key not in self._known:
            place = self._place / f"{len(self._known)}"
            materialise(part, place)
            self._known[key] = look(place)
            shutil.rmtree(place)
        return self._known[key]

    def state(self, image: Image) -> State:
        """Return what the journal of IMAGE says."""
        found = self._look("journal", image, ("journal.db",), _state)
        assert isinstance(found, State)
        return found

    def floors(self, image: Image) -> dict[str, int]:
        """Return the floors of IMAGE."""
        return dict(self._look("floors", image, ("floors.json",), _floors) or ())

    def _blobs(self, image: Image) -> Iterator[str]:
        for path, entry in image.items():
            name = path.removeprefix("blobs/")
            wrong = name != path and entry.content != self._contents.get(name)
            if wrong and not name.startswith(PART):
                yield f"the blob {name[:12]} has another content"

    def _chunks(self, image: Image) -> Iterator[str]:
        for path in image:
            if path.endswith(".map"):
                name = Path(path).stem
                files = (f"parts/{name}.",)
                content = self._contents[name]
                wrong = self._look("part", image, files, partial(_wrong_chunks, content=content))
                yield from (f"chunk {chunk} of {name[:12]} is believed" for chunk in wrong)

    def _slots(self, image: Image, state: State) -> Iterator[str]:
        wanted = {"current": state.current}
        if state.phase == "idle":
            wanted["previous"] = state.previous
        if state.phase in _STAGED:
            wanted["candidate"] = state.candidate
        for role, slot in wanted.items():
            if slot is None:
                continue
            there = self._look("slot", image, (f"slots/{slot.name}/",), _digest)
            if there != slot.model.digest:
                yield f"in {state.phase}, the {role} model is not whole in {slot.name}"


def _state(tree: Path) -> State | None:
    journal = Journal(tree / "journal.db")
    journal.close()
    return None if journal.lost else journal.state


def _rows(tree: Path) -> frozenset[tuple[str, int]] | None:
    box = Outbox(tree / "outbox.db")
    try:
        rows = frozenset((boot, seq) for boot, seq, *_ in box._rows(10_000))
        return None if box.lost_database else rows
    finally:
        box.close()


def _floors(tree: Path) -> tuple[tuple[str, int], ...] | None:
    try:
        found = Floors(tree / "floors.json")._state
    except EdgepackError:
        return None
    epochs = {f"epoch {name}": epoch for name, epoch in found.epochs.items()}
    return tuple(sorted({**found.roles, **epochs, "time": found.time}.items()))


def _named(tree: Path) -> bool:
    return load_identity(tree / "identity") is not None


def _wrong_chunks(tree: Path, content: bytes) -> list[int]:
    """Return the chunks of the only blob under way that are believed and are not in CONTENT."""
    sha256 = hashlib.sha256(content).hexdigest()
    with Partial(tree / "parts", sha256, len(content), ()) as found:
        return [
            chunk
            for chunk, digest in enumerate(found._have)
            if digest
            and digest
            != hashlib.sha256(content[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]).digest()
        ]


def _digest(tree: Path) -> str:
    """Return the digest of the model in the only slot of TREE; empty if it is not whole."""
    with contextlib.suppress(IntegrityError, OSError, StopIteration):
        return open_slot(next((tree / "slots").iterdir())).digest
    return ""


@dataclass
class Promises:
    """What the device of a record had promised after each moment."""

    states: list[State] = field(default_factory=list)
    """Every state that was ever written, in order."""
    _spans: list[tuple[int, int]] = field(default_factory=list)
    _floors: list[dict[str, int]] = field(default_factory=list)

    @classmethod
    def of(cls, before: Image, ops: Sequence[Op], examiner: Examiner) -> "Promises":
        """Return the promises of the agent that did OPS."""
        self, disk = cls(), Disk(before)
        durable, floors = 0, dict[str, int]()
        for op in (None, *ops):
            if op is not None:
                disk.apply(op)
            if op is None or op.path.startswith("journal.db"):
                self._note(examiner.state(disk.seen()))
                if op is None or op.kind == "sync":
                    durable = len(self.states) - 1
            if op is None or (op.kind == "sync" and op.path == ""):
                floors = examiner.floors(disk.seen())
            self._spans.append((durable, len(self.states) - 1))
            self._floors.append(floors)
        return self

    def _note(self, state: State) -> None:
        if not self.states or self.states[-1] != state:
            self.states.append(state)

    def broken(self, moment: int, left: Left) -> list[str]:
        """Return which promises of before MOMENT are broken by what is LEFT."""
        durable, last = self._spans[moment]
        found = list(left.troubles)
        if left.state is not None and left.state not in self.states[durable : last + 1]:
            found.append(f"{left.state} is none of {self.states[durable : last + 1]}")
        kept = dict(left.floors)
        for name, floor in self._floors[moment].items():
            if kept.get(name, 0) < floor:
                found.append(f"the floor of {name} fell from {floor} to {kept.get(name, 0)}")
        return found
