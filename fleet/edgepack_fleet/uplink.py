"""What devices say: read, judged and saved, many at a time in one transaction.

Returns the answers; the caller sends them once the transaction is committed, so that an
acknowledgement never speaks of something that could still be lost. A message that cannot be
read is counted, refused where it has a token, and never stops the others; nor does a row of a
batch, which is acknowledged all the same, because the device would send it again for ever.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack import messages, topics
from edgepack.counting import faults
from edgepack.errors import IntegrityError
from edgepack.requests import Answer as RequestAnswer
from edgepack.requests import AnswerTaken, RequestGet
from edgepack.signed import SIGNED_KINDS, public_key, read_report
from edgepack_fleet import asking, jobrows, measured, measuring, rollups, steering
from edgepack_fleet.adapters.database import Database, is_passing
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import (
    DeviceRow,
    EventRow,
    JobRow,
    TelemetryRow,
)
from edgepack_fleet.core.expectation import NOTHING, Expected
from edgepack_fleet.core.jobs import Refusal, advance
from edgepack_fleet.core.model import HANDING_OUT
from edgepack_fleet.core.stream import Stream, absorb
from edgepack_fleet.renewals import Renewals, seen_with
from edgepack_fleet.turn import Answer, Turn, locked

__all__ = ["Answer", "Uplink"]

LARGEST = 2**53
"""Numbers a device may send: beyond this, neither JSON readers nor databases agree."""
FENCED_S = 5.0
"""Seconds after the end of a session in which its last words may still arrive."""
ACTIVE = frozenset({"activated", "rolled_back", "recovered"})
"""Events that say which bundle is active now."""

log = logging.getLogger(__name__)
T = TypeVar("T", messages.Telemetry, messages.Event)


class Uplink:
    """Reads what devices say into the database.

    Args:
        database: Where it goes.
        clock: Unix seconds.
        link: Returns the link to a model's files, for a device and the SHA-256 of the image.
        renewals: Answers requests for certificates; None: they are not taken.
        expected: Returns what reports may say of a model, by `name@version` and digest.
        keep_raw: Keep rows of telemetry beside what they come to.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        link: Callable[[str, str], str] = lambda _device, _image: "",
        renewals: Renewals | None = None,
        expected: Callable[[str, str], Expected] = lambda _bundle, _digest: NOTHING,
        *,
        keep_raw: bool = False,
    ) -> None:
        self._keep_raw = keep_raw
        self._database, self._clock, self._link = database, clock, link
        self._renewals, self._expected = renewals, expected
        self.refused: Counter[str] = Counter()
        """Messages that were not taken, by cause."""
        self.left_out: Counter[str] = Counter()
        """Reports of which something is not told apart in sums, by reason."""
        self._handlers: dict[str, Callable[[Turn, DeviceRow, bytes], None]] = {
            "conn": _conn,
            "tele": _telemetry,
            "evt": _events,
            "job/get": _job_get,
            "job/update": _job_update,
            "req/get": _request_get,
            "req/answer": _request_answer,
        }
        if renewals is not None:
            self._handlers |= {"cert": self._cert, "conn": self._birth}

    def everybody_offline(self) -> None:
        """Forget who is online: the broker tells us again, by the births it has retained."""
        with self._database.write() as session:
            for row in session.scalars(select(DeviceRow).where(DeviceRow.online)):
                row.online = False

    def ingest(self, batch: Sequence[Incoming]) -> list[Answer]:
        """Save what BATCH says and return the answers to send.

        What the database refuses for its own sake, a row or else a message, is dropped and
        counted; the rest is saved.

        Raises:
            SQLAlchemyError: the database does not work at all; nothing is saved.
        """
        try:
            return self._save(batch)
        except Exception as error:  # it must not stop the other messages
            if is_passing(error):
                raise
            log.warning("%d messages could not be saved at once: %s", len(batch), type(error))
        return [answer for message in batch for answer in self._alone(message)]

    def carried(self, device: str, kind: str, payload: bytes) -> str:
        """Save what a person carried here for DEVICE; it is no sign of life.

        Returns:
            Why it is not taken; empty if it is, or has arrived before.

        Raises:
            SQLAlchemyError: the database does not work; nothing is saved.
        """
        message = Incoming(topics.up(device, kind), payload, retained=True)
        with self._database.write_beside() as session:
            turn = self._turn(session, [message], careful=True)
            self._take(turn, message)
        self.refused.update(turn.refused)
        self.left_out.update(turn.left_out)
        return next(iter(turn.refused), "")

    def _turn(self, session: Session, batch: Sequence[Incoming], *, careful: bool) -> Turn:
        said = (topics.parse_up(message.topic) for message in batch)
        names = {uplink.device for uplink in said if uplink is not None}
        turn = Turn(
            session,
            self._clock(),
            self._link,
            locked(session, names),
            expected=self._expected,
            keep_raw=self._keep_raw,
            careful=careful,
        )
        turn.look_ahead()
        return turn

    def _alone(self, message: Incoming) -> list[Answer]:
        try:
            return self._save([message], careful=True)
        except Exception as error:
            if is_passing(error):
                raise
            self._check_database()
            log.exception("a message on %s could not be saved", message.topic)
            self.refused["not_saved"] += 1
            return []

    def _save(self, batch: Sequence[Incoming], *, careful: bool = False) -> list[Answer]:
        with self._database.write_beside() as session:
            turn = self._turn(session, batch, careful=careful)
            if any(message.topic.endswith("/up/tele") for message in batch):
                # Sums of groups are locked as messages come; in any order, one worker at a time.
                self._database.number_in_order(session)
                rollups.look_ahead(session, turn.devices, turn.now)
            for message in batch:
                self._take(turn, message)
            rollups.settle(session)
            for (device, boot), stream in turn.acks.items():
                ack = messages.Ack(boot=boot, upto=stream.upto, missing=stream.missing)
                turn.say(device, "ack", ack)
        self.refused.update(turn.refused)
        self.left_out.update(turn.left_out)
        return turn.answers

    def _take(self, turn: Turn, message: Incoming) -> None:
        uplink = topics.parse_up(message.topic)
        handler = self._handlers.get(uplink.kind) if uplink else None
        if uplink is None or handler is None:
            turn.refused["unknown_topic"] += 1
            return
        device = turn.devices.get(uplink.device)
        if device is None:
            turn.refused["unknown_device"] += 1
            return
        if device.revoked is not None:
            turn.refused["revoked"] += 1
            if not message.retained and turn.now - (device.fenced or turn.now) > FENCED_S:
                device.fenced = None  # it has come back: its session is ended once more
            return
        if not message.retained:
            device.seen = turn.now
        payload = message.payload
        try:
            if uplink.kind in SIGNED_KINDS:
                key = public_key(device.report_key) if device.report_key else None
                payload, turn.verified = read_report(device.id, uplink.kind, payload, key)
            handler(turn, device, payload)
        except IntegrityError as error:
            turn.refused[error.reason] += 1
            _refuse(turn, uplink, payload, error)

    def _birth(self, turn: Turn, device: DeviceRow, payload: bytes) -> None:
        _conn(turn, device, payload)
        assert self._renewals is not None
        if device.online and self._renewals.outdated(device):
            turn.say(device.id, "cert/notify", self._renewals.hint)

    def _cert(self, turn: Turn, device: DeviceRow, payload: bytes) -> None:
        request = messages.decode(payload, messages.CertRequest)
        assert self._renewals is not None
        turn.say(device.id, "cert/accepted", self._renewals.over_mqtt(device, request))

    def _check_database(self) -> None:
        with self._database.write_beside() as session:
            session.scalar(select(DeviceRow.id).limit(1))


class _Token(msgspec.Struct):
    token: messages.Id


def _refuse(turn: Turn, uplink: topics.Uplink, payload: bytes, error: IntegrityError) -> None:
    """Answer a request that cannot be read, if at least its token can."""
    if not uplink.kind.startswith(("job/", "req/", "cert")):
        return
    try:
        token = messages.decode(payload, _Token).token
    except IntegrityError:
        return
    said = messages.Rejected(token=token, code=error.reason, message=(error.why or error.what))
    turn.say(uplink.device, f"{uplink.kind}/rejected", said)


def _conn(_turn: Turn, device: DeviceRow, payload: bytes) -> None:
    """Take a birth; take a will only if it is of the connection the last birth spoke of."""
    if not payload:
        return  # somebody cleared the retained message
    conn = messages.decode(payload, messages.Conn)
    if conn.online:
        device.online, device.conn, device.boot = True, conn.conn, conn.boot
        device.agent, device.trusts = conn.agent, conn.trusts
        # A birth is not signed: of a device that signs, what it runs is told by its events.
        if not device.report_key:
            device.bundle = conn.bundle
        seen_with(device, conn.cert)
    elif conn.conn == device.conn:
        device.online = False


def _telemetry(turn: Turn, device: DeviceRow, payload: bytes) -> None:
    for row in _fresh(turn, device, _rows(turn, payload, messages.Telemetry)):
        if _keep(turn, device, partial(_count, turn, device, row)):
            device.inferences = min(LARGEST, device.inferences + row.inferences)
            device.errors = min(LARGEST, device.errors + faults(row.errors))
            measuring.count(turn.session, device, msgspec.to_builtins(row), turn.now)


def _count(turn: Turn, device: DeviceRow, row: messages.Telemetry) -> None:
    expected = turn.expected(row.bundle or "", row.digest or "")
    turn.left_out.update(rollups.count(turn.session, device, row, turn.now, expected))
    if turn.keep_raw:
        turn.session.add(
            TelemetryRow(
                device_id=device.id,
                boot=row.boot,
                seq=row.seq,
                received=turn.now,
                bundle=row.bundle,
                inferences=row.inferences,
                body=msgspec.to_builtins(row),
            )
        )


def _events(turn: Turn, device: DeviceRow, payload: bytes) -> None:
    for row in _fresh(turn, device, _rows(turn, payload, messages.Event)):
        kept = EventRow(
            device_id=device.id,
            boot=row.boot,
            seq=row.seq,
            received=turn.now,
            type=row.type,
            body=msgspec.to_builtins(row),
            verified=turn.verified,
        )
        if _keep(turn, device, partial(turn.session.add, kept)):
            if not _is_overtaken(turn, device, row):
                _learn(device, row)
            turn.events.setdefault((device.id, row.boot), []).append((row.seq, row.type))
            measuring.notice(turn.session, device, row)
            if row.type == "settings":
                steering.learn(turn.session, device.id, row, turn.now)


def _keep(turn: Turn, device: DeviceRow, save: Callable[[], None]) -> bool:
    """SAVE a row of DEVICE; in a careful turn return whether the database takes it."""
    if not turn.careful:
        save()
        return True
    try:
        with turn.session.begin_nested():
            save()
            rollups.settle(turn.session)
    except Exception as error:  # whatever it is, it must not stop the other rows
        if is_passing(error):
            raise
        log.exception("a row of %s could not be saved", device.id)
        rollups.forget(turn.session)
        turn.refused["not_saved"] += 1
        return False
    return True


def _is_overtaken(turn: Turn, device: DeviceRow, event: messages.Event) -> bool:
    """Return whether a later event of the same kind has arrived before EVENT.

    Messages of one device may come to several workers, and again.
    """
    if turn.acks[device.id, event.boot].upto == event.seq:
        return False  # the newest of all
    kind = ACTIVE if event.type in ACTIVE else {event.type}
    for seq, what in turn.events.get((device.id, event.boot), ()):
        if seq > event.seq and what in kind:
            return True
    later = select(EventRow.seq).where(
        EventRow.device_id == device.id,
        EventRow.boot == event.boot,
        EventRow.seq > event.seq,
        EventRow.type.in_(kind),
    )
    with turn.session.no_autoflush:  # of this turn we know them
        return turn.session.scalar(later.limit(1)) is not None


def _learn(device: DeviceRow, event: messages.Event) -> None:
    """Update what is known of DEVICE by EVENT."""
    if event.type in ACTIVE and event.bundle is not None:
        device.bundle, device.digest = event.bundle, event.digest
        device.override = event.detail.get("override") is True
    if event.type == "inventory":
        try:
            inventory = msgspec.convert(event.detail, messages.Inventory)
        except msgspec.ValidationError:
            log.warning("%s sent an inventory that cannot be read", device.id)
            return
        device.inventory = msgspec.to_builtins(inventory)


class _Number(msgspec.Struct, frozen=True):
    """A row of which only the number can be read: it is acknowledged and not kept."""

    boot: messages.Id
    seq: messages.Count


def _rows(turn: Turn, payload: bytes, kind: type[T]) -> list[T | _Number]:
    """Return the rows of a batch, or the one row of a single message, as far as they are read."""
    if payload[:1] == b"{":
        return [_row(payload, kind)]
    found: list[T | _Number] = []
    for raw in messages.decode_batch(payload, msgspec.Raw):
        try:
            found.append(_row(bytes(raw), kind))
        except IntegrityError as error:
            turn.refused[error.reason] += 1
    return found


def _row(raw: bytes, kind: type[T]) -> T | _Number:
    with contextlib.suppress(IntegrityError):
        row = messages.decode(raw, kind)
        if not _too_large(row):
            return row
    number = messages.decode(raw, _Number)
    if number.seq > LARGEST:
        raise IntegrityError("a number is too large", reason="bad_message")
    return number


def _too_large(row: messages.Telemetry | messages.Event) -> bool:
    numbers = [row.seq]
    if isinstance(row, messages.Telemetry):
        numbers += [row.inferences, row.lost, row.throttled_s or 0]
        numbers += [*row.errors.values(), *row.classes.values()]
        numbers += [count for h in (row.latency_ms, row.confidence) if h for count in h.counts]
        numbers += [count for counts in row.features.values() for count in counts]
    return max(numbers) > LARGEST


def _fresh(turn: Turn, device: DeviceRow, rows: Sequence[T | _Number]) -> list[T]:
    """Return those of ROWS that have not arrived before, and note what to acknowledge."""
    found: list[T] = []
    for boot in dict.fromkeys(row.boot for row in rows):
        mine = {row.seq: row for row in rows if row.boot == boot}
        stored = turn.stream(device.id, boot)
        before = Stream(stored.upto, tuple(_span(gap) for gap in stored.missing))
        after, fresh = absorb(before, mine, _superseded(mine.values()))
        stored.upto, stored.updated = after.upto, turn.now
        stored.missing = [list(gap) for gap in after.missing]
        turn.acks[device.id, boot] = after
        for row in (mine[seq] for seq in mine if seq in fresh):
            if isinstance(row, _Number):
                turn.refused["bad_message"] += 1
            else:
                found.append(row)
    return found


def _span(stored: int | list[int]) -> tuple[int, int]:
    """Return a gap as it is kept; gaps were single numbers once."""
    return (stored, stored) if isinstance(stored, int) else (stored[0], stored[1])


def _superseded(rows: Iterable[T | _Number]) -> list[tuple[int, int]]:
    """Return the numbers that ROWS stand for, none beyond their own."""
    return [
        (first, min(last, row.seq))
        for row in rows
        if isinstance(row, messages.Telemetry)
        for first, last in row.supersedes
        if first <= min(last, row.seq)
    ]


def _job_get(turn: Turn, device: DeviceRow, payload: bytes) -> None:
    request = messages.decode(payload, messages.JobGet)
    found, job = turn.jobs.get(device.id), None
    if found is not None and found[0].status in jobrows.OPEN:
        row, rollout = found
        # What waits in a paused rollout stays there; what has begun may go on.
        if row.status == "IN_PROGRESS" or rollout.state in HANDING_OUT:
            images = {variant["path"]: variant["sha256"] for variant in rollout.variants}
            link = turn.link(device.id, row.image or images.get(row.target, ""))
            job = msgspec.structs.replace(jobrows.job_message(row), link=link)
    turn.say(device.id, "job/get/accepted", messages.JobReply(token=request.token, job=job))


def _job_update(turn: Turn, device: DeviceRow, payload: bytes) -> None:
    update = messages.decode(payload, messages.JobUpdate)
    job = turn.session.get(JobRow, update.job)
    if job is None or job.device_id != device.id:
        refusal = messages.Rejected(token=update.token, code="unknown_job")
        turn.say(device.id, "job/update/rejected", refusal)
        return
    result = advance(jobrows.job_state(job), update)
    if isinstance(result, Refusal):
        refusal = messages.Rejected(
            token=update.token,
            code=result.code,
            message=result.message,
            job=jobrows.job_message(job),
        )
        turn.say(device.id, "job/update/rejected", refusal)
        return
    jobrows.apply_job(job, result, turn.now)
    job.detail = update.detail
    if result.status == "SUCCEEDED":
        device.bundle, device.override = job.release, False
        measuring.begin(turn.session, device, job, turn.now)
    reply = messages.JobReply(token=update.token, job=jobrows.job_message(job))
    turn.say(device.id, "job/update/accepted", reply)


def _request_get(turn: Turn, device: DeviceRow, payload: bytes) -> None:
    token = messages.decode(payload, RequestGet).token
    found = asking.listed(turn.session, device.id, token, turn.now)
    version = steering.version_for(turn.session, device.id)
    found = msgspec.structs.replace(found, settings=version)
    turn.say(device.id, "req/get/accepted", found)


def _request_answer(turn: Turn, device: DeviceRow, payload: bytes) -> None:
    answer = messages.decode(payload, RequestAnswer)
    row = asking.take(turn.session, device.id, answer, turn.now, verified=turn.verified)
    if row is not None:
        measured.keep_measured(turn.session, row, turn.now)
    taken = AnswerTaken(token=answer.token, request=answer.request)
    turn.say(device.id, "req/answer/accepted", taken)
