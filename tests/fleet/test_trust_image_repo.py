"""What a publisher may push, and what the fleet refuses to put online."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Metadata, Root, Targets

from edgepack.keys import load_private
from edgepack.metadata import MIN_EPOCH, parse, sign, signer_of, target_file
from edgepack.trust import TrustError
from edgepack_fleet.adapters.content import ContentStore
from edgepack_fleet.adapters.image_repo import ImageRepo
from edgepack_fleet.core.publication import Current, accept
from edgepack_packager.adapters.publisher_home import ROOT_KEYS, PublisherHome
from edgepack_packager.repository import init
from trust_rig import World, line_of, no_passphrase, target_of

STRANGER = signer_of(ec.derive_private_key(99, ec.SECP256R1()))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def ready(world: World) -> World:
    """A world where 1.0.0 is online and the blobs of 1.1.0 have arrived."""
    world.release("1.0.0")
    return world


def state(world: World) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in world.image_files.path.iterdir()}


def refused(world: World, files: dict[str, bytes]) -> str:
    before = state(world) if world.image_files.path.exists() else {}
    with pytest.raises(TrustError) as caught:
        world.image.publish(files)
    after = state(world) if world.image_files.path.exists() else {}
    assert after == before, "a refused push changed something"
    return caught.value.reason


def pushed(world: World) -> dict[str, bytes]:
    """Return what an honest publisher pushes now: the home's newest files."""
    home = world.home.metadata
    roles = {"targets": home.versions("targets"), "line-digits": home.versions("line-digits")}
    files = {
        f"{v[-1]}.{role}.json": home.read(f"{v[-1]}.{role}.json") for role, v in roles.items() if v
    }
    return {**world.home.roots, **{name: data for name, data in files.items() if data}}


def resigned(
    world: World, change: Callable[[Targets], None], role: str = "line-digits"
) -> dict[str, bytes]:
    """Return a push in which ROLE is changed and signed by its rightful key."""
    files = pushed(world)
    data = world.image_files.current()[role]
    signed = parse(data, Targets).signed
    files.pop(f"{signed.version}.{role}.json", None)
    signed.version += 1
    change(signed)
    key = "targets" if role == "targets" else role
    return files | {f"{signed.version}.{role}.json": sign(signed, world.home.signer(key))}


def test_a_first_push_is_online_for_devices(world: World) -> None:
    result = world.publish(world.bundle())
    assert [target.path for target in result.targets] == ["models/digits/1.0.0/onnx-int8.json"]
    assert world.image.metadata("1.root.json") == world.home.roots["1.root.json"]
    timestamp = json.loads(world.image.metadata("timestamp.json") or b"")
    assert timestamp["signed"]["meta"]["snapshot.json"]["version"] == result.snapshot
    assert world.image.metadata("9.root.json") is None
    assert world.image.metadata("../../home/keys/root-1.pem") is None


def test_the_answer_names_what_is_new(world: World) -> None:
    one, two = world.bundle("1.0.0"), world.bundle("1.1.0")
    for path in (one, two):
        world.publish(path)
    files = pushed(world)
    assert world.image.publish(files).releases == ()  # nothing is
    other = ImageRepo(world.path / "other" / "image", world.content, world.clock)
    assert refused_by(other, files) == "bad_root"
    shutil.copytree(world.path / "fleet" / "image" / "keys", world.path / "third" / "keys")
    third = ImageRepo(world.path / "third", world.content, world.clock)
    assert third.publish(files).releases == ("digits@1.0.0", "digits@1.1.0")


def refused_by(repo: ImageRepo, files: dict[str, bytes]) -> str:
    with pytest.raises(TrustError) as caught:
        repo.publish(files)
    return caught.value.reason


def test_releases_group_their_variants(world: World) -> None:
    from edgepack.manifest import Target

    arm = Target(
        runtime="tflite", min_runtime="2.1", precision="fp16", execution_precision="f32",
        arch=("aarch64",),
    )  # fmt: skip
    world.publish(world.bundle("1.0.0"), world.bundle("1.0.0", target=arm))
    world.publish(world.bundle("1.1.0"), world.bundle("0.1.0", name="person"))
    found = {(r.name, r.version): len(r.variants) for r in world.image.releases()}
    assert found == {("digits", "1.0.0"): 2, ("digits", "1.1.0"): 1, ("person", "0.1.0"): 1}
    paths = {v.path for r in world.image.releases() for v in r.variants}
    assert "models/digits/1.0.0/tflite-fp16-aarch64.json" in paths


def test_nothing_is_released_before_the_first_push(world: World) -> None:
    assert world.image.releases() == []
    assert world.image.metadata("timestamp.json") is None


def test_the_same_push_twice_is_harmless(ready: World) -> None:
    ready.image.publish(pushed(ready))
    assert [r.version for r in ready.image.releases()] == ["1.0.0"]


def test_it_survives_a_restart(ready: World) -> None:
    again = ImageRepo(ready.path / "fleet" / "image", ready.content, ready.clock)
    assert again.online_keys() == ready.image.online_keys()
    assert again.releases() == ready.image.releases()


def test_online_keys_are_private_files_and_public_facts(world: World) -> None:
    for path in (world.path / "fleet" / "image" / "keys").glob("*[yt].pem"):
        assert path.stat().st_mode & 0o777 == 0o600
    facts = world.image.online_keys()
    assert facts.keys() == {"snapshot", "timestamp"}
    assert "PRIVATE" not in json.dumps(facts)


def test_timestamps_are_renewed_when_asked_for(ready: World) -> None:
    first = ready.image.metadata("timestamp.json")
    ready.clock.forward(hours=11)
    assert ready.image.metadata("timestamp.json") == first
    ready.clock.forward(hours=2)
    assert ready.image.metadata("timestamp.json") != first
    assert not ready.image.keep_fresh()
    assert ready.image.keep_fresh(ready.clock() + timedelta(hours=13))


def test_another_publisher_is_refused(ready: World, tmp_path: Path) -> None:
    init(tmp_path / "stranger", None, ready.clock(), ready.image.online_keys())
    files = {p.name: p.read_bytes() for p in (tmp_path / "stranger" / "metadata").iterdir()}
    assert refused(ready, files) == "bad_root"


def test_a_repository_made_for_another_fleet_is_refused(world: World, tmp_path: Path) -> None:
    init(tmp_path / "stranger", None, world.clock())
    files = {p.name: p.read_bytes() for p in (tmp_path / "stranger" / "metadata").iterdir()}
    assert refused(world, files) == "bad_root"


def test_a_line_signed_by_a_stranger(ready: World) -> None:
    files = resigned(ready, lambda line: None)
    name = next(name for name in files if "line-" in name)
    line = parse(files[name], Targets).signed
    assert refused(ready, files | {name: sign(line, STRANGER)}) == "bad_signature"
    assert refused(ready, files | {name: sign(line)}) == "bad_signature"


def test_a_role_that_goes_back(ready: World) -> None:
    files = pushed(ready)
    ready.publish(ready.bundle("1.1.0"))
    assert refused(ready, files) == "rollback"


def test_two_contents_of_one_version(ready: World) -> None:
    """ECDSA signatures differ each time; what is online under a version stays."""
    line = line_of(ready)
    name = f"{line.version}.line-digits.json"
    again = pushed(ready) | {name: sign(line, ready.home.signer("line-digits"))}
    assert again[name] != pushed(ready)[name]
    assert refused(ready, again) == "rollback"


def test_a_file_name_that_lies_about_its_version(ready: World) -> None:
    files = resigned(ready, lambda line: None)
    name = next(name for name in files if "line-" in name)
    files[f"9{name}"] = files.pop(name)
    assert refused(ready, files) == "rollback"


def test_metadata_that_has_expired(ready: World) -> None:
    def expire(line: Targets) -> None:
        line.expires = ready.clock() - timedelta(seconds=1)

    assert refused(ready, resigned(ready, expire)) == "metadata_expired"
    assert refused(ready, resigned(ready, expire, "targets")) == "metadata_expired"


def test_one_expired_line_does_not_stop_another(ready: World) -> None:
    ready.clock.forward(days=88)
    ready.publish(ready.bundle("0.1.0", name="person"))
    ready.clock.forward(days=5)
    ready.publish(ready.bundle("0.2.0", name="person"))
    assert len(ready.image.releases()) == 3


def test_a_blob_that_has_not_arrived(ready: World) -> None:
    path = ready.bundle("1.1.0")
    target = target_of(path)

    def add(line: Targets) -> None:
        line.targets[target.path] = target_file(target)

    assert refused(ready, resigned(ready, add)) == "metadata_missing"
    from edgepack.bundle import open_bundle

    with open_bundle(path) as bundle:
        for sha256 in list(bundle.blobs())[:-1]:
            with bundle.open_blob(sha256) as file:
                ready.content.put(sha256, file)
    assert refused(ready, resigned(ready, add)) == "metadata_missing"


def test_what_is_published_never_changes(ready: World) -> None:
    def change(line: Targets) -> None:
        for file in line.targets.values():
            file.unrecognized_fields["custom"]["epoch"] = 7

    assert refused(ready, resigned(ready, change)) == "mismatch"


def test_a_model_may_be_withdrawn(ready: World) -> None:
    ready.image.publish(resigned(ready, lambda line: line.targets.clear()))
    assert ready.image.releases() == []


def test_a_line_lists_only_its_own(ready: World) -> None:
    foreign = target_of(ready.bundle("0.1.0", name="person"))

    def add(line: Targets) -> None:
        line.targets[foreign.path] = target_file(foreign)

    assert refused(ready, resigned(ready, add)) == "bad_path"


def test_a_line_delegates_to_nobody(ready: World) -> None:
    def delegate(line: Targets) -> None:
        line.delegations = parse(ready.image_files.current()["targets"], Targets).signed.delegations

    assert refused(ready, resigned(ready, delegate)) == "mismatch"


def bend(change: str) -> Callable[[Targets], None]:
    def do(top: Targets) -> None:
        assert top.delegations is not None
        assert top.delegations.roles is not None
        role = top.delegations.roles["line-digits"]
        if change == "paths":
            role.paths = ["models/*/*/*"]
        elif change == "not terminating":
            role.terminating = False
        elif change == "own targets":
            top.targets = dict(next(iter(LINE.values())))
        elif change == "no lines":
            top.delegations.roles.clear()
        elif change == "other name":
            role.name = "digits"
            top.delegations.roles = {"digits": role}

    return do


LINE: dict[str, dict[str, object]] = {}


@pytest.mark.parametrize(
    "change", ["paths", "not terminating", "own targets", "no lines", "other name"]
)
def test_delegations_have_one_shape(ready: World, change: str) -> None:
    LINE["targets"] = line_of(ready).targets  # type: ignore[assignment]
    assert refused(ready, resigned(ready, bend(change), "targets")) == "mismatch"


def test_a_line_nobody_delegates_to(ready: World) -> None:
    stray = sign(Targets(1, expires=ready.clock() + timedelta(days=1)), STRANGER)
    assert refused(ready, pushed(ready) | {"1.line-stray.json": stray}) == "bad_path"


@pytest.mark.parametrize(
    "name", ["timestamp.json", "9.snapshot.json", "../9.targets.json", "targets.json", "x"]
)
def test_files_that_are_not_the_publishers(ready: World, name: str) -> None:
    assert refused(ready, pushed(ready) | {name: b"{}"}) == "bad_path"


def test_nothing_pushed_on_nothing(world: World) -> None:
    assert refused(world, {}) == "bad_root"
    assert refused(world, world.home.roots) == "metadata_missing"


def next_root(world: World, version: int, signers: tuple[str, ...]) -> bytes:
    root = Root.from_dict(world.home.root.to_dict())
    root.version = version
    keys = world.path / "home" / "keys"
    return sign(root, *(signer_of(load_private(keys / f"{name}.pem")) for name in signers))


def test_a_root_needs_two_of_three(ready: World) -> None:
    files = pushed(ready)
    one = next_root(ready, 2, ("root-2",))
    assert refused(ready, files | {"2.root.json": one}) == "bad_signature"
    skipping = next_root(ready, 3, ("root-2", "root-3"))
    assert refused(ready, files | {"3.root.json": skipping}) == "rollback"
    ready.image.publish(files | {"2.root.json": next_root(ready, 2, ("root-2", "root-3"))})
    assert ready.image.metadata("2.root.json") is not None
    ready.image.publish(files | {"2.root.json": ready.image.metadata("2.root.json") or b""})
    other = next_root(ready, 2, ("root-1", "root-3"))
    assert refused(ready, files | {"2.root.json": other}) == "bad_root"


def test_a_root_of_new_owners_needs_the_old_ones(ready: World, tmp_path: Path) -> None:
    """Everything below the stolen root is in order; only the old owners' signatures lack."""
    init(tmp_path / "thief", None, ready.clock(), ready.image.online_keys())
    thief = PublisherHome(tmp_path / "thief", no_passphrase)
    root = Root.from_dict(thief.root.to_dict() | {"version": 2})
    theirs = [thief.signer(name) for name in ROOT_KEYS]
    top = parse(ready.image_files.current()["targets"], Targets).signed
    line = line_of(ready)
    top.version = line.version = 9
    assert top.delegations is not None
    top.revoke_key(top.get_delegated_role("line-digits").keyids[0], "line-digits")
    top.add_key(STRANGER.public_key, "line-digits")
    below = {
        "9.targets.json": sign(top, thief.signer("targets")),
        "9.line-digits.json": sign(line, STRANGER),
    }
    assert refused(ready, below | {"2.root.json": sign(root, *theirs)}) == "bad_signature"
    ours = [ready.home.signer(name) for name in ROOT_KEYS[:2]]
    ready.image.publish(below | {"2.root.json": sign(root, *theirs, *ours)})
    assert line_of(ready).version == 9


def test_a_root_that_has_expired(ready: World) -> None:
    ready.clock.forward(days=366)
    assert refused(ready, pushed(ready)) == "metadata_expired"


def test_a_flip_in_a_push_is_refused_or_harmless(ready: World) -> None:
    files = resigned(ready, lambda line: line.unrecognized_fields.update({MIN_EPOCH: 0}))
    current = Current(ready.home.roots["1.root.json"], ready.image_files.current())
    online = {role: facts["keyid"] for role, facts in ready.image.online_keys().items()}
    refusals = 0
    for at in range(0, 4000, 23):
        name = sorted(files)[at % len(files)]
        torn = bytearray(files[name])
        torn[at % len(torn)] ^= 1 << at % 8
        try:
            accepted = accept(current, files | {name: bytes(torn)}, online, ready.clock())
        except TrustError:
            refusals += 1
            continue
        # python-tuf skips a signature it cannot read as long as enough others are good.
        got, honest = Metadata.from_bytes(accepted.files[name]), Metadata.from_bytes(files[name])
        assert got.signed == honest.signed
    assert refusals > 150


WRITES = 10
"""Flushes of a push: root, targets, line, snapshot and timestamp, each as file and as name."""


@pytest.mark.parametrize("flushes", range(WRITES))
def test_a_crash_at_any_write_leaves_the_old_repository(
    ready: World, flushes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ready.bundle("1.1.0")
    before = ready.image.metadata("timestamp.json")
    flush, commit, left = os.fsync, ready.image.publish, flushes

    def dying(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(5, "power cut")
        flush(handle)

    def cut_short(files: dict[str, bytes]) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", dying)
            return commit(files)

    monkeypatch.setattr(ready.image, "publish", cut_short)
    with pytest.raises(OSError, match="power cut"):
        ready.publish(path)
    again = World(ready.path, ready.clock)
    written = again.image_files.read("timestamp.json") != before
    assert written == (flushes == WRITES - 1)  # only the name's own flush is after the fact
    found = [release.version for release in again.image.releases()]
    assert found == (["1.0.0", "1.1.0"] if written else ["1.0.0"])
    again.publish(path)
    assert [release.version for release in again.image.releases()] == ["1.0.0", "1.1.0"]


def test_a_store_that_lost_blobs_says_which(ready: World, tmp_path: Path) -> None:
    shutil.copytree(ready.path / "fleet" / "image" / "keys", tmp_path / "new" / "keys")
    empty = ImageRepo(tmp_path / "new", ContentStore(tmp_path / "empty"), ready.clock)
    with pytest.raises(TrustError, match=r"models/digits/1.0.0/onnx-int8.json has not arrived"):
        empty.publish(pushed(ready))
