"""What counts now: a publisher's home and a repository, brought together and verified.

Either may be ahead: a home that missed its last step, another machine of the publisher, a
repository restored from a backup. The newest that is rightly signed counts, except where a key
was stolen: then the publisher says which side to believe.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tuf.api.metadata import Root, Targets

from edgepack.errors import IntegrityError, UsageError
from edgepack.metadata import parse, verify
from edgepack_packager.adapters.published import Published, current_roles
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.core.state import State
from edgepack_packager.core.summary import describe_line, describe_targets

__all__ = ["Doubt", "current_state"]


@dataclass(frozen=True, slots=True)
class Doubt:
    """Roles whose key was in other hands: is what is published, but unknown here, ours?

    Attributes:
        roles: The roles in doubt.
        keep: Those of which it is.
        discard: Those of which it is not; what this home knows counts.
    """

    roles: Collection[str] = ()
    keep: Collection[str] = ()
    discard: Collection[str] = ()


def current_state(
    home: PublisherHome, repository: Published | None, doubt: Doubt | None = None
) -> State:
    """Return what counts, given HOME and REPOSITORY.

    Args:
        home: The publisher's home.
        repository: Where it publishes; None: go by the home alone.
        doubt: Roles whose published state may be a thief's.

    Raises:
        IntegrityError: the repository is not this publisher's, or damaged.
        UsageError: a role in doubt is published in a version this home does not know, and
            nobody said whether to keep or discard it.
        UnreachableError: the fleet does not answer.
    """
    home.settle()
    roots = _roots(home, repository)
    online = current_roles(repository) if repository else {}
    # A side that has not heard of the newest root may hold what a key of old signed.
    newest = list(roots)[-1]
    behind = newest not in home.roots, bool(repository and not repository.metadata(newest))
    sides = _Sides(home, online, doubt or Doubt(), behind)
    root = parse(list(roots.values())[-1], Root).signed
    sides.take("targets", root)
    top = parse(sides.roles["targets"], Targets).signed
    for role in (top.delegations and top.delegations.roles) or {}:
        sides.take(role, top)
    return State(roots, sides.roles, sides.seen)


def _roots(home: PublisherHome, repository: Published | None) -> dict[str, bytes]:
    """Return the root chain of both, the longer one, checked where the home does not know it."""
    roots = home.roots
    first = repository.metadata("1.root.json") if repository else None
    if first is not None and first != roots["1.root.json"]:
        raise IntegrityError(
            "the repository belongs to another publisher",
            why="its first root is not the one of this home",
            reason="bad_root",
        )
    for name, data in _later_roots(repository, home.root) if repository else ():
        roots[name] = data
    return roots


def _later_roots(repository: Published, root: Root) -> Iterator[tuple[str, bytes]]:
    while data := repository.metadata(f"{root.version + 1}.root.json"):
        metadata = parse(data, Root)
        verify(root, Root.type, metadata)
        following = verify(metadata.signed, Root.type, metadata)
        if following.version != root.version + 1:
            raise IntegrityError("a root of the repository is out of order", reason="bad_root")
        root = following
        yield f"{root.version}.root.json", data


class _Sides:
    """Home and repository, and what is taken of them: `roles`, and the versions `seen`."""

    def __init__(
        self,
        home: PublisherHome,
        online: dict[str, bytes],
        doubt: Doubt,
        behind: tuple[bool, bool],
    ) -> None:
        self._home, self._online, self._doubt = home, online, doubt
        self._behind = behind
        self.roles: dict[str, bytes] = {}
        self.seen: dict[str, int] = {}

    def take(self, role: str, delegator: Root | Targets) -> None:
        """Take ROLE, whose keys DELEGATOR names, from the side that counts."""
        ours, theirs = self._home.newest(role), self._online.get(role)
        if role in self._doubt.roles and theirs is not None:
            self.seen[role] = _version(theirs)
            if not _believed(role, ours, theirs, self._doubt):
                theirs = None
                if ours is None:
                    return
        sides = zip((ours, theirs), self._behind, strict=True)
        candidates = [
            data for data, behind in sides if data and _counts(role, data, delegator, behind=behind)
        ]
        if not candidates:
            raise IntegrityError(f"the metadata of {role} is lost", reason="metadata_missing")
        self.roles[role] = max(candidates, key=_version)


def _counts(role: str, data: bytes, delegator: Root | Targets, *, behind: bool) -> bool:
    try:
        verify(delegator, role, parse(data, Targets))
    except IntegrityError:
        if not behind:
            raise
        return False
    return True


def _believed(role: str, ours: bytes | None, theirs: bytes, doubt: Doubt) -> bool:
    """Return whether THEIRS of ROLE counts.

    Raises:
        UsageError: nobody has said so, and it is not what this home knows.
    """
    if role in doubt.keep or theirs == ours or (ours and _version(theirs) < _version(ours)):
        return True
    if role in doubt.discard:
        return False
    raise UsageError(
        f"{role} is published in a version that this home does not know",
        why="; ".join(_differences(role, ours, theirs)),
        fix=f"--keep {role} if all of that is yours, --discard {role} if a thief signed it",
        reason="unknown_version",
    )


def _differences(role: str, ours: bytes | None, theirs: bytes) -> list[str]:
    new = parse(theirs, Targets).signed
    old = parse(ours, Targets).signed if ours else None
    if role == "targets":
        return list(describe_targets(old, new)) if old else []
    return list(describe_line(role.removeprefix("line-"), old, new))


def _version(data: bytes) -> int:
    return parse(data, Targets).signed.version
