"""A signing request: a draft as a file, for people who sign on machines without a network. Pure.

Whoever signs trusts nothing in it. It carries the whole chain from the first root to what is
published, so that a machine that knows only that root can check every signature, and compute for
itself what the draft changes. A request that holds anything this does not understand is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Literal, get_args

import msgspec
from tuf.api.metadata import Delegations, Metadata, Root, Targets

from edgepack import canonical
from edgepack.errors import IntegrityError
from edgepack.metadata import parse, split_name, targets_of, verify
from edgepack.signers import named_by_content
from edgepack.succession import added_targets, delegated_lines
from edgepack.trust import MIN_EPOCH, ON_REVOKED, OnRevoked, TrustError, line_role
from edgepack_packager.core.draft import Draft, describe, entitled
from edgepack_packager.core.roles import ROOT_LIFE, TARGETS_LIFE
from edgepack_packager.core.state import TOP_ROLES, State

__all__ = ["MAX_REQUEST", "Request", "merged", "read_request", "review", "write_request"]

MAX_REQUEST = 8 * 1024 * 1024
"""Bytes."""
MAX_FILES = 256
SLACK = timedelta(days=2)
"""How far the clocks of two machines may differ, and how long a request travels."""

_NOBODY = Delegations({}, {})

_Text = Annotated[str, msgspec.Meta(max_length=2 * 1024 * 1024)]
_Files = Annotated[dict[str, _Text], msgspec.Meta(max_length=MAX_FILES)]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal["edgepack.sign-request/v1"]
    changes: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=10_000)]
    roots: _Files
    roles: _Files
    seen: Annotated[
        dict[str, Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=MAX_FILES)
    ]
    draft: Annotated[dict[str, _Text], msgspec.Meta(min_length=1, max_length=MAX_FILES)]


@dataclass(frozen=True, slots=True)
class Request:
    """A draft, what it starts from, and what it says it changes."""

    state: State
    draft: Draft
    changes: tuple[str, ...]


def write_request(state: State, draft: Draft) -> bytes:
    """Return DRAFT, which follows STATE, as a signing request."""
    document = {
        "schema": "edgepack.sign-request/v1",
        "changes": describe(state, draft),
        "roots": _texts(state.roots),
        "roles": _texts(state.roles),
        "seen": dict(state.seen),
        "draft": _texts(draft.files),
    }
    return canonical.dumps(document)


def read_request(data: bytes) -> Request:
    """Return the signing request DATA. No signature has been checked; see `review`.

    Raises:
        IntegrityError: it is not one, to the byte (reason `bad_request`).
    """
    if len(data) > MAX_REQUEST:
        raise _bad(f"it is larger than {MAX_REQUEST} bytes")
    try:
        document = msgspec.convert(canonical.loads(data, what="the signing request"), _Document)
    except msgspec.ValidationError as error:
        raise _bad(str(error)) from error
    roots = _bytes(document.roots)
    names = [f"{version}.root.json" for version in range(1, len(roots) + 1)]
    if not roots or set(roots) != set(names):
        raise _bad("it does not hold the whole chain of roots")
    state = State({name: roots[name] for name in names}, _bytes(document.roles), document.seen)
    if "targets" not in state.roles:
        raise _bad("it does not hold the top role")
    return Request(state, Draft(_bytes(document.draft)), document.changes)


def review(request: Request, root: bytes, now: datetime) -> list[str]:
    """Return what REQUEST changes, having checked everything it holds.

    Args:
        request: What somebody asks to have signed.
        root: The publisher's first root, from a source of one's own.
        now: The time, UTC.

    Raises:
        IntegrityError: it is another publisher's, not what it says, or not understood.
    """
    state = request.state
    if state.roots["1.root.json"] != root:
        raise TrustError("bad_root", "the request is for another publisher's repository")
    _check_state(state)
    for name, data in request.draft.files.items():
        _check_file(request, name, data, now)
    _check_lines(request)
    changes = describe(state, request.draft)
    if tuple(changes) != request.changes:
        raise _bad("it does not do what it says it does")
    return changes


def merged(requests: list[Request]) -> Request:
    """Return one request with the signatures of all REQUESTS, which must be for the same draft.

    Raises:
        IntegrityError: they are not (reason `bad_request`).
    """
    first = requests[0]
    files = {name: _parsed(name, data) for name, data in first.draft.files.items()}
    for request in requests[1:]:
        if request.draft.files.keys() != files.keys():
            raise _bad("the requests are not copies of one")
        for name, data in request.draft.files.items():
            other = _parsed(name, data)
            if other.signed_bytes != files[name].signed_bytes:
                raise _bad(f"the requests ask for different versions of {name}")
            files[name].signatures.update(other.signatures)
    draft = Draft({name: metadata.to_bytes() for name, metadata in files.items()})
    return Request(first.state, draft, first.changes)


def _check_state(state: State) -> None:
    """Check the roots and roles that count now, from the first root on."""
    previous: Root | None = None
    for version, data in enumerate(state.roots.values(), 1):
        metadata = parse(data, Root)
        verify(previous or metadata.signed, Root.type, metadata)
        previous = verify(metadata.signed, Root.type, metadata)
        if previous.version != version:
            raise _bad("its roots are out of order")
    for role, data in state.roles.items():
        verify(state.delegator(role), role, parse(data, Targets))


def _check_file(request: Request, name: str, data: bytes, now: datetime) -> None:
    """Check the file NAME of the draft: form, version, expiry and the signatures it has."""
    version, role = split_name(name)
    metadata = _parsed(name, data)
    if metadata.to_bytes() != data or metadata.unrecognized_fields:
        raise _bad(f"{name} is not written as we write it")
    before, life = _before(request.state, role)
    if metadata.signed.version != version or version != before + 1:
        raise _bad(f"{name} does not follow version {before}")
    if not now < metadata.signed.expires <= now + life + SLACK:
        raise _bad(f"{name} would expire on {metadata.signed.expires:%Y-%m-%d}")
    _check_fields(name, metadata.signed)
    keys = entitled(request.state, request.draft, name)
    for keyid, signature in metadata.signatures.items():
        if keyid not in keys or not _valid(keys[keyid], signature, metadata.signed_bytes):
            raise TrustError("bad_signature", f"{name} has a signature that does not count")


def _before(state: State, role: str) -> tuple[int, timedelta]:
    """Return the version ROLE has now, and how long its next one may live."""
    if role == "root":
        return state.root.version, ROOT_LIFE
    data = state.roles.get(role)
    known = parse(data, Targets).signed.version if data else 0
    return max(known, state.seen.get(role, 0)), TARGETS_LIFE


def _check_fields(name: str, signed: Root | Targets) -> None:
    fields = dict(signed.unrecognized_fields)
    if isinstance(signed, Targets) and split_name(name)[1] not in TOP_ROLES:
        epoch, policy = fields.pop(MIN_EPOCH, 0), fields.pop(ON_REVOKED, "keep")
        if type(epoch) is not int or epoch < 0 or policy not in get_args(OnRevoked):
            raise _bad(f"{name} says what is not understood of revoked models")
    if fields:
        raise _bad(f"{name} has unknown fields: {', '.join(sorted(fields))}")
    keys = signed.keys if isinstance(signed, Root) else (signed.delegations or _NOBODY).keys
    # What is shown to people are ids: another key under an id they know would go unseen.
    if strange := [keyid for keyid, key in keys.items() if not named_by_content(key)]:
        raise _bad(f"{name} has another key under the id {strange[0][:12]}")
    if isinstance(signed, Root) and not signed.consistent_snapshot:
        raise _bad("the root does not ask for consistent snapshots")


def _check_lines(request: Request) -> None:
    """Check that every line has the shape of one, and nothing published changes."""
    after = request.draft.after(request.state)
    lines = set(delegated_lines(after.targets))
    for name in sorted(request.draft.files):
        role = split_name(name)[1]
        line = role.removeprefix("line-")
        if role in {"root", "targets"}:
            continue
        if role != line_role(line) or line not in lines:
            raise _bad(f"nobody delegates to {role}")
        new = parse(request.draft.files[name], Targets).signed
        list(added_targets(line, targets_of(request.state.line(line)), targets_of(new)))


def _valid(key: object, signature: object, payload: bytes) -> bool:
    from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError

    try:
        key.verify_signature(signature, payload)  # type: ignore[attr-defined]
    except (UnverifiedSignatureError, VerificationError):
        return False
    return True


def _parsed(name: str, data: bytes) -> Metadata[Root] | Metadata[Targets]:
    role = split_name(name)[1]
    if role in {"snapshot", "timestamp"}:
        raise _bad(f"{role} is not for people to sign")
    return parse(data, Root) if role == "root" else parse(data, Targets)


def _texts(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: data.decode() for name, data in files.items()}


def _bytes(texts: Mapping[str, str]) -> dict[str, bytes]:
    try:
        return {name: text.encode() for name, text in texts.items()}
    except UnicodeEncodeError as error:
        raise _bad(str(error)) from error


def _bad(why: str) -> IntegrityError:
    return IntegrityError(
        "the signing request cannot be used",
        why=why,
        fix="make it again: edgepack repo sign-request; nothing was signed",
        reason="bad_request",
    )
