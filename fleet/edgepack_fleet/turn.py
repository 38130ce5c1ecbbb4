"""One batch of what devices say, while it is taken in: what it has read, and what it leaves to say.

Everything is read at once, because a look-up for each message would also write what the ones
before have left. The devices that speak are locked: nobody else writes about them meanwhile.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session, defer

from edgepack import messages, topics
from edgepack_fleet import jobrows
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow, StreamRow
from edgepack_fleet.core.expectation import NOTHING, Expected
from edgepack_fleet.core.stream import Stream

__all__ = ["Answer", "Turn", "locked"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A message for a device."""

    topic: str
    payload: bytes


@dataclass(slots=True)
class Turn:
    """One batch: its session, its time, and what it leaves to say."""

    session: Session
    now: float
    link: Callable[[str, str], str]
    devices: Mapping[str, DeviceRow]
    """Those that speak in it; nobody else writes about them meanwhile."""
    verified: bool = False
    """Whether the message at hand is signed by its device."""
    expected: Callable[[str, str], Expected] = lambda _bundle, _digest: NOTHING
    """Returns what may be said of a model, by `name@version` and digest."""
    keep_raw: bool = False
    """Whether rows of telemetry are kept beside what they come to."""
    careful: bool = False
    """Whether every row is saved for itself, because one of them may be refused."""
    refused: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reports of which something is not told apart, by reason."""
    answers: list[Answer] = field(default_factory=list)
    acks: dict[tuple[str, str], Stream] = field(default_factory=dict)
    jobs: dict[str, tuple[JobRow, RolloutRow]] = field(default_factory=dict)
    """The job of every device that was open when the turn began."""
    events: dict[tuple[str, str], list[tuple[int, str]]] = field(default_factory=dict)
    """Numbers and types of the events that are saved in this turn, by device and boot."""
    measured: Sequence[JobRow] = ()
    """Jobs whose models are measured: held, for the session to find them."""
    streams: dict[tuple[str, str], StreamRow] = field(default_factory=dict)
    """Rows read already, by device and boot, those that are new among them."""

    def look_ahead(self) -> None:
        """Read at once the streams and jobs that the devices will go on with.

        A look-up for each message would also write what the ones before have left.
        """
        boots = [(device.id, device.boot) for device in self.devices.values()]
        known = tuple_(StreamRow.device_id, StreamRow.boot).in_(boots)
        for row in self.session.scalars(select(StreamRow).where(known)):
            self.streams[row.device_id, row.boot] = row
        # Of one device at most one is open.
        query = (
            select(JobRow, RolloutRow)
            .join(RolloutRow, RolloutRow.id == JobRow.rollout_id)
            .where(JobRow.device_id.in_(self.devices), JobRow.status.in_(jobrows.OPEN))
        )
        for job, rollout in self.session.execute(query):
            self.jobs[job.device_id] = job, rollout
        ids = [device.measured_job for device in self.devices.values() if device.measured_job]
        if ids:
            self.measured = self.session.scalars(select(JobRow).where(JobRow.id.in_(ids))).all()

    def stream(self, device: str, boot: str) -> StreamRow:
        """Return the row about the reports of one boot of DEVICE; a new one if there is none."""
        found = self.streams.get((device, boot))
        if found is None:
            with self.session.no_autoflush:
                found = self.session.get(StreamRow, (device, boot))
            if found is None:
                found = StreamRow(device_id=device, boot=boot, upto=-1, missing=[])
                self.session.add(found)
            self.streams[device, boot] = found
        return found

    def say(self, device: str, kind: str, message: messages.Message) -> None:
        """Leave MESSAGE for DEVICE, to be sent once all is saved."""
        self.answers.append(Answer(topics.down(device, kind), messages.encode(message)))


def locked(session: Session, names: Iterable[str]) -> dict[str, DeviceRow]:
    """Return the devices of NAMES, locked, always in the same order."""
    query = select(DeviceRow).where(DeviceRow.id.in_(set(names))).order_by(DeviceRow.id)
    # JSON that hardly a message asks for is read when one does.
    query = query.options(defer(DeviceRow.inventory), defer(DeviceRow.tags))
    return {row.id: row for row in session.scalars(query.with_for_update())}
