"""A mirror on a stick, and the fleet, by turns: what a device takes from which, and what not."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from edgepack.errors import UnreachableError, UsageError
from edgepack.metadata import MetadataDirectory
from edgepack.oci import read_oci_manifest
from edgepack.trust import EXPORT, TargetInfo, TrustError
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.trust import DirectoryChannel, TrustClient
from edgepack_packager.adapters.published import DirectoryRepository
from trust_rig import FACTS, World, no_passphrase, target_of


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    return tmp_path / "stick"


def from_stick(client: TrustClient, wanted: TargetInfo, stick: Path) -> str:
    return client.approve_local(wanted, FACTS, DirectoryChannel(stick)).version


def refusal(client: TrustClient, wanted: TargetInfo, stick: Path) -> TrustError:
    with pytest.raises(TrustError) as caught:
        from_stick(client, wanted, stick)
    return caught.value


def cut(repo: str, name: str, data: bytes | None) -> bytes | None:
    raise UnreachableError("no network")


def test_a_new_device_trusts_a_mirror_for_as_long_as_it_says(world: World, stick: Path) -> None:
    wanted = world.release()
    done = world.export(stick, days=30)
    assert done.releases == ("digits@1.0.0",)
    world.tamper = cut
    world.clock.forward(days=29)
    assert from_stick(world.device(), wanted, stick) == "1.0.0"
    world.clock.forward(days=2)
    error = refusal(world.device(), wanted, stick)
    assert error.reason == "metadata_expired"
    assert error.diagnostics() == (
        "error: the metadata has expired\n"
        "  why: timestamp.json is expired\n"
        "  fix: export the mirror again: edgepack repo export; inference goes on"
    )


def test_what_a_mirror_said_counts_until_it_expires(world: World, stick: Path) -> None:
    """The stick is gone; a bundle is handed in later."""
    wanted = world.release()
    client = world.device()
    world.director.assign("cam-1", wanted)
    client.approve(FACTS)  # the fleet's word is good for a day
    world.export(stick, days=30)
    from_stick(client, wanted, stick)
    world.tamper = cut
    world.clock.forward(days=20)
    assert client.approve_local(wanted, FACTS).version == "1.0.0"
    world.clock.forward(days=11)
    with pytest.raises(TrustError) as caught:
        client.approve_local(wanted, FACTS)
    assert caught.value.reason == "metadata_expired"


def test_fleet_and_mirror_take_turns(world: World, stick: Path) -> None:
    """An export in between two signatures of the fleet is no step back, nor is the next visit."""
    wanted = world.release()
    world.director.assign("cam-1", wanted)
    client = world.device()
    for _ in range(3):
        assert client.approve(FACTS) is not None
        world.clock.forward(hours=1)
        world.export(stick)
        assert from_stick(client, wanted, stick) == "1.0.0"
        assert client.approve(FACTS) is not None  # signed by the fleet before the export was
        world.clock.forward(days=3)
        assert from_stick(client, wanted, stick) == "1.0.0"


def test_a_mirror_that_is_older_than_what_the_device_knows(world: World, stick: Path) -> None:
    """Otherwise a thief of an old stick could undo what the publisher has said since."""
    old = world.release("1.0.0")
    world.export(stick)
    new = world.release("1.1.0")
    world.director.assign("cam-1", new)
    client = world.device()
    client.approve(FACTS)
    error = refusal(client, old, stick)
    assert error.reason == "rollback"
    assert "export it again" in error.fix
    assert from_stick(world.device("offline"), old, stick) == "1.0.0"  # one that does not know
    world.clock.forward(hours=1)
    world.export(stick)
    assert from_stick(client, old, stick) == "1.0.0"


def test_an_older_stick_after_a_newer(world: World, stick: Path, tmp_path: Path) -> None:
    wanted = world.release()
    world.export(stick)
    world.clock.forward(days=1)
    world.export(tmp_path / "newer")
    client = world.device()
    from_stick(client, wanted, tmp_path / "newer")
    assert refusal(client, wanted, stick).reason == "rollback"
    shutil.rmtree(world.path / "cam-1" / "tuf")
    assert refusal(world.device(), wanted, stick).reason == "rollback"  # the floors remember


def test_a_mirror_does_not_come_over_the_network(world: World, stick: Path) -> None:
    """It is good for a month, so that a thief of the fleet could freeze its devices with it."""
    wanted = world.release()
    world.director.assign("cam-1", wanted)
    world.export(stick)
    client = world.device()
    client.approve(FACTS)
    served = DirectoryChannel(stick)

    def serve(repo: str, name: str, data: bytes | None) -> bytes | None:
        return served.metadata(repo, name, 10**6) if repo == "image" else data

    world.tamper = serve
    with pytest.raises(TrustError) as caught:
        client.approve(FACTS)
    assert caught.value.reason == "mismatch"
    world.tamper = lambda repo, name, data: data
    assert client.approve(FACTS) is not None  # it left nothing behind


def test_a_mirror_under_the_seals_of_the_fleet_and_the_other_way_round(
    world: World, stick: Path
) -> None:
    wanted = world.release()
    world.export(stick)
    files = MetadataDirectory(stick / "metadata")
    timestamp = files.timestamp()
    assert timestamp is not None
    (path,) = (stick / "metadata").glob("*.snapshot.json")
    fleets = world.image_files.timestamp()
    assert fleets is not None
    path.write_bytes(world.image_files.read(f"{fleets.snapshot_meta.version}.snapshot.json") or b"")
    assert refusal(world.device(), wanted, stick).reason == "mismatch"


def test_a_copy_of_the_fleets_own_files_is_a_mirror_too(world: World, stick: Path) -> None:
    wanted = world.release()
    shutil.copytree(world.image_files.path, stick / "metadata")
    assert from_stick(world.device(), wanted, stick) == "1.0.0"
    world.clock.forward(days=2)
    assert refusal(world.device(), wanted, stick).reason == "metadata_expired"


def tampered_line(path: Path) -> None:
    (line,) = path.glob("*.line-digits.json")
    line.write_bytes(line.read_bytes().replace(b'"epoch":0', b'"epoch":7'))


def tampered_timestamp(path: Path) -> None:
    text = json.loads((path / "timestamp.json").read_bytes())
    text["signed"]["expires"] = "2036-01-01T00:00:00Z"
    (path / "timestamp.json").write_text(json.dumps(text))


def without_mark(path: Path) -> None:
    text = json.loads((path / "timestamp.json").read_bytes())
    del text["signed"][EXPORT]
    (path / "timestamp.json").write_text(json.dumps(text))


def without_snapshot(path: Path) -> None:
    (snapshot,) = path.glob("*.snapshot.json")
    snapshot.unlink()


def garbage_root(path: Path) -> None:
    (path / "2.root.json").write_bytes(b"{}")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (tampered_line, "mismatch"),
        (tampered_timestamp, "bad_signature"),
        (without_mark, "bad_signature"),
        (without_snapshot, "metadata_missing"),
        (garbage_root, "bad_metadata"),
    ],
)
def test_a_tampered_mirror(
    world: World, stick: Path, damage: Callable[[Path], None], reason: str
) -> None:
    wanted = world.release()
    world.export(stick)
    damage(stick / "metadata")
    assert refusal(world.device(), wanted, stick).reason == reason


def test_a_mirror_signed_with_stolen_online_keys_approves_nothing_new(
    world: World, stick: Path
) -> None:
    from edgepack.metadata import OnlineKeys, seal

    world.release()
    evil = target_of(world.bundle("6.6.6"))
    shutil.copytree(world.image_files.path, stick / "metadata")
    keys = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    files = MetadataDirectory(stick / "metadata")
    seal(files, files.current(), keys, world.clock(), timedelta(days=90), export=True)
    assert refusal(world.device(), evil, stick).reason == "not_in_image_repo"


def test_a_mirror_of_before_a_rotation_follows_the_roots_the_device_knows(
    world: World, stick: Path
) -> None:
    from edgepack_packager.core.draft import Change
    from edgepack_packager.repository import revise
    from edgepack_packager.standing import current_state

    wanted = world.release()
    world.director.assign("cam-1", wanted)
    world.export(stick)
    state = current_state(world.home, world.published)
    revise(world.home, world.published, state, Change(again=frozenset({"root"})), world.clock())
    client = world.device()
    client.approve(FACTS)
    assert from_stick(client, wanted, stick) == "1.0.0"
    # And a fleet that was restored from before it is followed from what the stick taught.
    world.clock.forward(hours=1)
    world.export(stick)
    other = world.device("cam-2")
    from_stick(other, wanted, stick)
    (world.image_files.path / "2.root.json").unlink()
    world.director.assign("cam-2", wanted)
    assert other.approve(FACTS) is not None


# What a mirror holds


def test_a_mirror_holds_what_was_asked_for(world: World, stick: Path) -> None:
    world.release("1.0.0")
    wanted = world.release("1.1.0", labels=("a", "b"))
    done = world.export(stick, "digits@1.1.0")
    assert done.releases == ("digits@1.1.0",)
    blobs = {path.name: path.stat().st_size for path in (stick / "blobs" / "sha256").iterdir()}
    image = read_oci_manifest((stick / "blobs" / "sha256" / wanted.sha256).read_bytes())
    assert blobs == {wanted.sha256: wanted.size, **image.blobs()}
    assert done.size_bytes == done.copied_bytes == sum(blobs.values())
    with pytest.raises(UsageError) as caught:
        world.export(stick, "digits@9.9.9")
    assert caught.value.reason == "no_release"


def test_an_interrupted_export_goes_on(world: World, stick: Path) -> None:
    wanted = world.release()
    whole = world.export(stick).size_bytes
    again = world.export(stick)
    assert (again.copied_bytes, again.size_bytes) == (0, whole)
    lost = stick / "blobs" / "sha256" / wanted.sha256
    lost.unlink()
    (stick / "metadata" / "timestamp.json").unlink()  # it is written last
    assert world.export(stick).copied_bytes == wanted.size
    assert from_stick(world.device(), wanted, stick) == "1.0.0"


def test_no_mirror_outlives_what_it_mirrors(world: World, stick: Path) -> None:
    world.release()
    world.clock.forward(days=40)
    world.export(stick, days=50)
    with pytest.raises(UsageError) as caught:
        world.export(stick, days=51)
    assert caught.value.reason == "expires_sooner"
    assert "repo refresh" in caught.value.fix


def test_a_mirror_needs_the_export_key_only(world: World, stick: Path) -> None:
    world.release()
    for path in (world.path / "home" / "keys").glob("*.pem"):
        if not path.name.startswith("export."):
            path.unlink()
    world.export(stick)
    (world.path / "home" / "keys" / "export.pem").unlink()
    with pytest.raises(UsageError) as caught:
        world.export(stick)
    assert caught.value.reason == "no_export_key"


def test_a_mirror_and_a_repository_are_not_mixed(world: World, stick: Path, tmp_path: Path) -> None:
    from edgepack_packager.adapters.publisher_home import PublisherHome
    from edgepack_packager.repository import PublishRequest, init, publish

    world.release()
    world.export(stick)
    init(tmp_path / "local", None, world.clock())
    home = PublisherHome(tmp_path / "local", no_passphrase)
    for place in (tmp_path / "there", stick):
        there = DirectoryRepository(place, home.online_keys, world.clock(), timedelta(days=1))
        if place == stick:
            with pytest.raises(Exception, match="another publisher"):
                publish(home, there, PublishRequest([world.bundle("2.0.0")]), world.clock())
        else:
            publish(home, there, PublishRequest([world.bundle("2.0.0")]), world.clock())
    with pytest.raises(UsageError) as caught:
        world.export(tmp_path / "there")
    assert caught.value.reason == "wrong_kind"


def test_a_directory_repository_can_be_mirrored_as_well(world: World, tmp_path: Path) -> None:
    from edgepack_packager.adapters.publisher_home import PublisherHome
    from edgepack_packager.mirror import export
    from edgepack_packager.repository import PublishRequest, init, publish

    init(tmp_path / "local", None, world.clock())
    home = PublisherHome(tmp_path / "local", no_passphrase)
    there = DirectoryRepository(tmp_path / "a", home.online_keys, world.clock(), timedelta(days=1))
    path = world.bundle()
    publish(home, there, PublishRequest([path]), world.clock())
    export(home, there, tmp_path / "b", (), timedelta(days=30), world.clock())
    client = TrustClient(
        tmp_path / "t", "cam-1", DirectoryChannel(tmp_path / "nothing"), home.roots["1.root.json"],
        b"", Floors(tmp_path / "floors.json"), world.clock,
    )  # fmt: skip
    assert from_stick(client, target_of(path), tmp_path / "b") == "1.0.0"
