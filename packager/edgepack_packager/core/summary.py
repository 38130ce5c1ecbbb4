"""What a draft would change, in words for the person who is asked to sign it. Pure.

Everything that is signed shows up: a sentence per key, threshold, model, exam, floor and date.
"""

from collections.abc import Iterator

from tuf.api.metadata import Role, Root, Targets

from edgepack.metadata import MIN_EPOCH, ON_REVOKED, target_info
from edgepack.trust import exam_path

__all__ = ["describe_line", "describe_root", "describe_targets"]


def describe_root(before: Root, root: Root) -> Iterator[str]:
    """Yield what is different in ROOT than BEFORE."""
    yield f"root {before.version} -> {root.version}, valid until {root.expires:%Y-%m-%d}"
    for name, role in root.roles.items():
        yield from _keys(f"root: {name}", before.roles.get(name), role)


def describe_targets(before: Targets, targets: Targets) -> Iterator[str]:
    """Yield what is different in the top role TARGETS than BEFORE."""
    yield f"targets {before.version} -> {targets.version}, valid until {targets.expires:%Y-%m-%d}"
    old = (before.delegations and before.delegations.roles) or {}
    new = (targets.delegations and targets.delegations.roles) or {}
    for name, role in new.items():
        if name not in old:
            yield f"targets: {name} is new, for {' and '.join(role.paths or [])}"
        yield from _keys(f"targets: {name}", old.get(name), role)
    yield from (f"targets: {name} is gone" for name in old.keys() - new.keys())


def describe_line(name: str, before: Targets | None, line: Targets) -> Iterator[str]:
    """Yield what is different in the role LINE of the model line NAME than BEFORE."""
    version = f"{before.version} -> {line.version}" if before else str(line.version)
    yield f"{name} {version}, valid until {line.expires:%Y-%m-%d}"
    old = before.targets if before else {}
    for path in sorted(line.targets):
        if path not in old or target_info(old[path]) != target_info(line.targets[path]):
            yield f"{name}: {_target(name, line, path)}"
    yield from (f"{name}: takes {path} away" for path in sorted(old.keys() - line.targets.keys()))
    said = (before.unrecognized_fields if before else {}), line.unrecognized_fields
    floors = [fields.get(MIN_EPOCH, 0) for fields in said]
    if floors[0] != floors[1]:
        yield f"{name}: revokes every model below epoch {floors[1]} (was {floors[0]})"
    policies = [fields.get(ON_REVOKED, "keep") for fields in said]
    if policies[0] != policies[1]:
        yield f"{name}: devices {policies[1]} serving a revoked model (was {policies[0]})"


def _target(name: str, line: Targets, path: str) -> str:
    target = target_info(line.targets[path])
    if path == exam_path(name):
        return f"exam of {target.exam.samples} samples, passed with {target.exam.min_score}"
    return f"approves {path}, epoch {target.model.epoch}, sha256 {target.sha256}"


def _keys(where: str, before: Role | None, role: Role) -> Iterator[str]:
    old = before.keyids if before else []
    yield from (
        f"{where}: key {keyid} signs no longer" for keyid in old if keyid not in role.keyids
    )
    yield from (f"{where}: key {keyid} may sign" for keyid in role.keyids if keyid not in old)
    if before is None or before.threshold != role.threshold or old != role.keyids:
        yield f"{where}: {role.threshold} of {len(role.keyids)} keys have to sign"
