"""Driver of rollouts: load, decide, save, and leave messages in the outbox. Sends nothing itself.

The order makes a kill at any point harmless. The director's word comes first: it is idempotent,
and a device without a job does not act on it. Jobs, states, messages and the decision itself are
then saved in one transaction, under the rollout's version as an optimistic lock.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack.errors import EdgepackError, UsageError
from edgepack.trust import TargetInfo
from edgepack_fleet import decisions, store
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import GroupRow, JobRow, RolloutRow
from edgepack_fleet.carrying import cancel_open, carry_out, state_after
from edgepack_fleet.core import members as of
from edgepack_fleet.core.actions import Assign, Decision
from edgepack_fleet.core.gates import waiver
from edgepack_fleet.core.model import (
    LIVE,
    SERVING,
    Member,
    Policy,
    Rollout,
    RolloutState,
)
from edgepack_fleet.core.record import Packed, pack
from edgepack_fleet.core.rehearsal import Part, rehearse
from edgepack_fleet.core.rollout import breaches, decide
from edgepack_fleet.core.variants import Release, resolve
from edgepack_fleet.core.waves import parse_waves
from edgepack_fleet.membership import unknown_group

__all__ = ["Plan", "Rollouts", "unknown_rollout"]

log = logging.getLogger(__name__)
SHADOW_S = 60
"""Seconds of shadow where a gate needs one and nobody has said how long."""
ENDABLE: tuple[RolloutState, ...] = (
    "draft", "awaiting_approval", "running", "paused", "reverting", "completed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What somebody wants: a release for a group, how, and how important it is."""

    release: str
    """`name@version`."""
    group: str
    waves: str
    policy: Policy = field(default_factory=Policy)
    priority: int = 0
    draft: bool = False
    """Whether it waits for somebody to start it."""


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
        """Start a rollout of RELEASE (`name@version`) to GROUP and return its id; see `plan`."""
        return self.plan(Plan(release, group, waves, policy))

    def plan(self, plan: Plan, by: str = "") -> str:
        """Make a rollout of PLAN, start it unless it is a draft, and return its id.

        A rollout of the group that is still running and does not go before it makes way; a paused
        one stays as it is, for people to look at, but cannot be resumed any more.

        Raises:
            UsageError: no such release or group, or the waves cannot be read.
        """
        parse_waves(plan.waves)
        found = self.release(plan.release)
        now = self._clock()
        with self._database.write() as session:
            if session.get(GroupRow, plan.group) is None:
                raise unknown_group(session, plan.group)
            number = (session.scalar(select(func.max(RolloutRow.number))) or 0) + 1
            row = _row(plan, found, number, now)
            session.add(row)
            session.flush()
            decisions.note(session, row.id, "created", by, now)
            if not plan.draft:
                self._start(session, row, now)
        return row.id

    def rehearse(self, plan: Plan) -> tuple[Part, ...]:
        """Return what would become of PLAN, and change nothing.

        Raises:
            UsageError: no such release or group, or the waves cannot be read.
        """
        parse_waves(plan.waves)
        found, now = self.release(plan.release), self._clock()
        with self._database.read() as session:
            if session.get(GroupRow, plan.group) is None:
                raise unknown_group(session, plan.group)
            number = (session.scalar(select(func.max(RolloutRow.number))) or 0) + 1
            row = _row(plan, found, number, now)
            members = store.members_of(session, row, now, now=now)
        fits = {m.device.id: resolve(found, m.device.inventory) for m in members}
        misfits = {device: r.reason for device, r in fits.items() if r.variant is None}
        return rehearse(store.rollout_of(row), members, misfits, now)

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

    def start(self, rollout: str, by: str = "") -> None:
        """Start a draft; it may still need to be approved."""
        with self._database.write() as session:
            row = self._get(session, rollout, ("draft",))
            now = self._clock()
            decisions.note(session, rollout, "started", by, now)
            self._start(session, row, now)

    def approve(self, rollout: str, by: str = "") -> None:
        """Let a rollout begin that waits for somebody to approve it."""
        with self._database.write() as session:
            row = self._get(session, rollout, ("awaiting_approval",))
            row.approved_by, now = by, self._clock()
            decisions.note(session, rollout, "approved", by, now)
            self._run(session, row, now)

    def pause(self, rollout: str, by: str = "") -> None:
        """Assign nothing more until somebody resumes."""
        with self._database.write() as session:
            row = self._get(session, rollout, ("running",))
            decisions.note(session, rollout, "paused", by, self._clock())
            self._set(row, "paused", f"Paused by {_who(by)}.")

    def revert(self, rollout: str, by: str = "") -> None:
        """Give every device that has the release what it had before."""
        with self._database.write() as session:
            row = self._get(session, rollout, ("running", "paused", "completed"))
            decisions.note(session, rollout, "reverting", by, self._clock())
            row.stopped = f"Reverting: asked for by {_who(by)}.{_was(row)}"
            self._set(row, "reverting", row.stopped)

    def resume(self, rollout: str, by: str = "") -> None:
        """Go on; the failures and breaches so far are accepted and count no more.

        Raises:
            UsageError: it is not paused, or a rollout that goes before it covers the group.
        """
        with self._database.write() as session:
            row = self._get(session, rollout, ("paused",))
            if first := store.overtakers(session, [row]).get(rollout):
                raise _superseded(row, first.rollout)
            now = self._clock()
            meant = store.rollout_of(row)
            members = store.members_of(session, row, now, now=now, everybody=True)
            failed = [m.device.id for m in members if of.failed(m, meant.policy)]
            row.forgiven = sorted({*row.forgiven, *failed})
            serving = replace(meant, state="running", forgiven=frozenset(row.forgiven))
            breached = [waiver(found) for found in breaches(serving, members, now)]
            row.waived = sorted({*row.waived, *breached})
            decisions.note(session, rollout, "resumed", by, now)
            self._set(row, "running", f"Resumed by {_who(by)}.")

    def cancel(self, rollout: str, by: str = "") -> None:
        """End it; devices that have not finished are told to stop."""
        with self._database.write() as session:
            row, now = self._get(session, rollout, ENDABLE), self._clock()
            decisions.note(session, rollout, "cancelled", by, now)
            self._end(session, row, f"Cancelled by {_who(by)}.{_was(row)}", now)

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
                .order_by(RolloutRow.priority.desc(), RolloutRow.number.desc())
            ).all()
        served: set[str] = set()
        changed = False
        for row in live:
            if row.state in {"completed", "reverted"} and row.group_id in served:
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
            members = store.members_of(session, row, heard_since, now=now)
        meant = store.rollout_of(row)
        decision = decide(meant, members, now)
        if not decision.actions and decision.reason in {"", row.reason}:
            return False
        self._point(row, [a for a in decision.actions if isinstance(a, Assign)])
        return self._save(row, decision, _packed(meant, members, decision, now), now)

    def _point(self, row: RolloutRow, given: Sequence[Assign]) -> None:
        """Let the director say what the devices shall run that are GIVEN a job of ROW."""
        variants = {v.path: v for v in store.release_of(row).variants}
        jobs: dict[str, JobRow] = {}
        if any(action.kind == "revert" for action in given):
            with self._database.read() as session:
                jobs = store.jobs_of(session, row.id)
        for action in given:
            back = action.kind == "revert"
            before = TargetInfo(**jobs[action.device].before["variant"]) if back else None
            self._say(action.device, before or variants[action.target])

    def _save(
        self, seen: RolloutRow, decision: Decision, inputs: Packed | None, now: float
    ) -> bool:
        """Save DECISION, unless the rollout has changed since it was SEEN."""
        with self._database.write() as session:
            row = session.get_one(RolloutRow, seen.id)
            if row.version != seen.version:
                return False
            # Together and first: what is told of a state is told with its sentence.
            row.state = state_after(row.state, decision.actions)
            row.reason = decision.reason or row.reason
            for action in decision.actions:
                carry_out(session, row, action, self._releases, now)
            if inputs is not None:
                decisions.keep(session, row.id, decision, inputs, now)
            row.version, row.updated = row.version + 1, now
        return True

    def _start(self, session: Session, row: RolloutRow, now: float) -> None:
        if row.policy.get("approval"):
            self._set(row, "awaiting_approval", "Waiting: somebody must approve it.")
        else:
            self._run(session, row, now)

    def _run(self, session: Session, row: RolloutRow, now: float) -> None:
        self._make_way(session, row, now)
        self._set(row, "running", "Starting.")

    def _make_way(self, session: Session, new: RolloutRow, now: float) -> None:
        under_way = select(RolloutRow).where(
            RolloutRow.group_id == new.group_id,
            RolloutRow.state.in_(("running", "reverting")),
            RolloutRow.id != new.id,
        )
        for row in session.scalars(under_way):
            if store.rank(row) < store.rank(new):
                self._end(session, row, f"Superseded by {new.release} ({new.id}).{_was(row)}", now)

    def _end(self, session: Session, row: RolloutRow, reason: str, now: float) -> None:
        cancel_open(session, JobRow.rollout_id == row.id, "cancelled", now)
        self._set(row, "cancelled", reason)

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


def _who(by: str) -> str:
    """Return BY as part of a sentence: a role has an article, a name has none."""
    return f"an {by}" if by in {"operator", "admin"} else by or "an operator"


def _was(row: RolloutRow) -> str:
    """Return why ROW had stopped before somebody ends it; empty if it had not."""
    said = {"paused": row.reason, "reverting": row.stopped}.get(row.state, "")
    return f" It was {said[0].lower()}{said[1:]}" if said else ""


def _row(plan: Plan, release: Release, number: int, now: float) -> RolloutRow:
    policy = plan.policy
    if not policy.shadow_s and any(gate.metric == "agreement" for gate in policy.gates):
        policy = replace(policy, shadow_s=SHADOW_S)
    return RolloutRow(
        id=f"r{number}-{secrets.token_hex(2)}",
        number=number,
        group_id=plan.group,
        release=plan.release,
        variants=store.targets_as_json(release.variants),
        waves=plan.waves,
        policy=msgspec.to_builtins(policy),
        forgiven=[],
        waived=[],
        priority=plan.priority,
        approved_by="",
        state="draft",
        reason="Waiting: it is a draft that somebody must start.",
        created=now,
        updated=now,
        version=0,
    )


def _packed(
    rollout: Rollout, members: Sequence[Member], decision: Decision, now: float
) -> Packed | None:
    """Return the inputs of DECISION, if it did more than find another sentence."""
    return pack(rollout, members, now) if decision.actions else None


def _superseded(row: RolloutRow, first: str) -> UsageError:
    return UsageError(
        f"rollout {row.id} cannot be resumed",
        why=f"{first} goes before it and covers the same group",
        fix=f"create a new rollout of {row.release}",
        reason="superseded",
    )
