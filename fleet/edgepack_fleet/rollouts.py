"""Driver of rollouts: load, decide, save, and leave messages in the outbox. Sends nothing itself.

The order makes a kill at any point harmless. The director's word comes first: it is idempotent,
and a device without a job does not act on it. Jobs, states and messages are then saved in one
transaction, under the rollout's version as an optimistic lock.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack.errors import EdgepackError, UsageError
from edgepack.trust import TargetInfo
from edgepack_fleet import store
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import GroupRow, JobRow, RolloutRow
from edgepack_fleet.core import jobs
from edgepack_fleet.core.model import FAILURES, LIVE, SERVING, Policy
from edgepack_fleet.core.rollout import (
    Action,
    Assign,
    Complete,
    Decision,
    Pause,
    TimeOut,
    Withdraw,
    decide,
    parse_waves,
)
from edgepack_fleet.core.variants import Release

__all__ = ["Rollouts", "unknown_rollout"]

log = logging.getLogger(__name__)


class Rollouts:
    """All rollouts of the fleet.

    Args:
        database: Where they are kept.
        assign: Lets the director say what a device shall run.
        releases: Returns what is published.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        assign: Callable[[str, TargetInfo], None],
        releases: Callable[[], Sequence[Release]],
        clock: Callable[[], float],
    ) -> None:
        self._database, self._say, self._releases = database, assign, releases
        self._clock = clock

    def create(self, release: str, group: str, waves: str, policy: Policy) -> str:
        """Start a rollout of RELEASE (`name@version`) to GROUP and return its id.

        A rollout of the group that is still running makes way; a paused one stays as it is, for
        people to look at, but cannot be resumed any more.

        Raises:
            UsageError: no such release or group, or WAVES cannot be read.
        """
        parse_waves(waves)
        found = self.release(release)
        now = self._clock()
        with self._database.write() as session:
            if session.get(GroupRow, group) is None:
                raise _unknown_group(session, group)
            number = (session.scalar(select(func.max(RolloutRow.number))) or 0) + 1
            row = RolloutRow(
                id=f"r{number}-{secrets.token_hex(2)}",
                number=number,
                group_id=group,
                release=release,
                variants=store.targets_as_json(found.variants),
                waves=waves,
                policy=asdict(policy),
                forgiven=[],
                state="running",
                reason="Starting.",
                created=now,
                updated=now,
            )
            self._make_way(session, row, now)
            session.add(row)
        return row.id

    def release(self, release: str) -> Release:
        """Return the published RELEASE (`name@version`).

        Raises:
            UsageError: there is none.
        """
        published = self._releases()
        for found in published:
            if found.id == release:
                return found
        known = ", ".join(found.id for found in published)
        raise UsageError(
            f"no release {release!r} is published here",
            why=f"published are: {known}" if known else "nothing is published yet",
            fix="edgepack repo publish BUNDLE --repo URL",
            reason="unknown_release",
        )

    def pause(self, rollout: str) -> None:
        """Assign nothing more until somebody resumes."""
        self._change(rollout, ("running",), "paused", "Paused by an operator.")

    def resume(self, rollout: str) -> None:
        """Go on; the failures so far are accepted and count no more.

        Raises:
            UsageError: it is not paused, or a newer rollout covers the group.
        """
        with self._database.write() as session:
            row = self._get(session, rollout, ("paused",))
            newer = session.scalar(
                select(RolloutRow.id).where(
                    RolloutRow.group_id == row.group_id,
                    RolloutRow.number > row.number,
                    RolloutRow.state.in_(LIVE),
                )
            )
            if newer is not None:
                raise UsageError(
                    f"rollout {rollout} cannot be resumed",
                    why=f"{newer} is newer and covers the same group",
                    fix=f"create a new rollout of {row.release}",
                    reason="superseded",
                )
            failed = select(JobRow.device_id).where(
                JobRow.rollout_id == rollout, JobRow.status.in_(FAILURES)
            )
            row.forgiven = sorted({*row.forgiven, *session.scalars(failed)})
            self._set(row, "running", "Resumed by an operator.")

    def cancel(self, rollout: str) -> None:
        """End it; devices that have not finished are told to stop."""
        with self._database.write() as session:
            row = self._get(session, rollout, ("running", "paused"))
            self._end(session, row, "Cancelled by an operator.", self._clock())

    def tick(self, heard_since: float, now: float | None = None) -> bool:
        """Let every rollout decide once; return whether anything changed.

        Args:
            heard_since: Unix seconds since which devices have been able to reach us.
            now: The time of which that is true; None: the clock's.
        """
        now = self._clock() if now is None else now
        with self._database.read() as session:
            live = session.scalars(
                select(RolloutRow)
                .where(RolloutRow.state.in_(LIVE))
                .order_by(RolloutRow.number.desc())
            ).all()
        served: set[str] = set()
        changed = False
        for row in live:
            if row.state in SERVING and row.group_id in served:
                continue  # an older intent for the same devices
            served |= {row.group_id} if row.state in SERVING else set()
            try:
                changed |= self._step(row.id, heard_since, now)
            except EdgepackError:  # one rollout in trouble must not hold up the others
                log.exception("rollout %s could not go on", row.id)
        return changed

    def _step(self, rollout: str, heard_since: float, now: float) -> bool:
        with self._database.read() as session:
            row = session.get_one(RolloutRow, rollout)
            members = store.members_of(session, row, heard_since)
        decision = decide(store.rollout_of(row), members, now)
        if not decision.actions and decision.reason in {"", row.reason}:
            return False
        variants = {v.path: v for v in store.release_of(row).variants}
        for action in decision.actions:
            if isinstance(action, Assign):
                self._say(action.device, variants[action.target])
        return self._save(row, decision, now)

    def _save(self, seen: RolloutRow, decision: Decision, now: float) -> bool:
        """Save DECISION, unless the rollout has changed since it was SEEN."""
        with self._database.write() as session:
            row = session.get_one(RolloutRow, seen.id)
            if row.version != seen.version:
                return False
            for action in decision.actions:
                self._carry_out(session, row, action, now)
            row.reason = decision.reason or row.reason
            row.version, row.updated = row.version + 1, now
        return True

    def _carry_out(self, session: Session, row: RolloutRow, action: Action, now: float) -> None:
        match action:
            case Assign():
                self._assign(session, row, action, now)
            case Withdraw(device):
                job = _job_of(session, row, device)
                if job is not None and job.status == "QUEUED":
                    session.delete(job)
            case TimeOut(device, reason):
                job = _job_of(session, row, device)
                if job is not None and job.status == "IN_PROGRESS":
                    store.apply_job(job, jobs.end(store.job_state(job), "TIMED_OUT", reason), now)
                    session.add(store.hint(device, now))
            case Pause():
                row.state = "paused"
            case Complete():
                row.state = "completed"

    def _assign(self, session: Session, row: RolloutRow, action: Assign, now: float) -> None:
        _cancel_open(session, JobRow.device_id == action.device, "superseded", now)
        session.flush()
        policy = Policy(**row.policy)
        session.add(
            JobRow(
                id=f"{row.id}-{action.device}",
                device_id=action.device,
                rollout_id=row.id,
                wave=action.wave,
                release=row.release,
                target=action.target,
                detail={},
                probation_s=policy.probation_s,
                timeout_s=int(policy.timeout_s),
                created=now,
                updated=now,
            )
        )
        session.add(store.hint(action.device, now))

    def _make_way(self, session: Session, new: RolloutRow, now: float) -> None:
        running = select(RolloutRow).where(
            RolloutRow.group_id == new.group_id, RolloutRow.state == "running"
        )
        for row in session.scalars(running):
            self._end(session, row, f"Superseded by {new.release} ({new.id}).", now)

    def _end(self, session: Session, row: RolloutRow, reason: str, now: float) -> None:
        _cancel_open(session, JobRow.rollout_id == row.id, "cancelled", now)
        self._set(row, "cancelled", reason)

    def _change(self, rollout: str, allowed: Sequence[str], state: str, reason: str) -> None:
        with self._database.write() as session:
            self._set(self._get(session, rollout, allowed), state, reason)

    def _set(self, row: RolloutRow, state: str, reason: str) -> None:
        row.state, row.reason = state, reason
        row.version, row.updated = row.version + 1, self._clock()

    def _get(self, session: Session, rollout: str, allowed: Sequence[str]) -> RolloutRow:
        row = session.get(RolloutRow, rollout)
        if row is None:
            raise unknown_rollout(rollout)
        if row.state not in allowed:
            raise UsageError(
                f"rollout {rollout} is {row.state}",
                why=f"this works only while it is {' or '.join(allowed)}",
                reason="wrong_state",
            )
        return row


def unknown_rollout(rollout: str) -> UsageError:
    """Return the error for a rollout that does not exist."""
    return UsageError(
        f"no rollout {rollout!r}", fix="edgepack fleet rollouts list", reason="unknown_rollout"
    )


def _unknown_group(session: Session, group: str) -> UsageError:
    known = ", ".join(session.scalars(select(GroupRow.id).order_by(GroupRow.id)))
    return UsageError(
        f"no group {group!r}",
        why=f"there are: {known}" if known else "there is none yet",
        fix=f"edgepack fleet groups create {group}",
        reason="unknown_group",
    )


def _job_of(session: Session, row: RolloutRow, device: str) -> JobRow | None:
    query = select(JobRow).where(JobRow.rollout_id == row.id, JobRow.device_id == device)
    return session.scalar(query)


def _cancel_open(session: Session, which: Any, reason: str, now: float) -> None:
    """End every open job that matches WHICH and hint at its device."""
    for job in session.scalars(select(JobRow).where(which, JobRow.status.in_(store.OPEN))):
        store.apply_job(job, jobs.end(store.job_state(job), "CANCELED", reason), now)
        session.add(store.hint(job.device_id, now))
