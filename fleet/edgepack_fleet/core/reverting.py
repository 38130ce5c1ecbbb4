"""The way back: every device that has the release gets what it had before. Pure.

What has not finished is withdrawn or recalled first: such a device goes back by itself. Who is
out of reach gets its job on its return, also after the rollout has `reverted`.
"""

from collections.abc import Sequence

from edgepack_fleet.core import members as of
from edgepack_fleet.core.actions import Action, Assign, Recall, Withdraw
from edgepack_fleet.core.model import TERMINAL, Member, Rollout

__all__ = ["turn_back"]


def turn_back(
    rollout: Rollout, members: Sequence[Member], now: float
) -> tuple[tuple[Action, ...], bool]:
    """Return what a ROLLOUT that turns back does next, and whether all who can be are back."""
    policy = rollout.policy
    stopped = tuple(_stop(m) for m in members if _installs(m))
    offline = tuple(
        Withdraw(m.device.id) for m in members if m.kind == "revert" and of.gone(m, policy, now)
    )
    away = {action.device for action in offline}
    free = [m for m in members if _wants_back(m, rollout) and m.device.online]
    ready = [m for m in free if not of.retries(m, policy) or of.due(m, policy, now)]
    # What was stopped just now is free again, but its place is not: the device does not know yet.
    chosen = sorted(ready, key=lambda m: m.device.id)[: of.room(members, policy, now)]
    busy = any(_busy(m) and m.device.id not in away for m in members)
    actions = (*stopped, *offline, *map(_give, chosen))
    return actions, not (stopped or free or busy)


def _installs(member: Member) -> bool:
    return member.kind == "install" and member.wave is not None and member.status not in TERMINAL


def _stop(member: Member) -> Action:
    if member.status == "QUEUED":
        return Withdraw(member.device.id)
    return Recall(member.device.id)


def _busy(member: Member) -> bool:
    return member.kind == "revert" and member.status not in TERMINAL


def _wants_back(member: Member, rollout: Rollout) -> bool:
    """Return whether MEMBER runs the release, may be spoken to, and has no open or final job."""
    if not member.has_it or member.wave is None or member.before is None:
        return False
    if member.taken_by or member.left or member.status not in TERMINAL:
        return False
    return member.kind == "install" or of.retries(member, rollout.policy)


def _give(member: Member) -> Assign:
    assert member.before is not None
    assert member.wave is not None
    return Assign(member.device.id, member.before, member.wave, member.attempt + 1, "revert")
