"""`edgepack repo sign-request|sign|merge`: several people sign, some without a network."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from securesystemslib.signer import Signer

from edgepack.cli import FiniteRange, print_json
from edgepack.errors import UsageError
from edgepack.keys import load_private, load_public
from edgepack.metadata import public_key, signer_of
from edgepack.trust import OnRevoked
from edgepack_packager import staging
from edgepack_packager.adapters.key_uris import import_key, is_uri, open_signer
from edgepack_packager.adapters.published import Published
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.cli.key_options import KeyOptions, fleets_keys, key_options, tell
from edgepack_packager.cli.keys import ask_passphrase
from edgepack_packager.cli.places import (
    default_home,
    home_option,
    json_option,
    on_revoked_option,
    place,
    repo_option,
    source,
    token_option,
    valid_option,
)
from edgepack_packager.core.draft import Change, Missing
from edgepack_packager.core.request import review
from edgepack_packager.core.roles import LineChange
from edgepack_packager.core.state import State
from edgepack_packager.repository import PublishRequest, send_bundles
from edgepack_packager.rotation import expiring, rotated
from edgepack_packager.standing import current_state

__all__ = ["merge", "sign", "sign_request"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("bundles", nargs=-1, type=click.Path(path_type=Path))
@key_options
@click.option("--root", "renew_root", is_flag=True, help="Sign the root again, for a year.")
@click.option("--refresh", type=click.IntRange(1, 365), metavar="DAYS",
              help="Sign again what expires sooner than that.")  # fmt: skip
@click.option("--revoke", metavar="LINE", help="Revoke models of LINE, below --min-epoch.")
@click.option("--min-epoch", type=click.IntRange(0), help="Revoke everything below this epoch.")
@on_revoked_option
@click.option("--key", type=click.Path(path_type=Path), help="Public key every bundle must match.")
@click.option("--exam", type=click.Path(path_type=Path), help="Acceptance exam of the line, .npz.")
@click.option("--min-score", type=FiniteRange(0, 1), help="Share of the exam to get right.")
@repo_option
@home_option
@token_option
@json_option
def sign_request(
    out: Path,
    bundles: tuple[Path, ...],
    keys: KeyOptions,
    renew_root: bool,
    refresh: int | None,
    revoke: str | None,
    min_epoch: int | None,
    on_revoked: OnRevoked | None,
    key: Path | None,
    exam: Path | None,
    min_score: float | None,
    where: str,
    home: Path | None,
    token: str,
    as_json: bool,
) -> None:
    """Write to OUT what others shall sign: new bundles, a change of keys, or both.

    Keys in HOME sign at once. Blobs of BUNDLES are sent now, and are nobody's until the request
    is merged. OUT may travel by any way: whoever signs checks all of it.

    \b
    Example:
        edgepack repo sign-request release.json dist/digits-1.1.0-*.edgepack --home publisher \\
            --repo https://fleet.example:8080
    """
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    score = min_score or 0.0
    asked = PublishRequest(
        bundles, load_public(key) if key else None, exam, score, min_epoch, on_revoked
    )
    with (source if not bundles else _place)(where, token, owner, now) as there:
        state = current_state(owner, there, keys.doubt)
        change = rotated(owner, state, keys.rotation, fleets_keys(where, token))
        lines = dict(send_bundles(there, asked)[0].lines) if bundles else {}
        if revoke is not None:
            lines[revoke] = _revocation(state, revoke, min_epoch, on_revoked)
        again = set(expiring(state, timedelta(days=refresh), now)) if refresh else set()
        again |= {"root"} if renew_root else set()
        whole = Change(lines, {}, change.keys, frozenset(again))
        changes, gaps = staging.request(owner, state, whole, out, now)
    _report(out, changes, gaps, as_json=as_json)


@click.command()
@click.argument("request", type=click.Path(path_type=Path))
@click.option("--key", required=True, metavar="PEM|URI",
              help="Key to sign with: a file, or hsm:2?label=TOKEN.")  # fmt: skip
@click.option("--public", type=click.Path(path_type=Path),
              help="Public half of a key in a key service.")  # fmt: skip
@home_option
@click.option("--root", type=click.Path(path_type=Path),
              help="The publisher's first root, on a machine that has no home.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path),
              help="Where the signed request goes.  [default: REQUEST.KEYID.json]")  # fmt: skip
@click.option("--yes", is_flag=True, help="Sign without being asked; for scripts.")
@json_option
def sign(
    request: Path,
    key: str,
    public: Path | None,
    home: Path | None,
    root: Path | None,
    out: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Look at REQUEST, check it, and add a signature. Needs no network.

    Everything in it is verified from the publisher's first root on, and what it changes is
    computed here. A home (--home) also remembers what was signed before.

    \b
    Example:
        edgepack repo sign release.json --key keys/root-2.pem --root 1.root.json
    """
    now = datetime.now(UTC)
    asked = staging.open_request(request)
    owner = None if root and not home else PublisherHome(home or default_home(), ask_passphrase)
    first = owner.roots["1.root.json"] if owner else _read(root or Path())
    changes = review(asked, first, now)
    for text in changes:
        click.echo(text, err=True)
    signer = _signer(key, public)
    short = signer.public_key.keyid[:8]
    where = out or request.with_name(f"{request.stem}.{short}.json")
    done = staging.sign(asked, signer, owner, lambda: yes or _agree(short), where)
    _report(done.path, changes, done.missing, as_json=as_json)


@click.command()
@click.argument("requests", nargs=-1, required=True, type=click.Path(path_type=Path))
@repo_option
@home_option
@token_option
@valid_option
@json_option
def merge(
    requests: tuple[Path, ...],
    where: str,
    home: Path | None,
    token: str,
    valid_for: int,
    as_json: bool,
) -> None:
    """Put the signatures of REQUESTS together and publish, if there are enough.

    \b
    Example:
        edgepack repo merge release.*.json --home publisher --repo https://fleet.example:8080
    """
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    asked = [staging.open_request(path) for path in requests]
    with place(where, token, owner, now, timedelta(days=valid_for)) as there:
        tell(staging.merge(owner, there, asked, now), where, as_json=as_json)


def _place(
    where: str, token: str, home: PublisherHome, now: datetime
) -> AbstractContextManager[Published]:
    return place(where, token, home, now, timedelta(days=1))


def _revocation(
    state: State, line: str, min_epoch: int | None, on_revoked: OnRevoked | None
) -> LineChange:
    if state.line(line) is None:
        raise UsageError(f"there is no model line {line}", reason="no_line")
    if min_epoch is None:
        raise UsageError("--revoke needs --min-epoch", reason="usage")
    return LineChange(min_epoch=min_epoch, on_revoked=on_revoked)


def _signer(key: str, public: Path | None) -> Signer:
    if is_uri(key):
        known = public_key(_read(public)) if public else import_key(key, ask_passphrase)
        return open_signer(key, known, ask_passphrase)
    return signer_of(load_private(Path(key), ask_passphrase))


def _agree(short: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody is here to agree", fix="run it on a terminal, or pass --yes", reason="usage"
        )
    return click.confirm(f"Sign all of that with the key {short}?", err=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error


def _report(path: Path, changes: Sequence[str], gaps: Sequence[Missing], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "schema": "edgepack.sign-status/v1",
                "request": str(path),
                "changes": list(changes),
                "missing": [
                    {"role": gap.role, "count": gap.count, "keyids": list(gap.keyids)}
                    for gap in gaps
                ],
            }
        )
        return
    click.echo(path)
    for gap in gaps:
        some = ", ".join(keyid[:12] for keyid in gap.keyids)
        click.echo(f"{gap.role} needs {gap.count} more of {some}", err=True)
    if not gaps:
        click.echo("complete: edgepack repo merge publishes it", err=True)
