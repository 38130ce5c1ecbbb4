"""What counts now: a publisher's home and a repository, brought together and verified.

Either may be ahead: a home that missed its last step, another machine of the publisher, a
repository restored from a backup. The newest that is rightly signed counts, except where a key
was stolen: then the publisher says which side to believe.

What keys of old signed is superseded, not forged: a change of keys that was cut short leaves
that behind, on either side. It never counts, but is what one goes on from if nothing else is.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tuf.api.metadata import Root, Targets

from edgepack.errors import IntegrityError, UsageError
from edgepack.metadata import parse, verify
from edgepack.trust import TrustError
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
    sides = _Sides(home, online, doubt or Doubt(), [parse(d, Root).signed for d in roots.values()])
    sides.take("targets", sides.roots[-1])
    top = parse(sides.roles["targets"], Targets).signed
    for role in (top.delegations and top.delegations.roles) or {}:
        sides.take(role, top)
    gone = frozenset(online.keys() - sides.roles.keys())
    return State(roots, sides.roles, sides.seen, frozenset(sides.renew), gone)


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
    """Home and repository, and what is taken of them: `roles`, `seen` and `renew` of a `State`."""

    def __init__(
        self, home: PublisherHome, online: dict[str, bytes], doubt: Doubt, roots: list[Root]
    ) -> None:
        self._home, self._online, self._doubt = home, online, doubt
        self.roots = roots
        self.roles: dict[str, bytes] = {}
        self.seen: dict[str, int] = {}
        self.renew: set[str] = set()

    def take(self, role: str, delegator: Root | Targets) -> None:
        """Take ROLE, whose keys DELEGATOR names, from the side that counts."""
        ours, theirs = self._home.newest(role), self._online.get(role)
        if role in self._doubt.roles and theirs is not None:
            self.seen[role] = _version(theirs)
            if not _believed(role, ours, theirs, self._doubt):
                theirs = None
                if ours is None:
                    return
        sides = [data for data in (ours, theirs) if data]
        counting = [data for data in sides if self._counts(role, data, delegator)]
        if not sides:
            raise IntegrityError(f"the metadata of {role} is lost", reason="metadata_missing")
        self.roles[role] = max(counting, key=_version) if counting else self._base(role, sides)
        self._outrun(role, theirs, counting)

    def _counts(self, role: str, data: bytes, delegator: Root | Targets) -> bool:
        """Return whether DATA of ROLE counts.

        Raises:
            IntegrityError: it does not, and never did.
        """
        if _signed(role, data, delegator):
            return True
        if any(_signed(role, data, earlier) for earlier in self._earlier(role)):
            return False
        verify(delegator, role, parse(data, Targets))
        return True

    def _earlier(self, role: str) -> Iterator[Root | Targets]:
        """Yield who may have named the keys of ROLE before."""
        if role == "targets":
            yield from self.roots
            return
        files = self._home.metadata
        every = [files.read(f"{version}.targets.json") for version in files.versions("targets")]
        for data in filter(None, (*every, self._online.get("targets"))):
            if any(_signed("targets", data, root) for root in self.roots):
                yield parse(data, Targets).signed

    def _base(self, role: str, sides: list[bytes]) -> bytes:
        """Return what to go on from if none of SIDES counts."""
        ours, theirs = sides[0], sides[-1]
        return theirs if _believed(role, ours, theirs, self._doubt) else ours

    def _outrun(self, role: str, theirs: bytes | None, counting: list[bytes]) -> None:
        """See to it that ROLE gets a version that counts, and is higher than what does not."""
        if not counting or (theirs and theirs not in counting):
            seen = max(_version(theirs) if theirs else 0, self.seen.get(role, 0))
            if not counting or seen >= _version(self.roles[role]):
                self.seen[role] = seen
                self.renew.add(role)


def _signed(role: str, data: bytes, delegator: Root | Targets) -> bool:
    try:
        verify(delegator, role, parse(data, Targets))
    except TrustError as error:
        if error.reason != "bad_signature":
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
