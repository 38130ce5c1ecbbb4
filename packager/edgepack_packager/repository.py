"""Publishing: makes a publisher's home, and signs bundles into a repository. Builds no bundle.

The order makes a crash harmless: blobs first, then metadata, then the timestamp that makes it
count, then the home's own copy. A home that missed its last step catches up from the
repository, whose line it verifies with its own keys.
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
from tuf.api.metadata import Root, Targets

from edgepack.bundle import Bundle, open_bundle
from edgepack.errors import IntegrityError, UsageError
from edgepack.metadata import parse, sign, verify
from edgepack.trust import TargetInfo, exam_target, line_role, model_target
from edgepack_packager.adapters.exam import read_exam
from edgepack_packager.adapters.patch_workshop import Progress
from edgepack_packager.adapters.published import Published, current_roles
from edgepack_packager.adapters.publisher_home import (
    EXPORT_KEY,
    ONLINE,
    ROOT_KEYS,
    PublisherHome,
    create_keys,
    new_home,
)
from edgepack_packager.core.deltas import Delta
from edgepack_packager.core.roles import delegates, first_root, first_targets, next_line, with_line
from edgepack_packager.deltas import offer_deltas

__all__ = ["Publication", "PublishRequest", "init", "publish"]


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """What to publish.

    Attributes:
        bundles: Bundle files; any number of lines and versions.
        public: Whose signature every bundle must carry; None: anybody's.
        exam: New acceptance exam of the line; None keeps the one it has.
        min_score: Share of the exam's answers that must be right, 0..1.
        min_epoch: New epoch floor of the lines; None keeps it.
        delta_from: What patches are to lead from: releases, `auto`; empty: none are made.
    """

    bundles: Sequence[Path]
    public: ec.EllipticCurvePublicKey | None = None
    exam: Path | None = None
    min_score: float = 0.0
    min_epoch: int | None = None
    delta_from: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Publication:
    """What `publish` did."""

    targets: tuple[TargetInfo, ...]
    snapshot: int
    uploaded_bytes: int
    deltas: tuple[Delta, ...] = ()


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
    awake = _public_keys(online) if online is not None else {}
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
        wanted, exam = _wanted(bundles, request)
        roles = _base(home, repository)
        files = dict(home.roots)
        for name, targets in wanted.items():
            _sign_line(home, roles, name, targets, request.min_epoch, now)
        uploaded = sum(_upload(repository, bundle) for bundle in bundles)
        if exam is not None:
            uploaded += _put(repository, hashlib.sha256(exam).hexdigest(), exam)
        deltas = offer_deltas(repository, bundles, roles, request.delta_from, progress)
        files |= {f"{_version(data)}.{role}.json": data for role, data in roles.items()}
        snapshot = repository.commit(files, roles)
        home.save(files)
    every = tuple(target for targets in wanted.values() for target in targets)
    return Publication(every, snapshot, uploaded, deltas)


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


def _base(home: PublisherHome, repository: Published) -> dict[str, bytes]:
    """Return the newest targets roles by name, of the home's and the repository's, verified."""
    first = repository.metadata("1.root.json")
    if first is not None and first != home.roots["1.root.json"]:
        raise IntegrityError(
            "the repository belongs to another publisher",
            why="its first root is not the one of this home",
            reason="bad_root",
        )
    online = current_roles(repository)
    root = home.root
    targets = _newer(root, "targets", online.get("targets"), _newest(home, "targets"))
    roles = {"targets": targets}
    top = parse(targets, Targets).signed
    for role in (top.delegations and top.delegations.roles) or {}:
        roles[role] = _newer(top, role, online.get(role), _newest(home, role))
    return roles


def _newest(home: PublisherHome, role: str) -> bytes | None:
    versions = home.metadata.versions(role)
    return home.metadata.read(f"{versions[-1]}.{role}.json") if versions else None


def _newer(delegator: Root | Targets, role: str, *found: bytes | None) -> bytes:
    candidates = [data for data in found if data is not None]
    for data in candidates:
        verify(delegator, role, parse(data, Targets))
    if not candidates:
        raise IntegrityError(f"the metadata of {role} is lost", reason="metadata_missing")
    return max(candidates, key=_version)


def _sign_line(
    home: PublisherHome,
    roles: dict[str, bytes],
    name: str,
    wanted: Sequence[TargetInfo],
    min_epoch: int | None,
    now: datetime,
) -> None:
    """Put the next version of the line NAME, and of the top role if it must change, in ROLES."""
    role = line_role(name)
    targets = parse(roles["targets"], Targets).signed
    line = parse(roles[role], Targets).signed if delegates(targets, name) else None
    following = next_line(line, wanted, min_epoch, now)
    signer = home.line_signer(role, new=line is None)
    top = with_line(targets, name, signer.public_key, now)
    if top is not None:
        roles["targets"] = sign(top, home.signer("targets"))
    if following is not None:
        roles[role] = sign(following, signer)


def _upload(repository: Published, bundle: Bundle) -> int:
    """Send what REPOSITORY lacks of BUNDLE; return the bytes sent."""
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


def _version(data: bytes) -> int:
    return parse(data, Targets).signed.version


def _public_keys(online: Mapping[str, Any]) -> dict[str, Key]:
    try:
        return {role: _public_key(dict(online[role])) for role in ONLINE}
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("the fleet's online keys cannot be read", why=str(error)) from error


def _public_key(facts: dict[str, Any]) -> Key:
    return SSlibKey.from_dict(facts.pop("keyid"), facts)
