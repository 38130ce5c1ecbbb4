"""`edgepack repo init|publish|revoke|export`. The work is in `repository` and `mirror`."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from edgepack.cli import FiniteRange, print_json
from edgepack.errors import UsageError
from edgepack.keys import load_public
from edgepack.patch import Codec
from edgepack.trust import OnRevoked, TargetInfo
from edgepack_packager import repository as publisher
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.cli.key_options import tell, warn
from edgepack_packager.cli.keys import ask_passphrase, new_passphrase
from edgepack_packager.cli.places import (
    default_home,
    home_option,
    json_option,
    on_revoked_option,
    online_keys,
    place,
    repo_option,
    source,
    token_option,
    valid_option,
)
from edgepack_packager.core.deltas import Delta, Pair, check_wanted
from edgepack_packager.core.draft import Change
from edgepack_packager.core.roles import LineChange
from edgepack_packager.mirror import export as make_mirror
from edgepack_packager.standing import current_state

__all__ = ["export", "init", "publish", "revoke"]


@click.command()
@click.argument("home", required=False, type=click.Path(path_type=Path))
@click.option("--fleet", metavar="URL", help="Take the online keys of this fleet.")
@token_option
@click.option("--no-passphrase", is_flag=True, help="Leave the private keys unencrypted.")
@json_option
def init(
    home: Path | None, fleet: str | None, token: str, no_passphrase: bool, as_json: bool
) -> None:
    """Make a publisher's HOME: offline keys and the root that devices pin.

    With --fleet the fleet signs snapshot and timestamp; without it HOME can do so itself, for
    a repository in a directory. The passphrase comes from EDGEPACK_PASSPHRASE or is asked for.

    \b
    Example:
        edgepack repo init publisher --fleet https://fleet.example:8080
    """
    where = home or default_home()
    online = online_keys(fleet, token) if fleet else None
    passphrase = None if no_passphrase else new_passphrase()
    digest = publisher.init(where, passphrase, datetime.now(UTC), online)
    root = where / "metadata" / "1.root.json"
    if as_json:
        facts = {"home": str(where), "root": str(root), "root_sha256": digest}
        print_json({"schema": "edgepack.repo/v1", **facts, "encrypted": passphrase is not None})
        return
    click.echo(f"publisher's home  {where}")
    click.echo(f"root              {root}  (devices enrol with --root FILE)")
    click.echo(f"root sha256       {digest}  (or with --root-sha256 HEX)")
    click.echo("Move keys/root-1, root-2 and root-3 to three safe places.", err=True)


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@repo_option
@home_option
@token_option
@click.option("--key", type=click.Path(path_type=Path), help="Public key every bundle must match.")
@click.option("--exam", type=click.Path(path_type=Path), help="Acceptance exam of the line, .npz.")
@click.option("--min-score", type=FiniteRange(0, 1), help="Share of the exam to get right.")
@click.option("--min-epoch", type=click.IntRange(0), help="Revoke everything below this epoch.")
@click.option("--delta-from", multiple=True, default=("auto",), show_default=True,
              metavar="RELEASE|auto|none",
              help="Offer patches from this version; auto: two newest. Repeatable.")  # fmt: skip
@on_revoked_option
@valid_option
@json_option
def publish(
    bundles: tuple[Path, ...],
    where: str,
    home: Path | None,
    token: str,
    key: Path | None,
    exam: Path | None,
    min_score: float | None,
    min_epoch: int | None,
    delta_from: tuple[str, ...],
    on_revoked: OnRevoked | None,
    valid_for: int,
    as_json: bool,
) -> None:
    """Sign BUNDLES into the repository of a fleet (URL) or into a directory (DIR).

    What is published under a version never changes; publishing it again repairs what is
    missing. --exam sets the acceptance exam that every later version must pass on the device.
    Devices that hold a version of --delta-from may fetch a patch instead of the whole file.

    \b
    Example:
        edgepack repo publish dist/digits-1.0.0-*.edgepack --home publisher \\
            --repo https://fleet.example:8080 --exam exam.npz --min-score 0.9
    """
    if (exam is None) != (min_score is None):
        raise UsageError("--exam and --min-score go together", reason="usage")
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    request = publisher.PublishRequest(
        bundles,
        load_public(key) if key else None,
        exam,
        min_score or 0.0,
        min_epoch,
        on_revoked,
        check_wanted(delta_from),
    )
    with place(where, token, owner, now, timedelta(days=valid_for)) as there:
        done = publisher.publish(owner, there, request, now, _patch_made)
    warn(current_state(owner, None), now)
    if as_json:
        print_json(_document(done, where))
        return
    for target in done.targets:
        click.echo(f"{target.path}  sha256:{target.sha256[:12]}")
    for delta in done.deltas:
        click.echo(_in_words(delta))
    click.echo(f"{done.uploaded_bytes / 1e6:.1f} MB sent to {where}", err=True)


@click.command()
@click.argument("line")
@click.option("--below", type=click.IntRange(1), required=True, metavar="EPOCH",
              help="Revoke every model with a lower security epoch.")  # fmt: skip
@on_revoked_option
@repo_option
@home_option
@token_option
@valid_option
@json_option
def revoke(
    line: str,
    below: int,
    on_revoked: OnRevoked | None,
    where: str,
    home: Path | None,
    token: str,
    valid_for: int,
    as_json: bool,
) -> None:
    """Revoke the models of LINE below a security epoch, for good; needs no install.

    Devices hear of it when they next ask. They never again install such a model, nor go back
    to one; what they do with one that serves says --on-revoked.

    \b
    Example:
        edgepack repo revoke digits --below 3 --on-revoked stop --home publisher \\
            --repo https://fleet.example:8080
    """
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    with place(where, token, owner, now, timedelta(days=valid_for)) as there:
        state = current_state(owner, there)
        if state.line(line) is None:
            raise UsageError(f"there is no model line {line}", reason="no_line")
        change = Change({line: LineChange(min_epoch=below, on_revoked=on_revoked)})
        tell(publisher.revise(owner, there, state, change, now), where, as_json=as_json)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@repo_option
@home_option
@token_option
@click.option("--release", "releases", multiple=True, metavar="NAME@VERSION",
              help="What to take along; repeat it. Without it: everything.")  # fmt: skip
@click.option("--valid-for", type=click.IntRange(1, 90), default=30, show_default=True,
              metavar="DAYS", help="How long devices believe the mirror.")  # fmt: skip
@click.option("--patches", is_flag=True, help="Take the patches along too.")
@json_option
def export(
    directory: Path,
    where: str,
    home: Path | None,
    token: str,
    releases: tuple[str, ...],
    valid_for: int,
    patches: bool,
    as_json: bool,
) -> None:
    """Make DIRECTORY, say a USB stick, a mirror of a repository for sites without a network.

    Needs the publisher's export key, and no root, targets or line key. Interrupted, it goes on
    where it was; run again, it copies what is new.

    \b
    Example:
        edgepack repo export /media/stick --repo https://fleet.example:8080 --home publisher \\
            --release digits@1.0.0 --valid-for 30
    """
    now = datetime.now(UTC)
    owner = PublisherHome(home or default_home(), ask_passphrase)
    with source(where, token, owner, now) as mirrored:
        life = timedelta(days=valid_for)
        done = make_mirror(owner, mirrored, directory, releases, life, now, patches=patches)
    if as_json:
        print_json(
            {
                "schema": "edgepack.export/v1",
                "directory": str(directory),
                "releases": list(done.releases),
                "size_bytes": done.size_bytes,
                "copied_bytes": done.copied_bytes,
                "expires": done.expires.isoformat(),
                "snapshot": done.snapshot,
            }
        )
        return
    for release in done.releases:
        click.echo(release)
    click.echo(f"valid until {done.expires:%Y-%m-%d %H:%M} UTC")
    click.echo(f"{done.copied_bytes / 1e6:.1f} of {done.size_bytes / 1e6:.1f} MB copied", err=True)


def _document(done: publisher.Publication, where: str) -> dict[str, Any]:
    return {
        "schema": "edgepack.publish/v1",
        "repo": where,
        "releases": sorted({_release(t) for t in done.targets if t.path.endswith(".json")}),
        "targets": [{"path": t.path, "digest": f"sha256:{t.sha256}"} for t in done.targets],
        "snapshot": done.snapshot,
        "uploaded_bytes": done.uploaded_bytes,
        "deltas": [_delta(delta) for delta in done.deltas],
    }


def _delta(delta: Delta) -> dict[str, Any]:
    pair = delta.pair
    return {
        "base": pair.base_release,
        "target": pair.target_release,
        "path": pair.path,
        "codec": delta.codec,
        "bytes": delta.size,
        "ratio": round(delta.ratio, 4),
        "tried": dict(delta.tried),
    }


def _in_words(delta: Delta) -> str:
    pair = delta.pair
    route = f"{pair.path} {pair.base_release} -> {pair.target_release}"
    if delta.codec == "full":
        return f"{route}  no patch is worth it: {delta.size / 1e6:.1f} MB as a whole"
    return f"{route}  {delta.codec} patch {delta.size / 1e6:.2f} MB, {delta.ratio:.1%} of the whole"


def _patch_made(pair: Pair, codec: Codec, done: int, frames: int) -> None:
    """Say how far a patch is, on one line of a terminal or at its end."""
    if sys.stderr.isatty() or done == frames:
        end = done == frames
        text = f"{codec} patch to {pair.path} from {pair.base_release}: {done}/{frames}"
        click.echo(("\r" if sys.stderr.isatty() else "") + text, err=True, nl=end)


def _release(target: TargetInfo) -> str:
    return target.model.release
