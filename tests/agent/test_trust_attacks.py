"""Attacks on a device, by a thief of the fleet or of the wire. None may make it run anything.

The thief holds what is online: the fleet's files, the director's keys, the image repository's
snapshot and timestamp keys. The publisher's root, targets and line keys are elsewhere.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from edgepack.keys import load_private
from edgepack.metadata import (
    ISSUED,
    MetadataDirectory,
    OnlineKeys,
    parse,
    seal,
    sign,
    signer_of,
    target_file,
)
from edgepack.trust import DeviceFacts, TargetInfo, TrustError
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.repository import CONFIG
from edgepack_agent.adapters.trust import TrustClient
from edgepack_fleet.adapters.director import Director
from trust_rig import FACTS, World, line_of, target_of

STRANGER = signer_of(ec.derive_private_key(99, ec.SECP256R1()))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def device(world: World) -> TrustClient:
    """A device that runs 1.0.0 and has confirmed it."""
    world.director.assign("cam-1", world.release("1.0.0", security_epoch=1))
    client = world.device()
    approved = client.approve(FACTS)
    assert approved is not None
    client.confirm(approved.name, approved.epoch)
    return client


def reason(client: TrustClient, facts: DeviceFacts = FACTS) -> str:
    with pytest.raises(TrustError) as caught:
        client.approve(facts)
    return caught.value.reason


def steal_image_keys(world: World) -> OnlineKeys:
    return OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))


def replaced(name: str, data: bytes | None) -> Callable[[str, str, bytes | None], bytes | None]:
    return lambda repo, asked, honest: data if f"{repo}/{asked}" == name else honest


# The director alone


def test_the_director_invents_a_model(world: World, device: TrustClient) -> None:
    evil = target_of(world.bundle("6.6.6"))
    world.director_says("cam-1", evil)
    assert reason(device) == "not_in_image_repo"


def test_the_director_invents_a_model_line(world: World, device: TrustClient) -> None:
    world.director_says("cam-1", target_of(world.bundle(name="evil")))
    assert reason(device) == "not_in_image_repo"


def test_the_director_gives_a_known_name_other_bytes(world: World, device: TrustClient) -> None:
    evil = dataclasses.replace(target_of(world.bundle(security_epoch=1)), sha256="e" * 64)
    world.director_says("cam-1", evil)
    assert reason(device) == "mismatch"


def test_the_director_lies_about_what_a_model_needs(world: World) -> None:
    honest = world.release(security_epoch=1)
    lie = dataclasses.replace(honest, custom={**honest.custom, "min_runtime": "0.1"})
    world.director_says("cam-1", lie)
    assert reason(world.device(), DeviceFacts({"onnx": "1.0"}, "x86_64")) == "mismatch"


def test_the_director_replays_a_revoked_model(world: World, device: TrustClient) -> None:
    old = world.release("0.9.0", security_epoch=0, license="MIT")
    world.director_says("cam-1", old)
    assert reason(device) == "epoch_below_floor"


def test_the_director_delegates(world: World, device: TrustClient) -> None:
    world.director_says("cam-1", delegations={"keys": {}, "roles": []})
    assert reason(device) == "mismatch"


def test_the_director_names_an_exam_as_the_model(world: World, device: TrustClient) -> None:
    exam = TargetInfo("models/digits/exam.npz", "a" * 64, 3, {"v": 1, "kind": "exam"})
    world.director_says("cam-1", exam)
    assert reason(device) == "bad_custom"


def test_the_word_for_another_device_is_served(world: World, device: TrustClient) -> None:
    world.clock.forward(hours=1)
    world.director.assign("cam-2", world.release("1.1.0", security_epoch=1, license="MIT"))
    served = world.director.metadata
    world.tamper = lambda repo, name, data: served("cam-2", name) if repo == "director" else data
    assert reason(device) == "wrong_device"
    fresh = world.device("cam-9")
    assert reason(fresh) == "wrong_device"


def test_a_director_with_other_keys(world: World, device: TrustClient, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    other.director.assign("cam-1", target_of(world.bundle(security_epoch=1)))
    fake = other.director.metadata
    world.tamper = lambda repo, name, data: fake("cam-1", name) if repo == "director" else data
    assert reason(device) == "bad_signature"


def test_the_director_wants_more_than_one_model(world: World, device: TrustClient) -> None:
    """Extraneous dependencies: nothing rides along with what was approved."""
    approved = world.image.releases()[0].variants[0]
    world.director_says("cam-1", approved, target_of(world.bundle(name="rider")))
    assert reason(device) == "mismatch"


# The whole fleet


def test_a_fleet_that_was_stolen_before_enrolment(world: World, tmp_path: Path) -> None:
    """The thief has every key of the fleet and the broker; the image root came another way."""
    evil = target_of(world.bundle("6.6.6", security_epoch=9))
    world.release()
    world.director_says("new", evil)
    assert reason(world.device("new")) == "not_in_image_repo"
    files = world.image_files
    line = Targets.from_dict(line_of(world).to_dict())
    line.version += 1
    line.targets[evil.path] = target_file(evil)
    for signer in (STRANGER, world.online_key("snapshot"), world.online_key("timestamp")):
        data = sign(line, signer)
        files.write(f"{line.version}.line-digits.json", data)
        roles = files.current() | {"line-digits": data}
        seal(files, roles, steal_image_keys(world), world.clock())
        world.director_says("new", evil)
        assert reason(world.device("new")) == "bad_signature"


def test_a_root_of_the_fleet_in_place_of_the_publishers(world: World, tmp_path: Path) -> None:
    """A fleet cannot name itself the owner of the image repository, nor follow its root."""
    thief = World(tmp_path / "thief", world.clock)
    evil = thief.release("6.6.6", security_epoch=9)
    world.director_says("new", evil)
    served = thief.image.metadata
    world.tamper = lambda repo, name, data: served(name) if repo == "image" else data
    assert reason(world.device("new")) == "bad_signature"


def test_every_key_that_is_online_at_once(world: World, device: TrustClient) -> None:
    """Director, snapshot and timestamp together: nothing new, nothing revoked, nothing older."""
    old = world.image.releases()[0].variants[0]
    before = world.image_files.current()
    world.publish(world.bundle("1.1.0", security_epoch=2, license="MIT"), min_epoch=2)
    new = next(r.variants[0] for r in world.image.releases() if r.version == "1.1.0")
    world.director.assign("cam-1", new)
    assert device.approve(FACTS) is not None
    for wanted in (target_of(world.bundle("6.6.6", security_epoch=9)), old):
        world.director_says("cam-1", wanted)
        assert reason(device) in {"not_in_image_repo", "epoch_below_floor"}
    seal(world.image_files, before, steal_image_keys(world), world.clock())
    world.director_says("cam-1", old)
    assert reason(device) == "rollback"


def test_the_directors_stolen_key_counts_no_longer_once_it_is_replaced(
    world: World, device: TrustClient
) -> None:
    keys = world.path / "fleet" / "director" / "keys"
    stolen = (keys / "online.pem").read_bytes()
    for file in keys.glob("online*.pem"):
        file.unlink()
    world.clock.forward(hours=1)
    world.director = Director(world.path / "fleet" / "director", world.clock)
    world.director.assign("cam-1", world.release("1.1.0", security_epoch=1, license="MIT"))
    approved = device.approve(FACTS)
    assert approved is not None
    assert approved.version == "1.1.0"
    new = (keys / "online.pem").read_bytes()
    (keys / "online.pem").write_bytes(stolen)
    world.clock.forward(hours=1)
    world.director_says("cam-1", world.release("1.0.0", security_epoch=1))
    (keys / "online.pem").write_bytes(new)
    assert reason(device) == "bad_signature"


# The image repository, with all online keys


def test_a_swapped_image_repository_approves_nothing(world: World, device: TrustClient) -> None:
    """The thief republishes under stolen online keys, with a line key of their own."""
    evil = target_of(world.bundle("6.6.6", security_epoch=9))
    files = world.image_files
    line = Targets.from_dict(line_of(world).to_dict())
    line.version += 1
    line.targets[evil.path] = target_file(evil)
    data = sign(line, STRANGER)
    files.write(f"{line.version}.line-digits.json", data)
    seal(files, files.current() | {"line-digits": data}, steal_image_keys(world), world.clock())
    world.director_says("cam-1", evil)
    assert reason(device) == "bad_signature"
    world.director_says("new", evil)
    assert reason(world.device("new")) == "bad_signature"


def test_a_whole_new_repository_of_a_thief(
    world: World, device: TrustClient, tmp_path: Path
) -> None:
    thief = World(tmp_path / "thief")
    shutil.rmtree(tmp_path / "thief" / "fleet")
    shutil.rmtree(tmp_path / "thief" / "home")
    shutil.copytree(world.path / "fleet", tmp_path / "thief" / "fleet")
    shutil.rmtree(tmp_path / "thief" / "fleet" / "image" / "metadata")
    world.clock.forward(hours=1)
    thief = World(tmp_path / "thief", world.clock)
    evil = thief.release("6.6.6", security_epoch=9)
    thief.director.assign("cam-1", evil)

    def swapped(repo: str, name: str, data: bytes | None) -> bytes | None:
        source = thief.image.metadata
        return source(name) if repo == "image" else thief.director.metadata("cam-1", name)

    world.tamper = swapped
    assert reason(device) in {"bad_signature", "rollback"}
    floors = Floors(tmp_path / "new" / "floors.json")
    new = TrustClient(
        tmp_path / "new", "cam-1", device._channel, world.home.roots["1.root.json"],
        world.director.root(), floors, world.clock,
    )  # fmt: skip
    assert reason(new) == "bad_signature"


def test_targets_signed_by_an_online_key(world: World, device: TrustClient) -> None:
    files = world.image_files
    top = parse(files.current()["targets"], Targets).signed
    top.version += 1
    data = sign(top, world.online_key("snapshot"))
    files.write(f"{top.version}.targets.json", data)
    seal(files, files.current() | {"targets": data}, steal_image_keys(world), world.clock())
    assert reason(device) == "bad_signature"


def test_a_line_that_is_dropped_from_the_snapshot(world: World, device: TrustClient) -> None:
    files = world.image_files
    roles = {"targets": files.current()["targets"]}
    seal(files, roles, steal_image_keys(world), world.clock())
    assert reason(device) == "bad_metadata"


def test_an_old_line_under_a_new_snapshot(world: World, device: TrustClient) -> None:
    """Undo a revocation with stolen online keys: the line's old version is rightly signed."""
    files, old = world.image_files, world.image_files.current()
    world.publish(world.bundle("1.1.0", security_epoch=2, license="MIT"), min_epoch=2)
    assert reason(device) == "epoch_below_floor"
    seal(files, old, steal_image_keys(world), world.clock())
    assert reason(device) == "rollback"
    shutil.rmtree(world.path / "cam-1" / "tuf")
    assert reason(world.device()) == "rollback"  # the floors remember what the cache forgot


def test_mix_and_match(world: World, device: TrustClient) -> None:
    """A snapshot of one state, a line of another."""
    old = line_of(world)
    world.publish(world.bundle("1.1.0", security_epoch=2, license="MIT"))
    new = line_of(world)
    served = world.image_files.read(f"{old.version}.line-digits.json")
    world.tamper = replaced(f"image/{new.version}.line-digits.json", served)
    assert reason(device) == "mismatch"


# The wire


def test_an_older_timestamp_is_replayed(world: World, device: TrustClient) -> None:
    old = {name: world.image_files.read(name) for name in ("timestamp.json",)}
    world.publish(world.bundle("1.1.0", security_epoch=1, license="MIT"))
    device.approve(FACTS)
    world.tamper = replaced("image/timestamp.json", old["timestamp.json"])
    assert reason(device) == "rollback"
    assert reason(world.device()) == "rollback"
    shutil.rmtree(world.path / "cam-1" / "tuf")
    assert reason(world.device()) in {"rollback", "metadata_missing"}


@pytest.mark.parametrize("repo", ["image", "director"])
def test_the_fleet_is_frozen(world: World, device: TrustClient, repo: str) -> None:
    frozen = world.image_files.read("timestamp.json")
    if repo == "director":
        frozen = world.director.metadata("cam-1", "timestamp.json")
    world.tamper = replaced(f"{repo}/timestamp.json", frozen)
    world.clock.forward(hours=23)
    assert device.approve(FACTS) is not None
    world.clock.forward(hours=2)
    assert reason(device) == "metadata_expired"


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("image/timestamp.json", CONFIG.timestamp_max_length),
        ("director/timestamp.json", CONFIG.timestamp_max_length),
        ("image/2.root.json", CONFIG.root_max_length),
    ],
)
def test_endless_data(world: World, device: TrustClient, name: str, limit: int) -> None:
    world.tamper = replaced(name, b" " * (limit + 1))
    assert reason(device) == "endless_data"


def test_a_channel_is_told_the_signed_length(world: World, device: TrustClient) -> None:
    world.publish(world.bundle("1.1.0", security_epoch=1, license="MIT"))
    asked: dict[str, int] = {}
    honest = device._channel.metadata

    class Listening:
        def metadata(self, repo: str, name: str, max_length: int) -> bytes | None:
            data = honest(repo, name, max_length)
            asked[name] = max_length - len(data or b"")
            return data

    device._channel = Listening()
    device.approve(FACTS)
    assert [name for name, spare in asked.items() if spare == 0] == [
        name for name in asked if "snapshot" in name or "line-digits" in name
    ]


def test_every_flip_on_the_wire_is_noticed(world: World) -> None:
    """Whatever file, whatever byte: approved with the honest digest, or refused."""
    wanted = world.release()
    world.director.assign("cam-1", wanted)

    def flipper(seed: int) -> Callable[[str, str, bytes | None], bytes | None]:
        def flip(repo: str, name: str, data: bytes | None) -> bytes | None:
            if data is None or (hashlib.sha256(name.encode()).digest()[0] + seed) % 5:
                return data
            torn = bytearray(data)
            torn[(seed * 7919) % len(data)] ^= 1 << seed % 8
            return bytes(torn)

        return flip

    refused = 0
    for seed in range(60):
        world.tamper = flipper(seed)
        shutil.rmtree(world.path / "cam-1", ignore_errors=True)
        try:
            approved = world.device().approve(FACTS)
        except TrustError:
            refused += 1
            continue
        assert approved is not None
        assert approved.sha256 == wanted.sha256
    assert refused > 30


def test_part_of_a_repository_is_served(world: World, device: TrustClient) -> None:
    """A bundle is one target and one switch of slots: what is not whole is not there."""
    world.publish(world.bundle("1.1.0", security_epoch=1, license="MIT"))
    new = line_of(world)
    world.tamper = replaced(f"image/{new.version}.line-digits.json", None)
    assert reason(device) == "metadata_missing"


def test_metadata_of_another_kind_is_served(world: World, device: TrustClient) -> None:
    snapshot = world.image_files.timestamp()
    assert snapshot is not None
    served = world.image_files.read(f"{snapshot.snapshot_meta.version}.snapshot.json")
    world.tamper = replaced("image/timestamp.json", served)
    assert reason(device) == "bad_metadata"


# Roots


def rotated(world: World, version: int, signers: tuple[str, ...]) -> tuple[Root, bytes]:
    root = Root.from_dict(world.home.root.to_dict())
    root.version = version
    root.expires = world.clock() + timedelta(days=365)
    keys = [signer_of(load_private(world.path / "home" / "keys" / f"{s}.pem")) for s in signers]
    return root, sign(root, *keys)


def test_a_root_with_one_of_three_signatures(world: World, device: TrustClient) -> None:
    _, data = rotated(world, 2, ("root-1",))
    world.tamper = replaced("image/2.root.json", data)
    assert reason(device) == "bad_signature"


def test_a_root_of_new_owners_only(world: World, device: TrustClient, tmp_path: Path) -> None:
    thief = World(tmp_path / "thief", world.clock)
    root = Root.from_dict(thief.home.root.to_dict() | {"version": 2})
    data = sign(root, *(thief.home.signer(f"root-{n}") for n in (1, 2, 3)))
    world.tamper = replaced("image/2.root.json", data)
    assert reason(device) == "bad_signature"


def test_a_root_that_skips_a_version(world: World, device: TrustClient) -> None:
    _, data = rotated(world, 3, ("root-1", "root-2"))
    world.tamper = replaced("image/2.root.json", data)
    assert reason(device) == "rollback"


def test_a_root_with_two_of_three_is_followed_and_kept(world: World, device: TrustClient) -> None:
    _, data = rotated(world, 2, ("root-1", "root-3"))
    world.home.metadata.write("2.root.json", data)
    world.publish(world.bundle("1.1.0", security_epoch=1, license="MIT"))
    assert device.approve(FACTS) is not None
    world.tamper = replaced("image/2.root.json", None)
    assert device.approve(FACTS) is not None  # kept on the device
    shutil.rmtree(world.path / "cam-1" / "tuf")
    assert reason(world.device()) == "rollback"  # and its version is remembered


def test_new_online_keys_lift_what_a_thief_drove_too_high(
    world: World, device: TrustClient
) -> None:
    """Fast-forward: the thief signs versions nobody will reach; the root changes the keys."""
    files, keys = world.image_files, steal_image_keys(world)
    snapshot = parse(files.read(f"{files.versions('snapshot')[-1]}.snapshot.json") or b"", Snapshot)
    world.clock.forward(hours=1)
    far = world.clock.now + timedelta(days=365 * 1000)
    seal_far = Clockwork(world, keys)
    seal_far(files, far)
    assert snapshot.signed.version < files.versions("snapshot")[-1]
    assert device.approve(FACTS) is not None
    new = {
        role: signer_of(ec.generate_private_key(ec.SECP256R1()))
        for role in ("snapshot", "timestamp")
    }
    root = Root.from_dict(world.home.root.to_dict())
    root.version = 2
    for role, signer in new.items():
        root.revoke_key(root.roles[role].keyids[0], role)
        root.add_key(signer.public_key, role)
    owners = [
        signer_of(load_private(world.path / "home" / "keys" / f"root-{n}.pem")) for n in (1, 2)
    ]
    files.write("2.root.json", sign(root, *owners))
    roles = files.current()
    (files.path / "timestamp.json").unlink()
    seal(files, roles, OnlineKeys(new["snapshot"], new["timestamp"]), world.clock())
    assert device.approve(FACTS) is not None
    assert world.device().approve(FACTS) is not None


class Clockwork:
    """Signs a repository whose versions come from another time than its expiry."""

    def __init__(self, world: World, keys: OnlineKeys) -> None:
        self.world, self.keys = world, keys

    def __call__(self, files: MetadataDirectory, far: object) -> None:
        from tuf.api.metadata import MetaFile

        version = int(far.timestamp())  # type: ignore[attr-defined]
        roles = files.current()
        meta = {
            f"{role}.json": MetaFile.from_data(parse(d, Targets).signed.version, d, ["sha256"])
            for role, d in roles.items()
        }
        expires = self.world.clock() + timedelta(days=7)
        data = sign(Snapshot(version, expires=expires, meta=meta), self.keys.snapshot)
        files.write(f"{version}.snapshot.json", data)
        timestamp = Timestamp(
            version, expires=expires, snapshot_meta=MetaFile.from_data(version, data, ["sha256"])
        )
        files.write("timestamp.json", sign(timestamp, self.keys.timestamp))


# The device's own files and time


def test_a_tampered_cache(world: World, device: TrustClient) -> None:
    evil = target_of(world.bundle("6.6.6", security_epoch=9))
    cache = world.path / "cam-1" / "tuf" / "image"
    line = Targets.from_dict(line_of(world).to_dict())
    line.targets[evil.path] = target_file(evil)
    (cache / "line-digits.json").write_bytes(sign(line, STRANGER))
    world.director_says("cam-1", evil)
    assert reason(device) == "not_in_image_repo"


def test_a_root_planted_in_the_cache(world: World, device: TrustClient, tmp_path: Path) -> None:
    thief = World(tmp_path / "thief", world.clock)
    planted = sign(
        Root.from_dict(thief.home.root.to_dict() | {"version": 2}),
        *(thief.home.signer(f"root-{n}") for n in (1, 2, 3)),
    )
    cache = world.path / "cam-1" / "tuf" / "image"
    (cache / "root_history" / "2.root.json").write_bytes(planted)
    (cache / "root.json").unlink()
    (cache / "root.json").write_bytes(thief.home.roots["1.root.json"])
    assert device.approve(FACTS) is not None


def test_a_time_signed_in_the_future_does_not_lock_the_device(
    world: World, device: TrustClient
) -> None:
    far = int((world.clock() + timedelta(days=9000)).timestamp())
    world.director_says("cam-1", **{ISSUED: far})
    assert reason(device) == "clock"
    world.director.assign("cam-1", world.release("1.1.0", security_epoch=1, license="MIT"))
    assert device.approve(FACTS) is not None


def test_a_fleet_restored_from_a_backup_goes_on(world: World, device: TrustClient) -> None:
    backup = world.path / "backup"
    shutil.copytree(world.path / "fleet", backup)
    for _ in range(3):  # life goes on after the backup
        world.clock.forward(hours=20)
        world.director.assign("cam-1", None)
        world.director.assign("cam-1", world.image.releases()[0].variants[0])
        assert device.approve(FACTS) is not None
    shutil.rmtree(world.path / "fleet")
    shutil.copytree(backup, world.path / "fleet")
    world.clock.forward(hours=1)
    restored = World(world.path, world.clock)
    restored.director.assign("cam-1", None)
    client = restored.device()
    assert client.approve(FACTS) is None
    restored.director.assign("cam-1", restored.image.releases()[0].variants[0])
    assert client.approve(FACTS) is not None
