"""Signing by several people on several machines: a request goes out, signatures come back.

Publishes only what is complete. On a signer's machine nothing but the first root, the key and
the request is needed; a home there remembers what was signed last, so that an old state cannot
be passed off as the present one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer

from edgepack.durable import write_file
from edgepack.errors import IntegrityError, UsageError
from edgepack.metadata import split_name
from edgepack_packager.adapters.published import Published
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.core.draft import Change, Missing, entitled, missing, signed
from edgepack_packager.core.request import (
    MAX_REQUEST,
    Request,
    merged,
    read_request,
    review,
    write_request,
)
from edgepack_packager.core.state import State
from edgepack_packager.repository import (
    Revision,
    check_complete,
    commit,
    drafted,
    signed_by_home,
)
from edgepack_packager.standing import current_state

__all__ = ["Signed", "merge", "open_request", "request", "sign"]


@dataclass(frozen=True, slots=True)
class Signed:
    """A request after somebody signed: where it is, and what it still needs."""

    path: Path
    files: tuple[str, ...]
    missing: tuple[Missing, ...]


def request(
    home: PublisherHome, state: State, change: Change, path: Path, now: datetime
) -> tuple[list[str], list[Missing]]:
    """Write to PATH the request to make CHANGE happen to STATE, signed with the keys in HOME.

    Returns:
        What it changes, and whose signatures it needs.

    Raises:
        UsageError: there is nothing to sign, it cannot be done, or PATH cannot be written.
    """
    draft = drafted(home, state, change, now)
    if not draft.files:
        raise UsageError("there is nothing to sign", reason="nothing_to_do")
    data = write_request(state, draft)
    _write(path, data)
    return list(read_request(data).changes), missing(state, draft)


def open_request(path: Path) -> Request:
    """Return the request in PATH.

    Raises:
        UsageError: it cannot be read.
        IntegrityError: it is none.
    """
    try:
        with path.open("rb") as file:
            return read_request(file.read(MAX_REQUEST + 1))
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error


def sign(
    asked: Request,
    signer: Signer,
    home: PublisherHome | None,
    agree: Callable[[], bool],
    out: Path,
) -> Signed:
    """Sign ASKED, which was reviewed, and write it to OUT.

    Args:
        asked: What is to be signed.
        signer: Signs every file its key counts for.
        home: Remembers what was published when this was signed; None: nobody does.
        agree: Asks the person who signs, last of all.
        out: Where the request with the signature goes.

    Raises:
        UsageError: the key does not count for anything in it, or the person does not agree.
        IntegrityError: the home knows later versions than the request starts from.
    """
    if home is not None:
        check_not_older(home, asked.state)
    keyid = signer.public_key.keyid
    names = [n for n in asked.draft.files if keyid in entitled(asked.state, asked.draft, n)]
    if not names:
        raise UsageError(
            f"the key {keyid[:12]} does not sign for anything in this request", reason="wrong_key"
        )
    if not agree():
        raise UsageError("nothing was signed", reason="declined")
    draft = signed(asked.state, asked.draft, [signer])
    _write(out, write_request(asked.state, draft))
    if home is not None:
        home.save(asked.state.files)
    return Signed(out, tuple(names), tuple(missing(asked.state, draft)))


def merge(
    home: PublisherHome, repository: Published, requests: Sequence[Request], now: datetime
) -> Revision:
    """Put the signatures of REQUESTS together, add those of the keys in HOME, and publish.

    Raises:
        IntegrityError: they are not for the same draft, or a signature does not count.
        UsageError: signatures are missing, or something else was published meanwhile.
        UnreachableError: the fleet does not answer.
    """
    one = merged(list(requests))
    changes = review(one, home.roots["1.root.json"], now)
    check_not_older(home, one.state)
    published = current_state(home, repository)
    if any(one.state.roles.get(r) != d and r not in one.state.seen
           for r, d in published.roles.items()) or (
        # The draft's own root is there if an earlier attempt was cut short.
        published.root not in (one.state.root, one.draft.after(one.state).root)
    ):  # fmt: skip
        raise UsageError(
            "something else was published since the request was made",
            fix="make it again: edgepack repo sign-request",
            reason="stale_request",
        )
    draft = signed_by_home(home, one.state, one.draft)
    check_complete(home, missing(one.state, draft), staged=True)
    after = draft.after(one.state)
    # A root that is there keeps the signatures it has.
    snapshot = commit(home, repository, State({**after.roots, **published.roots}, after.roles))
    return Revision(tuple(draft.files), tuple(changes), snapshot)


def check_not_older(home: PublisherHome, state: State) -> None:
    """Check that STATE is not older than what HOME knows.

    Raises:
        IntegrityError: it is (reason `stale_request`).
    """
    older = [] if state.root.version >= home.root.version else ["root"]
    for name in state.files:
        version, role = split_name(name)
        known = home.metadata.versions(role)
        if role != "root" and known and max(version or 0, state.seen.get(role, 0)) < known[-1]:
            older.append(role)
    if older:
        raise IntegrityError(
            "the request starts from an older state than this home knows",
            why=", ".join(sorted(older)),
            fix="make it again: edgepack repo sign-request; nothing was signed",
            reason="stale_request",
        )


def _write(path: Path, data: bytes) -> None:
    try:
        write_file(path, data)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}", why=error.strerror or str(error), reason="unwritable"
        ) from error
