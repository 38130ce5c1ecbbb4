"""What a publisher is about to sign: the next version of some roles, signed by some. Pure.

A `State` is what counts now. A `Change` says what shall be different. The `Draft` between them
holds whole metadata files that gather signatures, here or on other machines, until each has as
many as its delegator asks for; a root needs those of the root before it too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets, VerificationResult

from edgepack.errors import UsageError
from edgepack.metadata import parse, split_name, stale
from edgepack.trust import TrustError, line_role
from edgepack_packager.core.roles import (
    TARGETS_LIFE,
    KeyChange,
    LineChange,
    next_line,
    next_root,
    next_targets,
)
from edgepack_packager.core.state import TOP_ROLES, State, delegates
from edgepack_packager.core.summary import describe_line, describe_root, describe_targets

__all__ = [
    "Change",
    "Draft",
    "Missing",
    "describe",
    "entitled",
    "make_draft",
    "missing",
    "signed",
]


@dataclass(frozen=True, slots=True)
class Change:
    """What shall be different.

    Attributes:
        lines: Changes of model lines, by name.
        line_keys: The key of each of them that is new.
        keys: Changes of who signs.
        again: Roles to sign again though nothing about them changes.
    """

    lines: Mapping[str, LineChange] = field(default_factory=dict)
    line_keys: Mapping[str, Key] = field(default_factory=dict)
    keys: Sequence[KeyChange] = ()
    again: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Draft:
    """Metadata files by name, with the signatures they have so far."""

    files: Mapping[str, bytes]

    def after(self, state: State) -> State:
        """Return STATE as it is once this counts."""
        roots, roles = dict(state.roots), dict(state.roles)
        for name, data in self.files.items():
            role = split_name(name)[1]
            if role == "root":
                roots[name] = data
            else:
                roles[role] = data
        return State(roots, roles)


@dataclass(frozen=True, slots=True)
class Missing:
    """Signatures that a file still needs: how many more, of which keys, and how many it has."""

    role: str
    count: int
    keyids: tuple[str, ...]
    have: int


def make_draft(state: State, change: Change, now: datetime) -> Draft:
    """Return the unsigned metadata that makes CHANGE happen to STATE; empty if nothing is to do.

    Raises:
        UsageError: it cannot be done.
    """
    of_root = [each for each in change.keys if each.role in TOP_ROLES]
    of_lines = {each.role: each for each in change.keys if each.role not in TOP_ROLES}
    files: dict[str, bytes] = {}
    if of_root or "root" in change.again:
        root = next_root(state.root, of_root, now)
        files[f"{root.version}.root.json"] = Metadata(root).to_bytes()
    new = {n: k for n, k in change.line_keys.items() if not delegates(state.targets, n)}
    again = change.again | state.renew
    again |= {each.role for each in of_root if each.role == "targets"}
    tired = bool(change.lines) and stale(state.targets.expires, TARGETS_LIFE, now)
    if new or of_lines or tired or "targets" in again:
        seen = state.seen.get("targets", 0)
        top = next_targets(state.targets, new, list(of_lines.values()), now, seen)
        files[f"{top.version}.targets.json"] = Metadata(top).to_bytes()
    for line in _lines(state, change, again | of_lines.keys(), now):
        files[line[0]] = line[1]
    return Draft(files)


def _lines(
    state: State, change: Change, again: Iterable[str], now: datetime
) -> Iterator[tuple[str, bytes]]:
    again = {role for role in again if role not in TOP_ROLES}
    for role in sorted(again | {line_role(name) for name in change.lines}):
        name = role.removeprefix("line-")
        wanted = change.lines.get(name, LineChange())
        seen = state.seen.get(role, 0)
        line = next_line(state.line(name), wanted, now, seen=seen, again=role in again)
        if line is not None:
            yield f"{line.version}.{role}.json", Metadata(line).to_bytes()


def entitled(state: State, draft: Draft, name: str) -> dict[str, Key]:
    """Return the keys, by id, whose signature counts on the file NAME of DRAFT."""
    return {
        keyid: key
        for result in _results(state, draft, name)
        for keyid, key in (result.signed | result.unsigned).items()
    }


def missing(state: State, draft: Draft) -> list[Missing]:
    """Return what DRAFT still needs before it can follow STATE."""
    return [
        Missing(
            split_name(name)[1], result.missing, tuple(sorted(result.unsigned)), len(result.signed)
        )
        for name in draft.files
        for result in _results(state, draft, name)
        if not result.verified
    ]


def signed(state: State, draft: Draft, signers: Sequence[Signer]) -> Draft:
    """Return DRAFT with a signature of each of SIGNERS on every file it may sign.

    Raises:
        UsageError: a key cannot sign (reason `bad_key`).
    """
    files = {}
    for name, data in draft.files.items():
        metadata = _metadata(name, data)
        keys = entitled(state, draft, name)
        for signer in signers:
            keyid = signer.public_key.keyid
            if keyid in keys and keyid not in metadata.signatures:
                _sign(metadata, signer, name)
        files[name] = metadata.to_bytes()
    return Draft(files)


def describe(state: State, draft: Draft) -> list[str]:
    """Return what DRAFT does to STATE, a sentence each."""
    return [text for name in sorted(draft.files, key=_order) for text in _file(state, draft, name)]


def _order(name: str) -> tuple[bool, bool, str]:
    role = split_name(name)[1]
    return role != "root", role != "targets", role


def _file(state: State, draft: Draft, name: str) -> Iterator[str]:
    role = split_name(name)[1]
    data = draft.files[name]
    if role == "root":
        yield from describe_root(state.root, parse(data, Root).signed)
    elif role == "targets":
        yield from describe_targets(state.targets, parse(data, Targets).signed)
    else:
        line = role.removeprefix("line-")
        yield from describe_line(line, state.line(line), parse(data, Targets).signed)


def _sign(metadata: Metadata[Root] | Metadata[Targets], signer: Signer, name: str) -> None:
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        raise UsageError(
            f"the key {signer.public_key.keyid[:12]} cannot sign {name}",
            why=str(error.__cause__ or error) or type(error.__cause__).__name__,
            reason="bad_key",
        ) from error


def _results(state: State, draft: Draft, name: str) -> list[VerificationResult]:
    """Return how the signatures of the file NAME stand, by each that must agree to it."""
    role = split_name(name)[1]
    metadata = _metadata(name, draft.files[name])
    payload, signatures = metadata.signed_bytes, metadata.signatures
    after = draft.after(state)
    delegators = [after.delegator(role)]
    if role == "root":
        delegators.insert(0, state.root)
    try:
        return [d.get_verification_result(role, payload, signatures) for d in delegators]
    except ValueError as error:
        raise TrustError("bad_metadata", f"nobody delegates to {role}", why=str(error)) from error


def _metadata(name: str, data: bytes) -> Metadata[Root] | Metadata[Targets]:
    return parse(data, Root) if split_name(name)[1] == "root" else parse(data, Targets)
