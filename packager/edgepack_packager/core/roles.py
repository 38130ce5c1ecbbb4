"""The roles a publisher signs, as the next version of what they were. Pure; signs nothing."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Role, Root, Targets

from edgepack.errors import UsageError
from edgepack.metadata import MIN_EPOCH, ON_REVOKED, stale, target_file, target_info
from edgepack.trust import OnRevoked, TargetInfo, line_paths, line_role

__all__ = [
    "ROOT_LIFE",
    "TARGETS_LIFE",
    "KeyChange",
    "LineChange",
    "first_root",
    "first_targets",
    "next_line",
    "next_root",
    "next_targets",
]

ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=90)
ROOT_THRESHOLD = 2


@dataclass(frozen=True, slots=True)
class LineChange:
    """What is to change about a model line; what is None stays as it is.

    Attributes:
        wanted: Models to add, and the exam if it is to be set.
        min_epoch: Epoch floor from now on.
        on_revoked: What devices do with a model below the floor that serves.
    """

    wanted: Sequence[TargetInfo] = ()
    min_epoch: int | None = None
    on_revoked: OnRevoked | None = None


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What is to change about the keys of a role.

    Attributes:
        role: `root`, `targets`, `snapshot`, `timestamp` or the role of a line.
        add: Keys that may sign from now on.
        remove: Ids of keys whose signatures count no longer.
        threshold: How many of them have to sign; None keeps it.
    """

    role: str
    add: tuple[Key, ...] = ()
    remove: tuple[str, ...] = ()
    threshold: int | None = None


def first_root(roots: Sequence[Key], others: Mapping[str, Sequence[Key]], now: datetime) -> Root:
    """Return root 1: two of ROOTS sign for itself, one of its keys for each of OTHERS, by role."""
    root = Root(1, expires=now + ROOT_LIFE, consistent_snapshot=True)
    for key in roots:
        root.add_key(key, "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role, keys in others.items():
        for key in keys:
            root.add_key(key, role)
    return root


def first_targets(now: datetime) -> Targets:
    """Return the top role of a repository that has no model line yet."""
    return Targets(1, expires=now + TARGETS_LIFE, delegations=Delegations({}, {}))


def next_root(root: Root, changes: Sequence[KeyChange], now: datetime) -> Root:
    """Return the root after ROOT, in which CHANGES have happened.

    Raises:
        UsageError: a key is not there, or a role would have fewer keys than have to sign.
    """
    following = deepcopy(root)
    following.version, following.expires = root.version + 1, now + ROOT_LIFE
    for change in changes:
        _change_keys(following, change)
    return following


def next_targets(
    targets: Targets,
    lines: Mapping[str, Key],
    changes: Sequence[KeyChange],
    now: datetime,
    seen: int = 0,
) -> Targets:
    """Return the top role after TARGETS.

    Args:
        targets: What is published.
        lines: Model lines to delegate that are new, each with its key.
        changes: What changes about the keys of lines.
        now: The time, UTC.
        seen: Highest version anybody has seen.

    Raises:
        UsageError: a line or key is not there, or a line would have too few keys.
    """
    following = _copy(targets, now, seen)
    delegations = following.delegations or Delegations({}, {})
    following.delegations = delegations
    for name, key in lines.items():
        role = line_role(name)
        roles = dict(delegations.roles or {})
        roles[role] = DelegatedRole(role, [], 1, True, line_paths(name))
        delegations.roles = roles
        following.add_key(key, role)
    for change in changes:
        _change_keys(following, change)
    return following


def next_line(
    line: Targets | None, change: LineChange, now: datetime, *, seen: int = 0, again: bool = False
) -> Targets | None:
    """Return the next version of LINE, to which CHANGE has happened; None if nothing is to do.

    Args:
        line: What is published; None for a new line.
        change: What is to change.
        now: The time, UTC.
        seen: Highest version anybody has seen.
        again: Sign it again though nothing changes.

    Raises:
        UsageError: a model of that path is published with other content, the floor would
            fall, or a wanted model is below it.
    """
    following = _copy(line, now, seen) if line else Targets(seen + 1, expires=now + TARGETS_LIFE)
    for target in change.wanted:
        _add(following, target)
    _set_floor(following, change.min_epoch)
    if change.on_revoked is not None:
        following.unrecognized_fields[ON_REVOKED] = change.on_revoked
    _check_floor(following, change.wanted)
    same = line is not None and (
        line.targets == following.targets
        and line.unrecognized_fields == following.unrecognized_fields
    )
    tired = line is None or stale(line.expires, TARGETS_LIFE, now)
    return None if same and not tired and not again else following


def _copy(targets: Targets, now: datetime, seen: int) -> Targets:
    following = deepcopy(targets)
    following.version, following.expires = max(targets.version, seen) + 1, now + TARGETS_LIFE
    return following


def _change_keys(delegator: Root | Targets, change: KeyChange) -> None:
    role = _role(delegator, change.role)
    for keyid in change.remove:
        if keyid not in role.keyids:
            raise UsageError(
                f"the key {keyid[:12]} does not sign for {change.role}", reason="wrong_key"
            )
        delegator.revoke_key(keyid, change.role)
    for key in change.add:
        delegator.add_key(key, change.role)
    role.threshold = change.threshold or role.threshold
    if not 1 <= role.threshold <= len(role.keyids):
        raise UsageError(
            f"{change.role} would have {len(role.keyids)} keys, of which {role.threshold} sign",
            fix="add keys, or choose another --threshold",
            reason="bad_threshold",
        )


def _role(delegator: Root | Targets, name: str) -> Role:
    try:
        return delegator.get_delegated_role(name)
    except ValueError as error:
        raise UsageError(f"there is no role {name}", reason="no_role") from error


def _add(line: Targets, target: TargetInfo) -> None:
    known = line.targets.get(target.path)
    is_exam = target.path.endswith("/exam.npz")
    if known is not None and not is_exam and target_info(known) != target:
        raise UsageError(
            f"{target.model.release} is published already, with other content",
            why=f"{target.path} is {known.hashes.get('sha256', '')[:12]}, "
            f"the bundle is {target.sha256[:12]}",
            fix="what devices have seen never changes: publish it as the next version",
            reason="already_published",
        )
    line.targets[target.path] = target_file(target)


def _set_floor(line: Targets, min_epoch: int | None) -> None:
    floor = line.unrecognized_fields.get(MIN_EPOCH, 0)
    if min_epoch is not None and min_epoch < floor:
        raise UsageError(f"the epoch floor is {floor} and never falls", reason="epoch_below_floor")
    line.unrecognized_fields[MIN_EPOCH] = floor if min_epoch is None else min_epoch


def _check_floor(line: Targets, wanted: Sequence[TargetInfo]) -> None:
    floor = line.unrecognized_fields[MIN_EPOCH]
    for target in wanted:
        if not target.path.endswith("/exam.npz") and target.model.epoch < floor:
            raise UsageError(
                f"no device would run {target.model.release}",
                why=f"its security epoch is {target.model.epoch}, the line's floor is {floor}",
                fix="build it with a higher security epoch",
                reason="epoch_below_floor",
            )
