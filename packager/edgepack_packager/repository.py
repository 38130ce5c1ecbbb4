"""Publishing: makes a publisher's home, and signs bundles into a repository. Builds no bundle.

The order makes a crash harmless: blobs first, then metadata, then the timestamp that makes it
count, then the home's own copy. A home that missed its last step catches up from the
repository, whose metadata it verifies with its own root.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import Key, SSlibKey

from edgepack.bundle import Bundle, open_bundle
from edgepack.errors import IntegrityError, UsageError
from edgepack.metadata import sign
from edgepack.signers import named_by_content
from edgepack.trust import OnRevoked, TargetInfo, exam_target, line_role, model_target
from edgepack_packager.adapters.exam import read_exam
from edgepack_packager.adapters.patch_workshop import Progress
from edgepack_packager.adapters.published import Published
from edgepack_packager.adapters.publisher_home import (
    EXPORT_KEY,
    ONLINE,
    ROOT_KEYS,
    PublisherHome,
    create_keys,
    new_home,
)
from edgepack_packager.core.deltas import Delta
from edgepack_packager.core.draft import (
    Change,
    Draft,
    Missing,
    describe,
    make_draft,
    missing,
    signed,
)
from edgepack_packager.core.roles import LineChange, first_root, first_targets, next_line
from edgepack_packager.core.state import State, delegates
from edgepack_packager.deltas import offer_deltas
from edgepack_packager.standing import current_state

__all__ = [
    "Publication",
    "PublishRequest",
    "Revision",
    "check_complete",
    "commit",
    "drafted",
    "init",
    "public_keys",
    "publish",
    "revise",
    "send_bundles",
    "signed_by_home",
]


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """What to publish.

    Attributes:
        bundles: Bundle files; any number of lines and versions.
        public: Whose signature every bundle must carry; None: anybody's.
        exam: New acceptance exam of the line; None keeps the one it has.
        min_score: Share of the exam's answers that must be right, 0..1.
        min_epoch: New epoch floor of the lines; None keeps it.
        on_revoked: What devices do with a revoked model; None keeps it.
        delta_from: What patches are to lead from: releases, `auto`; empty: none are made.
    """

    bundles: Sequence[Path]
    public: ec.EllipticCurvePublicKey | None = None
    exam: Path | None = None
    min_score: float = 0.0
    min_epoch: int | None = None
    on_revoked: OnRevoked | None = None
    delta_from: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """What `publish` did."""

    targets: tuple[TargetInfo, ...]
    snapshot: int
    uploaded_bytes: int
    deltas: tuple[Delta, ...] = ()


@dataclass(frozen=True, slots=True)
class Revision:
    """What `revise` did: the files it published, what they change, and the snapshot's version."""

    files: tuple[str, ...]
    summary: tuple[str, ...]
    snapshot: int


def init(
    home: Path, passphrase: bytes | None, now: datetime, online: Mapping[str, Any] | None = None
) -> str:
    """Make a publisher's home with keys, root 1 and an empty repository.

    Args:
        home: Directory to make; whole or not at all.
        passphrase: Encrypts the keys; None leaves them in the clear.
        now: The time, UTC.
        online: A fleet's public online keys; None makes them here, for a directory repository.

    Returns:
        SHA-256 of the root in hex, which devices are enrolled with.

    Raises:
        UsageError: HOME is not empty or cannot be written, or ONLINE is not a pair of keys.
    """
    awake = public_keys(online) if online is not None else {}
    with new_home(home) as part:
        signers = create_keys(part, passphrase, local=online is None)
        keys = {name: signer.public_key for name, signer in signers.items()} | awake
        roots = [keys[name] for name in ROOT_KEYS]
        mirrors = [keys[EXPORT_KEY]] if EXPORT_KEY in keys else []
        others = {"targets": [keys["targets"]]}
        root = first_root(roots, others | {r: [keys[r], *mirrors] for r in ONLINE}, now)
        data = sign(root, *(signers[name] for name in ROOT_KEYS))
        metadata = part / "metadata"
        metadata.mkdir()
        (metadata / "1.root.json").write_bytes(data)
        (metadata / "1.targets.json").write_bytes(sign(first_targets(now), signers["targets"]))
    return hashlib.sha256(data).hexdigest()


def publish(
    home: PublisherHome,
    repository: Published,
    request: PublishRequest,
    now: datetime,
    progress: Progress = lambda *_: None,
) -> Publication:
    """Sign the bundles of REQUEST into REPOSITORY.

    Publishing the same bundle again changes nothing and repairs what is missing. PROGRESS is
    told how the patches come along.

    Raises:
        IntegrityError: a bundle is broken, unsigned or signed by somebody else, or the
            repository is not this publisher's.
        UsageError: other content has that version already, or a key is missing.
        UnreachableError: the fleet does not answer.
    """
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in request.bundles]
        change, exam = _change(bundles, request)
        state = current_state(home, repository)
        draft = drafted(home, state, change, now)
        check_complete(home, missing(state, draft))
        after = draft.after(state)
        uploaded = _send(repository, bundles, exam)
        deltas = offer_deltas(repository, bundles, after.roles, request.delta_from, progress)
        snapshot = commit(home, repository, after)
    every = tuple(target for each in change.lines.values() for target in each.wanted)
    return Publication(every, snapshot, uploaded, deltas)


def revise(
    home: PublisherHome, repository: Published, state: State, change: Change, now: datetime
) -> Revision:
    """Make CHANGE, which needs no bundle, happen to STATE, which is REPOSITORY's.

    Raises:
        UsageError: it cannot be done, or a key that must sign is not here (reason
            `signatures_missing`).
        UnreachableError: the fleet does not answer.
    """
    draft = drafted(home, state, change, now)
    check_complete(home, missing(state, draft))
    summary = describe(state, draft)
    snapshot = commit(home, repository, draft.after(state))
    return Revision(tuple(draft.files), tuple(summary), snapshot)


def send_bundles(repository: Published, request: PublishRequest) -> tuple[Change, int]:
    """Send the blobs of REQUEST, which are nobody's yet; return the change that names them.

    Raises:
        IntegrityError: a bundle is broken, unsigned or signed by somebody else.
        UnreachableError: the fleet does not answer.
    """
    with ExitStack() as stack:
        bundles = [stack.enter_context(open_bundle(path)) for path in request.bundles]
        change, exam = _change(bundles, request)
        return change, _send(repository, bundles, exam)


def drafted(home: PublisherHome, state: State, change: Change, now: datetime) -> Draft:
    """Return the draft of CHANGE, signed with every key that is in HOME.

    Raises:
        UsageError: the change cannot be made.
    """
    for name, each in change.lines.items():
        next_line(state.line(name), each, now)  # refuses before a key is made
    new = {name: home.keys.create(line_role(name))
           for name in change.lines if not delegates(state.targets, name)}  # fmt: skip
    keys = dict(change.line_keys) | new
    draft = make_draft(state, Change(change.lines, keys, change.keys, change.again), now)
    return signed_by_home(home, state, draft)


def signed_by_home(home: PublisherHome, state: State, draft: Draft) -> Draft:
    """Return DRAFT with the signatures of every key in HOME that may sign it."""
    wanted = {keyid for gap in missing(state, draft) for keyid in gap.keyids}
    return signed(state, draft, home.keys.signers(wanted))


def check_complete(home: PublisherHome, gaps: Sequence[Missing], *, staged: bool = False) -> None:
    """Check that no signature is missing.

    Args:
        home: Has the keys that one would expect to sign.
        gaps: What is missing.
        staged: People elsewhere sign too, so that it need not be our own key.

    Raises:
        UsageError: some are; names them.
    """
    for gap in gaps:
        if gap.role != "root" and not gap.have and not staged:
            _check_own_key(home, gap)
    if gaps:
        raise UsageError(
            "not enough keys have signed",
            why="; ".join(f"{gap.role}: {gap.count} more of {_short(gap.keyids)}" for gap in gaps),
            fix="edgepack repo sign-request OUT collects signatures of people elsewhere",
            reason="signatures_missing",
        )


def commit(home: PublisherHome, repository: Published, state: State) -> int:
    """Make STATE what REPOSITORY says and HOME knows; return the snapshot's version.

    Raises:
        UsageError: a place cannot be written.
        UnreachableError: the fleet does not answer.
    """
    files = state.files
    snapshot = repository.commit(files, state.roles)
    home.save(files)
    home.settle()
    return snapshot


def public_keys(online: Mapping[str, Any]) -> dict[str, Key]:
    """Return a fleet's keys of snapshot and timestamp from what it says of them.

    Raises:
        UsageError: that is not a pair of keys.
    """
    try:
        return {role: _public_key(dict(online[role])) for role in ONLINE}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("the fleet's online keys cannot be read", why=str(error)) from error


def _public_key(facts: dict[str, Any]) -> Key:
    key = SSlibKey.from_dict(facts.pop("keyid"), facts)
    # Else a fleet in wrong hands could put its key in the place of one of ours.
    if not named_by_content(key):
        raise ValueError(f"the key {key.keyid[:12]} has an id that does not follow from it")
    return key


def _change(bundles: Sequence[Bundle], request: PublishRequest) -> tuple[Change, bytes | None]:
    """Return what REQUEST changes about the lines, and the exam's bytes."""
    wanted, exam = _wanted(bundles, request)
    lines = {
        name: LineChange(targets, request.min_epoch, request.on_revoked)
        for name, targets in wanted.items()
    }
    return Change(lines), exam


def _wanted(
    bundles: Sequence[Bundle], request: PublishRequest
) -> tuple[dict[str, list[TargetInfo]], bytes | None]:
    """Return the targets of every line by its name, and the exam's bytes."""
    wanted: dict[str, list[TargetInfo]] = {}
    for bundle in bundles:
        _check_signed(bundle, request.public)
        target = model_target(bundle.manifest, bundle.oci_manifest)
        wanted.setdefault(bundle.manifest.name, []).append(target)
    if request.exam is None:
        return wanted, None
    if len(wanted) != 1:
        raise UsageError("an exam belongs to one model line", why=f"bundles of {sorted(wanted)}")
    (name,) = wanted
    exams = [read_exam(request.exam, bundle.manifest) for bundle in bundles]
    wanted[name].append(exam_target(name, exams[0].data, request.min_score, exams[0].samples))
    return wanted, exams[0].data


def _check_signed(bundle: Bundle, public: ec.EllipticCurvePublicKey | None) -> None:
    if public is not None:
        bundle.verify(public)
    elif not bundle.signed:
        raise IntegrityError(
            f"{bundle.path} is not signed",
            fix="build it with --key; `edgepack keys create` makes a key",
            reason="unsigned",
        )


def _check_own_key(home: PublisherHome, gap: Missing) -> None:
    own = home.keys.public(gap.role)
    if own is None or not home.keys.has(gap.role):
        raise UsageError(
            f"the key {home.keys.path / gap.role}.pem is not here",
            why=f"{gap.role} is published, so there is one somewhere",
            fix="get it from whoever published first, or collect signatures: "
            "edgepack repo sign-request",
            reason="no_key",
        )
    if own.keyid not in gap.keyids:
        raise UsageError(
            f"{gap.role} is signed by another key than the one here",
            fix=f"get keys/{gap.role}.pem from whoever published it first",
            reason="wrong_key",
        )


def _short(keyids: Sequence[str]) -> str:
    return ", ".join(keyid[:12] for keyid in keyids)


def _send(repository: Published, bundles: Sequence[Bundle], exam: bytes | None) -> int:
    """Send what REPOSITORY lacks of BUNDLES and EXAM; return the bytes sent."""
    sent = sum(_upload(repository, bundle) for bundle in bundles)
    if exam is not None:
        sent += _put(repository, hashlib.sha256(exam).hexdigest(), exam)
    return sent


def _upload(repository: Published, bundle: Bundle) -> int:
    sent = 0
    for sha256, size in bundle.blobs().items():
        if not repository.has(sha256, size):
            with bundle.open_blob(sha256) as file:
                repository.put(sha256, size, file)
            sent += size
    return sent


def _put(repository: Published, sha256: str, data: bytes) -> int:
    if repository.has(sha256, len(data)):
        return 0
    repository.put(sha256, len(data), io.BytesIO(data))
    return len(data)
