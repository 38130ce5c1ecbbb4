"""Keys change; devices follow, however long they were away, and old signatures stop counting."""

import contextlib
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Root, Targets

from edgepack.errors import UsageError
from edgepack.keys import create_keypair, load_private, load_public, public_pem
from edgepack.metadata import OnlineKeys, parse, public_key, seal, sign, signer_of, target_file
from edgepack.trust import TargetInfo, TrustError, line_paths, line_role
from edgepack_agent.adapters.trust import TrustClient
from edgepack_packager.rotation import Rotation, in_doubt
from edgepack_packager.standing import Doubt, current_state
from trust_rig import FACTS, World, line_of, target_of


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.director.assign("cam-1", made.release(security_epoch=1))
    return made


def reason(client: TrustClient) -> str:
    with pytest.raises(TrustError) as caught:
        client.approve(FACTS)
    return caught.value.reason


def keyids(world: World, role: str) -> list[str]:
    return list(world.home.root.roles[role].keyids)


EVERY_KEY = ("root-1", "root-2", "targets", "line-digits", "snapshot", "timestamp", "export")


def test_every_key_is_replaced_and_devices_follow(world: World) -> None:
    client = world.device()
    client.approve(FACTS)
    away = world.device("away")
    world.director.assign("away", world.image.releases()[0].variants[0])
    before = {role: keyids(world, role) for role in world.home.root.roles}
    line = parse(world.image_files.current()["targets"], Targets).signed.delegations
    world.clock.forward(hours=1)
    world.rotate(*EVERY_KEY)
    after = {role: keyids(world, role) for role in world.home.root.roles}
    assert len(set(before["root"]) & set(after["root"])) == 1  # root-3 stayed
    for role in ("targets", "snapshot", "timestamp"):
        assert not set(before[role]) & set(after[role])
    now = parse(world.image_files.current()["targets"], Targets).signed.delegations
    assert line is not None
    assert now is not None
    assert not line.keys.keys() & now.keys.keys()
    for device in (client, away, world.device("new")):
        world.director.assign("new", world.image.releases()[0].variants[0])
        assert device.approve(FACTS) is not None
    world.release("1.1.0", security_epoch=1)  # the new keys are in their places
    assert not list((world.path / "home" / "keys" / "next").glob("*"))
    assert len(list((world.path / "home" / "keys" / "retired").glob("root-*.pub.pem"))) == 2


def test_from_root_1_to_root_3_in_one_go_after_400_days(world: World) -> None:
    """The device slept through both; the root between the two has expired long ago."""
    client = world.device()
    client.approve(FACTS)
    world.rotate("root-1", "targets")
    world.clock.forward(days=380)
    world.rotate("root-2", "line-digits", "snapshot", "timestamp")
    world.clock.forward(days=20)
    world.director.keep_fresh()
    assert client.approve(FACTS) is not None
    assert sorted(world.image_files.versions("root")) == [1, 2, 3]
    chain = world.path / "cam-1" / "tuf" / "image" / "root_history"
    assert sorted(path.name for path in chain.iterdir()) == [
        "1.root.json", "2.root.json", "3.root.json",
    ]  # fmt: skip
    shutil.rmtree(world.path / "cam-1" / "tuf")
    assert world.device().approve(FACTS) is not None


def test_a_stolen_line_key_counts_no_longer(world: World) -> None:
    thief = world.home.signer("line-digits")
    client = world.device()
    client.approve(FACTS)
    world.rotate("line-digits")
    evil = target_of(world.bundle("6.6.6", security_epoch=9))
    line = Targets.from_dict(line_of(world).to_dict())
    line.version += 1
    line.targets[evil.path] = target_file(evil)
    files, data = world.image_files, sign(line, thief)
    files.write(f"{line.version}.line-digits.json", data)
    keys = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    seal(files, files.current() | {"line-digits": data}, keys, world.clock())
    world.director_says("cam-1", evil)
    assert reason(client) == "bad_signature"


def stolen_line(world: World) -> None:
    """A thief publishes a model with the stolen line key, before anybody notices."""
    evil = target_of(world.bundle("6.6.6", security_epoch=9))
    line = Targets.from_dict(line_of(world).to_dict())
    line.version += 5
    line.targets[evil.path] = target_file(evil)
    data = sign(line, world.home.signer("line-digits"))
    files = world.image_files
    files.write(f"{line.version}.line-digits.json", data)
    keys = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    seal(files, files.current() | {"line-digits": data}, keys, world.clock())


def test_what_a_thief_published_is_not_signed_again_unasked(world: World) -> None:
    stolen_line(world)
    client = world.device()
    client.approve(FACTS)
    doubt = in_doubt(Rotation({"line-digits": ""}))
    with pytest.raises(UsageError) as caught:
        world.rotate("line-digits", doubt=Doubt(doubt))
    assert caught.value.reason == "unknown_version"
    assert "6.6.6" in caught.value.why
    done = world.rotate("line-digits", doubt=Doubt(doubt, discard=["line-digits"]))
    assert not any("6.6.6" in text for text in done.summary)
    assert [path.split("/")[2] for path in line_of(world).targets] == ["1.0.0"]
    world.clock.forward(hours=1)
    world.director.assign("cam-1", world.image.releases()[0].variants[0])
    assert client.approve(FACTS) is not None  # its version is above what the thief's was
    world.director_says("cam-1", target_of(world.bundle("6.6.6", security_epoch=9)))
    assert reason(client) == "not_in_image_repo"


def test_what_a_colleague_published_is_kept_if_one_says_so(world: World) -> None:
    stolen_line(world)
    world.rotate("line-digits", doubt=Doubt(["line-digits"], keep=["line-digits"]))
    assert len(line_of(world).targets) == 2


def test_stolen_online_keys_are_replaced_at_the_fleet(world: World) -> None:
    client = world.device()
    client.approve(FACTS)
    thief = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    old = world.image_files.current()
    world.clock.forward(hours=1)
    world.rotate("snapshot", "timestamp")
    assert client.approve(FACTS) is not None
    world.clock.forward(days=8)
    assert client.approve(FACTS) is not None  # and go on to sign
    seal(world.image_files, old, thief, world.clock())
    forged = world.image_files.read("timestamp.json")
    world.tamper = lambda repo, name, data: (
        forged if f"{repo}/{name}" == "image/timestamp.json" else data
    )
    assert reason(client) == "bad_signature"
    world.tamper = lambda repo, name, data: data
    assert client.approve(FACTS) is not None  # the fleet itself signs over it


def test_a_stolen_fleet_offers_its_key_under_the_id_of_one_of_ours(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the thief would hold our targets key as soon as the online keys are replaced."""
    answer = world.image.next_online_keys()
    answer["timestamp"] |= {"keyid": keyids(world, "targets")[0]}
    monkeypatch.setattr(world.image, "next_online_keys", lambda: answer)
    with pytest.raises(UsageError, match="online keys"):
        world.rotate("snapshot", "timestamp")
    assert world.home.root.version == 1


def test_keys_no_root_names_sign_nothing(world: World) -> None:
    """Somebody lost the fleet's keys; until a root names the new ones the old files stay."""
    before = world.image_files.read("timestamp.json")
    shutil.rmtree(world.path / "fleet" / "image" / "keys")
    lost = World(world.path, world.clock)
    world.clock.forward(days=1)
    assert lost.image.metadata("timestamp.json") == before
    lost.rotate("snapshot", "timestamp")
    assert lost.device().approve(FACTS) is not None


def test_a_thief_of_the_targets_key_drove_versions_too_high(world: World) -> None:
    client = world.device()
    client.approve(FACTS)
    top = Targets.from_dict(parse(world.image_files.current()["targets"], Targets).signed.to_dict())
    top.version = 2**40
    data = sign(top, world.home.signer("targets"))
    files = world.image_files
    files.write(f"{top.version}.targets.json", data)
    keys = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    seal(files, files.current() | {"targets": data}, keys, world.clock())
    client.approve(FACTS)
    world.clock.forward(hours=1)
    doubt = Doubt(["targets"], discard=["targets"])
    world.rotate("targets", "snapshot", "timestamp", doubt=doubt)
    assert client.approve(FACTS) is not None
    assert world.device("new").approve(FACTS) is None  # nothing wanted, and nothing refused


def stolen_targets(world: World, line: str) -> TargetInfo:
    """A thief with the targets key puts LINE under a key of his own, and a model in it."""
    evil = target_of(world.bundle("6.6.6", name=line, security_epoch=9))
    create_keypair(world.path / "thief.pem", None)
    thief = signer_of(load_private(world.path / "thief.pem"))
    published = world.image_files.current()
    top = Targets.from_dict(parse(published["targets"], Targets).signed.to_dict())
    top.version += 5
    assert top.delegations is not None
    assert top.delegations.roles is not None
    role = line_role(line)
    top.delegations.roles[role] = DelegatedRole(role, [], 1, True, line_paths(line))
    top.add_key(thief.public_key, role)
    own = Targets(7, expires=top.expires, targets={evil.path: target_file(evil)})
    roles = {"targets": sign(top, world.home.signer("targets")), role: sign(own, thief)}
    files = world.image_files
    files.write_all(
        {f"{top.version}.targets.json": roles["targets"], f"7.{role}.json": roles[role]}
    )
    keys = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    seal(files, files.current() | roles, keys, world.clock())
    return evil


@pytest.mark.parametrize("line", ["digits", "evil"])
def test_what_a_thief_of_the_targets_key_delegated_goes_with_the_key(
    world: World, line: str
) -> None:
    good = world.image.releases()[0].variants[0]
    client = world.device()
    evil = stolen_targets(world, line)
    world.director_says("cam-1", evil)
    approved = client.approve(FACTS)
    assert approved is not None
    assert approved.version == "6.6.6"
    world.clock.forward(hours=1)
    doubt = Doubt(["targets"], discard=["targets"])
    if line == "evil":  # a device never lets go of a line that an old snapshot key named
        with pytest.raises(UsageError) as caught:
            world.rotate("targets", doubt=doubt)
        assert caught.value.reason == "line_gone"
    world.rotate("targets", "snapshot", "timestamp", doubt=doubt)
    assert sorted(world.image_files.current()) == ["line-digits", "targets"]
    for device in (client, world.device("cam-2")):
        world.director_says(device._device, evil)
        assert reason(device) == "not_in_image_repo"
    world.director.assign("cam-1", good)
    assert client.approve(FACTS) is not None
    world.director.assign("cam-1", world.release("1.1.0", security_epoch=1))
    assert client.approve(FACTS) is not None


def test_a_version_that_no_other_could_follow_is_not_put_online(world: World) -> None:
    state = current_state(world.home, world.published)
    top = Targets.from_dict(state.targets.to_dict())
    top.version = 10**16 - 1
    with pytest.raises(TrustError) as caught:
        world.image.publish(
            {f"{top.version}.targets.json": sign(top, world.home.signer("targets"))}
        )
    assert caught.value.reason == "mismatch"


def test_no_line_goes_while_the_key_that_delegated_it_counts(world: World) -> None:
    state = current_state(world.home, world.published)
    top = Targets.from_dict(state.targets.to_dict())
    top.version, top.delegations = top.version + 1, Delegations({}, {})
    with pytest.raises(TrustError) as caught:
        world.image.publish(
            {f"{top.version}.targets.json": sign(top, world.home.signer("targets"))}
        )
    assert caught.value.reason == "mismatch"


def test_thresholds_of_several_people(world: World, tmp_path: Path) -> None:
    """1 of 2 for targets, then 2 of 2: the home alone no longer suffices."""
    public = create_keypair(tmp_path / "bob.pem", None)
    bob = public_key(public.read_bytes())
    world.rotate(add=[("targets", str(public))])
    assert (world.home.root.roles["targets"].threshold, len(keyids(world, "targets"))) == (1, 2)
    with pytest.raises(UsageError) as caught:
        world.rotate(threshold={"targets": 2})
    assert caught.value.reason == "signatures_missing"
    assert bob.keyid[:12] in caught.value.why
    with pytest.raises(UsageError) as caught:
        world.rotate(threshold={"targets": 3})
    assert caught.value.reason == "bad_threshold"
    world.rotate(remove=[("targets", bob.keyid[:8])])
    assert keyids(world, "targets") != [bob.keyid]
    assert len(keyids(world, "targets")) == 1


def test_a_rotation_that_was_cut_short_is_taken_up(world: World) -> None:
    """The repository has it, the home does not: as after a cut between the two."""
    home = world.path / "home"
    shutil.copytree(home, world.path / "before")
    world.rotate("root-1", "targets", "line-digits")
    shutil.copytree(home / "keys", world.path / "made")
    shutil.rmtree(home)
    shutil.copytree(world.path / "before", home)
    for name in ("root-1", "targets", "line-digits"):
        for suffix in (".pem", ".pub.pem"):
            target = home / "keys" / "next" / f"{name}{suffix}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(world.path / "made" / f"{name}{suffix}", target)
    world.release("1.1.0", security_epoch=1)
    assert world.home.root.version == 2
    assert len(line_of(world).targets) == 2


def test_settling_may_be_interrupted_anywhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = world.path / "home" / "keys"
    replace = Path.replace
    left = [0]

    def cut(self: Path, target: Path) -> Path:
        if keys in self.parents and left[0] == 0:
            raise OSError(5, "cut")
        left[0] -= keys in self.parents
        return replace(self, target)

    for steps in range(5):
        left[0] = steps
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut)
            with contextlib.suppress(UsageError):
                world.rotate("targets", "root-1")
        left[0] = 10**6
        world.home.settle()
        world.publish(world.bundle("1.0.0", security_epoch=1))
        assert public_pem(load_public(keys / "targets.pub.pem")) == public_pem(
            load_private(keys / "targets.pem").public_key()
        )
        root = parse(list(world.home.roots.values())[-1], Root).signed
        assert signer_of(load_private(keys / "targets.pem")).public_key.keyid in root.keys


def test_what_cannot_be_meant(world: World) -> None:
    for asked in (
        {"remove": [("targets", "abc")]},
        {"remove": [("nobody", "a" * 64)]},
        {"threshold": {"line-none": 1}},
        {"add": [("targets", "/none.pub.pem")]},
    ):
        with pytest.raises(UsageError) as caught:
            world.rotate(**asked)
        assert caught.value.reason in {"no_key", "no_role"}
    with pytest.raises(UsageError) as caught:
        world.rotate("root-2", "line-none")
    assert caught.value.reason == "no_role"
    assert not any(name.startswith("next/") for name in world.home.keys.names())
    (world.path / "home" / "keys" / "root-1.pub.pem").unlink()
    with pytest.raises(UsageError) as caught:
        world.rotate("root-1")
    assert caught.value.reason == "no_key"


def test_a_root_is_followed_for_a_year_and_then_signed_again(world: World) -> None:
    world.clock.forward(days=200)
    world.rotate(again=["root"])
    world.publish(world.bundle("1.0.0", security_epoch=1))
    world.clock.forward(days=20)
    assert world.device().approve(FACTS) is not None
    assert world.home.root.expires == world.clock() + timedelta(days=345)
