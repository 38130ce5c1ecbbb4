"""May these roles follow those? The shape of what a publisher signs. Checks no signature.

Asked by a fleet that is pushed to, and by a person who is asked to sign what somebody else has
prepared. Both refuse what they do not understand.
"""

from collections.abc import Iterator, Mapping

from tuf.api.metadata import Targets

from edgepack.trust import (
    TargetInfo,
    TrustError,
    exam_path,
    line_paths,
    line_role,
    parse_model_path,
)

__all__ = ["added_targets", "delegated_lines"]


def delegated_lines(targets: Targets) -> Iterator[str]:
    """Yield the names of the model lines TARGETS delegates to; nothing else may be in there.

    Raises:
        TrustError: something else is.
    """
    if targets.targets:
        raise TrustError("mismatch", "the top role lists targets itself")
    roles = (targets.delegations and targets.delegations.roles) or {}
    for role, delegation in roles.items():
        name = role.removeprefix("line-")
        if role != line_role(name) or delegation.paths != line_paths(name):
            raise TrustError("mismatch", f"{role} is delegated other paths than a line's own")
        if not delegation.terminating:
            raise TrustError("mismatch", f"the delegation to {role} does not end the search")
        yield name


def added_targets(
    name: str, before: Mapping[str, TargetInfo], after: Mapping[str, TargetInfo]
) -> Iterator[TargetInfo]:
    """Yield the targets of a line that are new; of the old ones only the exam may have changed.

    Args:
        name: The model line.
        before: Its targets by path as published.
        after: Its targets as they shall be.

    Raises:
        TrustError: a target is not one of this line, or has changed.
    """
    for path, info in after.items():
        if path == exam_path(name):
            info.exam  # noqa: B018  reading it is the check
        elif parse_model_path(path)[0] != name or info.model.path != path:
            raise TrustError("bad_path", f"{path} is not a model of the line {name}")
        elif path in before and before[path] != info:
            raise TrustError("mismatch", f"{path} is published already, with other content")
        if before.get(path) != info:
            yield info
