"""What counts now: the roles a publisher has signed, as files. Pure; verifies nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tuf.api.metadata import Root, Targets

from edgepack.metadata import parse
from edgepack.trust import line_role

__all__ = ["TOP_ROLES", "State", "delegates"]

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")
"""The roles whose keys the root names; all others are lines."""


@dataclass(frozen=True)
class State:
    """What a publisher has signed: the root chain and the newest targets roles.

    Attributes:
        roots: Every root by file name, oldest first.
        roles: `targets` and the lines by name.
        seen: Highest version of a role anybody has seen, where `roles` has a lower one.
        renew: Roles to sign again with whatever is signed next: keys that count no longer
            signed what `roles` has of them, or what is published.
        gone: Roles that are published and that nobody delegates to any more.
    """

    roots: Mapping[str, bytes]
    roles: Mapping[str, bytes]
    seen: Mapping[str, int] = field(default_factory=dict)
    renew: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()

    @cached_property
    def root(self) -> Root:
        """The newest root."""
        return parse(list(self.roots.values())[-1], Root).signed

    @cached_property
    def targets(self) -> Targets:
        """The top role."""
        return parse(self.roles["targets"], Targets).signed

    def line(self, name: str) -> Targets | None:
        """Return the role of the model line NAME; None if there is none."""
        data = self.roles.get(line_role(name))
        return parse(data, Targets).signed if data and delegates(self.targets, name) else None

    def delegator(self, role: str) -> Root | Targets:
        """Return who names the keys of ROLE."""
        return self.root if role in TOP_ROLES else self.targets

    @property
    def files(self) -> dict[str, bytes]:
        """Every metadata file by name."""
        versions = {role: parse(data, Targets).signed.version for role, data in self.roles.items()}
        return {
            **self.roots,
            **{f"{versions[role]}.{role}.json": data for role, data in self.roles.items()},
        }


def delegates(targets: Targets, name: str) -> bool:
    """Return whether TARGETS delegates the model line NAME."""
    return bool(targets.delegations and line_role(name) in (targets.delegations.roles or {}))
