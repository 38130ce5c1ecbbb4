"""Who may join: devices that are known beforehand, and those a person decides about.

Both are of tokens that want an approval. A device that is expected, by its key or the id it asks
for, comes in at once and is used up; everybody else waits, until a person decides or the deadline
is over. A device asks again with the same key, and that is how it is known.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgepack.errors import UsageError
from edgepack.messages import EnrollPending, EnrollRequest
from edgepack.topics import DEVICE_ID
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.device_tables import ApplicantRow, ExpectedRow
from edgepack_fleet.adapters.tables import EnrolToken
from edgepack_fleet.core import tags
from edgepack_fleet.membership import static_group
from edgepack_fleet.refusal import RefusedError

__all__ = [
    "NEW_TOKEN",
    "Admission",
    "Expected",
    "State",
    "Terms",
    "admit",
    "spend",
    "state_of",
    "waiting",
]

State = Literal["pending", "accepted", "rejected", "expired", "enrolled"]
RETRY_S = 15
"""Seconds after which a device that waits asks again."""
KEPT_S = 90 * 86_400.0
"""How long it is kept who was refused."""
NEW_TOKEN = "edgepack fleet tokens create --group GROUP --approval"  # noqa: S105  a command


@dataclass(frozen=True, slots=True)
class Terms:
    """What a device gets that is let in."""

    name: str
    """The id it would like."""
    group: str
    tags: Mapping[str, str] = field(default_factory=dict)
    entry: ExpectedRow | None = None
    """Where it was expected."""
    applicant: ApplicantRow | None = None
    """As who it has asked."""

    def settle(self, device: str) -> None:
        """Write down that it has become DEVICE, in the transaction in which it does."""
        if self.entry is not None:
            self.entry.used_by = device
        if self.applicant is not None:
            self.applicant.state = "enrolled"


@dataclass(frozen=True, slots=True)
class Expected:
    """A device that is known beforehand: by the fingerprint of its key, else by its id."""

    group: str
    device: str = ""
    fingerprint: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


def admit(
    session: Session, token: EnrolToken, request: EnrollRequest, fingerprint: str, now: float
) -> Terms | EnrollPending:
    """Return on which terms somebody comes in with a TOKEN that wants an approval.

    Args:
        session: A transaction.
        token: It need not be valid any more for who has applied while it was.
        request: What is asked for.
        fingerprint: Of the key that signed the request.
        now: Unix seconds.

    Raises:
        RefusedError: the token is over or used up, or a person said no (`enrolment_rejected`), or
            nobody said anything in time (`approval_expired`).
    """
    mine = ApplicantRow.token_id == token.id, ApplicantRow.fingerprint == fingerprint
    applicant = session.scalar(select(ApplicantRow).where(*mine))
    known = _expected(session, request.name, fingerprint)
    if known is not None and not _turned_away(applicant, known):
        if applicant is None:
            spend(token, now)
        name = known.device or request.name
        return Terms(name, known.group_id, known.tags, known, applicant)
    if applicant is None:
        spend(token, now)
        applicant = _apply(session, token, request, fingerprint, now)
    state = state_of(applicant, now)
    if state == "pending":
        return EnrollPending(
            applicant=applicant.id,
            fingerprint=fingerprint,
            deadline=applicant.deadline,
            retry_s=RETRY_S,
        )
    if state == "accepted":
        return Terms(applicant.name, applicant.group_id, token.tags, None, applicant)
    raise _refused(state)


def spend(token: EnrolToken, now: float) -> None:
    """Use TOKEN up by one device.

    Raises:
        RefusedError: it is over, or used up.
    """
    if now >= token.expires:
        raise RefusedError("the token has expired", fix=NEW_TOKEN, reason="token_expired")
    if token.used >= token.uses:
        raise RefusedError("the token has been used already", fix=NEW_TOKEN, reason="token_used")
    token.used += 1


def state_of(row: ApplicantRow, now: float) -> State:
    """Return where an applicant stands; what waits past its deadline is over."""
    waits = row.state in {"pending", "accepted"}
    return "expired" if waits and now >= row.deadline else cast("State", row.state)


def waiting(session: Session, now: float, limit: int = 50) -> Sequence[ApplicantRow]:
    """Return those who wait for a person to decide, the longest first."""
    undecided = ApplicantRow.state == "pending", ApplicantRow.deadline > now
    query = select(ApplicantRow).where(*undecided).order_by(ApplicantRow.created, ApplicantRow.id)
    return session.scalars(query.limit(limit)).all()


class Admission:
    """Decides about applicants and expects devices, as people say.

    Args:
        database: Where it is kept.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def accept(self, applicant: str, by: str) -> None:
        """Let APPLICANT in when it asks the next time, which must be soon.

        Raises:
            UsageError: there is none (`unknown_applicant`), or it does not wait (`wrong_state`).
        """
        with self._database.write() as session:
            row, now = self._waiting(session, applicant), self._clock()
            wait = session.get_one(EnrolToken, row.token_id).approval_s or 0.0
            row.state, row.by, row.decided, row.deadline = "accepted", by, now, now + wait

    def reject(self, applicant: str, by: str) -> None:
        """Refuse APPLICANT; raises like `accept`."""
        with self._database.write() as session:
            row = self._waiting(session, applicant)
            row.state, row.by, row.decided = "rejected", by, self._clock()

    def expect(self, devices: Iterable[Expected], by: str) -> int:
        """Expect DEVICES, all or none, in place of earlier entries for the same; return how many.

        Raises:
            UsageError: an entry has no key and no id, or a bad one (`bad_entry`), a group does not
                exist or is a filter, or a tag cannot be kept.
        """
        now, count = self._clock(), 0
        with self._database.write() as session:
            for new in devices:
                _check(session, new)
                same = ExpectedRow.fingerprint == new.fingerprint
                if not new.fingerprint:
                    same &= ExpectedRow.device == new.device
                session.execute(delete(ExpectedRow).where(ExpectedRow.used_by == "", same))
                session.add(
                    ExpectedRow(
                        id=f"e-{secrets.token_hex(6)}",
                        device=new.device,
                        fingerprint=new.fingerprint,
                        group_id=new.group,
                        tags=tags.checked(new.tags),
                        created=now,
                        by=by,
                    )
                )
                count += 1
        return count

    def forget(self, entry: str) -> None:
        """Do not expect ENTRY any more.

        Raises:
            UsageError: there is none (`unknown_entry`).
        """
        with self._database.write() as session:
            row = session.get(ExpectedRow, entry)
            if row is None:
                raise UsageError(
                    f"no device is expected as {entry!r}",
                    fix="edgepack fleet devices preauthorised",
                    reason="unknown_entry",
                )
            session.delete(row)

    def tidy(self) -> None:
        """Forget who has been refused long ago."""
        old = ApplicantRow.deadline < self._clock() - KEPT_S
        with self._database.write() as session:
            session.execute(delete(ApplicantRow).where(old))

    def _waiting(self, session: Session, applicant: str) -> ApplicantRow:
        row = session.get(ApplicantRow, applicant)
        if row is None:
            raise UsageError(
                f"nobody asks to join as {applicant!r}",
                fix="edgepack fleet devices pending",
                reason="unknown_applicant",
            )
        if (state := state_of(row, self._clock())) != "pending":
            raise UsageError(
                f"{applicant} does not wait any more",
                why=f"it is {state}",
                fix="let the device ask again: edgepack-agent enroll TOKEN",
                reason="wrong_state",
            )
        return row


def _turned_away(applicant: ApplicantRow | None, known: ExpectedRow) -> bool:
    """Return whether a person has said no, which a name on a list does not outweigh; a key does."""
    refused = applicant is not None and applicant.state in {"rejected", "enrolled"}
    return refused and not known.fingerprint


def _expected(session: Session, name: str, fingerprint: str) -> ExpectedRow | None:
    """Return the entry for a device; that of its key goes before that of its name."""
    by_name = ExpectedRow.fingerprint == "", ExpectedRow.device == name
    unused = select(ExpectedRow).where(ExpectedRow.used_by == "")
    found = session.scalar(unused.where(ExpectedRow.fingerprint == fingerprint))
    return found or (session.scalar(unused.where(*by_name)) if name else None)


def _apply(
    session: Session, token: EnrolToken, request: EnrollRequest, fingerprint: str, now: float
) -> ApplicantRow:
    row = ApplicantRow(
        id=f"a-{secrets.token_hex(6)}",
        token_id=token.id,
        fingerprint=fingerprint,
        # What cannot be an id is not kept: a person would read it, and it is a stranger's.
        name=request.name if DEVICE_ID.fullmatch(request.name) else "",
        group_id=token.group_id,
        inventory=msgspec.to_builtins(request.inventory),
        created=now,
        deadline=now + (token.approval_s or 0.0),
        state="pending",
        by="",
        decided=None,
    )
    session.add(row)
    return row


def _refused(state: State) -> RefusedError:
    if state == "expired":
        return RefusedError(
            "nobody has accepted this device in time", fix=NEW_TOKEN, reason="approval_expired"
        )
    if state == "enrolled":
        return RefusedError(
            "the device that had this key is revoked", fix=NEW_TOKEN, reason="device_revoked"
        )
    return RefusedError(
        "a person has rejected this device", fix=NEW_TOKEN, reason="enrolment_rejected"
    )


def _check(session: Session, new: Expected) -> None:
    static_group(session, new.group)
    why = ""
    if not (new.device or new.fingerprint):
        why = "it has neither an id nor the fingerprint of a key"
    elif new.device and not DEVICE_ID.fullmatch(new.device):
        why = f"{new.device[:80]!r} is no device id: a-z, 0-9 and -, 64 characters at most"
    if why:
        raise UsageError("an entry cannot be expected", why=why, reason="bad_entry")
