"""A device asks what it may run: the honest cases, floors, clocks and damaged files."""

import hashlib
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.bundle import open_bundle
from edgepack.durable import write_file
from edgepack.errors import UnreachableError
from edgepack.oci import read_oci_manifest
from edgepack.trust import DeviceFacts, TrustError
from edgepack_agent.adapters.floors import BUILD_TIME, Floors
from edgepack_agent.adapters.trust import DirectoryChannel, TrustClient
from trust_rig import FACTS, START, Clock, World, target_of


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def reason(client: TrustClient, facts: DeviceFacts = FACTS) -> str:
    with pytest.raises(TrustError) as caught:
        client.approve(facts)
    return caught.value.reason


def exam_file(path: Path, samples: int = 8) -> Path:
    images = np.zeros((samples, 8, 8, 1), np.float32)
    np.savez(path, image=images, labels=np.arange(samples) % 10)
    return path


def test_from_publishing_to_an_approved_model(world: World, tmp_path: Path) -> None:
    path = world.bundle(security_epoch=2)
    world.publish(path, exam=exam_file(tmp_path / "exam.npz"), min_score=0.85)
    (release,) = world.image.releases()
    assert (release.name, release.version) == ("digits", "1.0.0")
    world.director.assign("cam-1", release.variants[0])

    approved = world.device().approve(FACTS)

    assert approved is not None
    assert approved.path == "models/digits/1.0.0/onnx-int8.json"
    assert (approved.name, approved.version, approved.epoch) == ("digits", "1.0.0", 2)
    blob = world.content.read(approved.sha256)
    assert len(blob) == approved.size
    with open_bundle(path) as bundle:
        assert read_oci_manifest(blob) == bundle.image
    assert approved.exam is not None
    assert approved.exam.min_score == 0.85
    assert world.content.size(approved.exam.sha256) == approved.exam.size


def test_nothing_wanted_needs_no_publisher(world: World) -> None:
    assert world.device().approve(FACTS) is None
    world.director.assign("cam-1", None)
    assert world.device().approve(FACTS) is None
    assert not [name for name in world.asked if name.startswith("image/")]


def test_a_poll_without_news_costs_two_files_of_each_repository(world: World) -> None:
    world.director.assign("cam-1", world.release())
    client = world.device()
    client.approve(FACTS)
    world.asked.clear()
    client.approve(FACTS)
    assert world.asked == [
        "director/2.root.json",
        "director/timestamp.json",
        "image/2.root.json",
        "image/timestamp.json",
    ]


def test_each_device_has_its_own_word(world: World) -> None:
    one, two = world.release("1.0.0"), world.release("1.1.0")
    world.director.assign("cam-1", one)
    world.director.assign("cam-2", two)
    found = [world.device(name).approve(FACTS) for name in ("cam-1", "cam-2", "cam-3")]
    assert [each and each.version for each in found] == ["1.0.0", "1.1.0", None]


def test_an_operator_may_go_back_within_the_epoch(world: World) -> None:
    old, new = world.release("1.0.0"), world.release("1.1.0")
    client = world.device()
    for wanted in (new, old):
        world.director.assign("cam-1", wanted)
        approved = client.approve(FACTS)
        assert approved is not None
        assert approved.sha256 == wanted.sha256
        client.confirm(approved.name, approved.epoch)


def test_the_epoch_floor_rises_on_commit_and_survives_a_restart(world: World) -> None:
    old, new = world.release("1.0.0"), world.release("1.1.0", security_epoch=3)
    client = world.device()
    world.director.assign("cam-1", new)
    approved = client.approve(FACTS)
    world.director.assign("cam-1", old)
    assert world.device().approve(FACTS) is not None  # approved is not committed
    assert approved is not None
    client.confirm(approved.name, approved.epoch)
    assert reason(world.device()) == "epoch_below_floor"


def test_a_publisher_revokes_without_an_install(world: World) -> None:
    old = world.release("1.0.0")
    world.director.assign("cam-1", old)
    client = world.device()
    assert client.approve(FACTS) is not None
    world.publish(world.bundle("1.1.0", security_epoch=1), min_epoch=1)
    assert reason(client) == "epoch_below_floor"


def test_hardware_and_runtime_are_checked(world: World) -> None:
    world.director.assign("cam-1", world.release())
    client = world.device()
    assert reason(client, DeviceFacts({"onnx": "1.22"}, "x86_64")) == "wrong_runtime"
    assert reason(client, DeviceFacts({}, "x86_64")) == "wrong_runtime"
    assert client.approve(FACTS) is not None


def test_a_device_returns_after_a_year(world: World) -> None:
    world.director.assign("cam-1", world.release())
    client = world.device()
    client.approve(FACTS)
    world.clock.forward(days=80)
    assert client.approve(FACTS) is not None
    world.clock.forward(days=80)  # the publisher's word is 90 days good
    assert reason(client) == "metadata_expired"
    world.publish(world.bundle())
    assert client.approve(FACTS) is not None


def test_the_director_renews_its_root(world: World) -> None:
    client = world.device()
    for _ in range(3):
        assert client.approve(FACTS) is None
        world.clock.forward(days=200)
        world.director.keep_fresh()
    assert client.approve(FACTS) is None
    assert world.device("new").approve(FACTS) is None


def test_no_answer_is_no_distrust(world: World) -> None:
    def cut(repo: str, name: str, data: bytes | None) -> bytes | None:
        raise UnreachableError("the broker is gone")

    world.director.assign("cam-1", world.release())
    client = world.device()
    client.approve(FACTS)
    world.tamper = cut
    with pytest.raises(UnreachableError):
        client.approve(FACTS)
    world.tamper = lambda repo, name, data: data
    assert client.approve(FACTS) is not None


@pytest.mark.parametrize("repo", ["image", "director"])
@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"null", b"[1]"])
def test_a_torn_cache_is_fetched_again(world: World, repo: str, damage: bytes) -> None:
    world.director.assign("cam-1", world.release())
    world.device().approve(FACTS)
    for path in (world.path / "cam-1" / "tuf" / repo).rglob("*.json"):
        path.write_bytes(damage)
    assert world.device().approve(FACTS) is not None


@pytest.mark.parametrize("damage", [None, b"", b"torn"])
def test_any_one_file_of_the_cache_may_be_lost_or_torn(world: World, damage: bytes | None) -> None:
    world.director.assign("cam-1", world.release())
    world.device().approve(FACTS)
    cache = world.path / "cam-1" / "tuf"
    files = [path for path in cache.rglob("*.json") if not path.is_symlink()]
    assert len(files) > 8
    for path in [*files, cache / "image" / "root.json", cache / "director" / "root.json"]:
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        assert world.device().approve(FACTS) is not None, path


def test_a_lost_cache_is_fetched_again(world: World) -> None:
    world.director.assign("cam-1", world.release())
    world.device().approve(FACTS)
    shutil.rmtree(world.path / "cam-1" / "tuf")
    assert world.device().approve(FACTS) is not None


def test_what_was_verified_is_on_the_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = set()
    flush = os.fsync

    def noting(handle: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{handle}").readlink())
        flush(handle)

    world.director.assign("cam-1", world.release())
    client = world.device()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noting)
        client.approve(FACTS)
    cache = world.path / "cam-1" / "tuf"
    for repo in (cache / "image", cache / "director"):
        kept = {path for path in repo.rglob("*") if not path.is_symlink()}
        assert len(kept) > 4
        assert kept | {repo} <= flushed


def test_what_a_killed_refresh_left_is_removed(world: World) -> None:
    client = world.device()
    client.approve(FACTS)
    leftover = world.path / "cam-1" / "tuf" / "director" / "tmpabc123"
    leftover.write_bytes(b"half")
    client.approve(FACTS)
    assert not leftover.exists()


def test_a_cache_that_cannot_be_written_is_an_error_not_a_crash(world: World) -> None:
    client = world.device()
    (world.path / "cam-1" / "tuf").mkdir(parents=True)
    (world.path / "cam-1" / "tuf" / "director").write_bytes(b"a file in the way")
    assert reason(client) == "storage"


@pytest.mark.parametrize("root", [b"", b"{}", b"not json"])
def test_a_root_that_is_none_is_refused(world: World, root: bytes) -> None:
    client = world.device()
    client._roots["director"] = root
    assert reason(client) == "bad_root"


def test_a_clock_behind_waits_and_harms_nothing(world: World) -> None:
    world.director.assign("cam-1", world.release())
    client = world.device()
    client.approve(FACTS)
    world.clock.now = START - timedelta(days=2)
    assert reason(client) == "clock"
    world.clock.now = START - timedelta(minutes=30)  # within what clocks may differ
    assert client.approve(FACTS) is not None


def test_a_clock_behind_is_told_before_anything_is_fetched(world: World) -> None:
    client = world.device()
    client.approve(FACTS)
    world.asked.clear()
    world.clock.now = START - timedelta(days=2)
    assert reason(client) == "clock"
    assert world.asked == []


def test_a_clock_at_the_epoch_is_behind_even_on_a_new_device(world: World) -> None:
    client = world.device()
    client._now = Clock(START.replace(year=1970))
    assert reason(client) == "clock"


def written_floors(world: World) -> dict[str, Any]:
    body, digest = (world.path / "cam-1" / "floors.json").read_bytes().splitlines()
    assert digest.decode() == hashlib.sha256(body).hexdigest()
    found: dict[str, Any] = json.loads(body)
    return found


def test_a_clock_behind_the_fleet_is_told_so_and_sets_no_floor(world: World) -> None:
    client = world.device()
    client._now = Clock(START - timedelta(days=30))
    assert reason(client) == "clock"
    client._now = world.clock
    assert client.approve(FACTS) is None
    assert written_floors(world)["time"] <= int(START.timestamp())


def test_the_clock_of_the_device_never_raises_the_floor(world: World) -> None:
    client = world.device()
    client._now = Clock(START + timedelta(hours=20))
    client.approve(FACTS)
    floors = written_floors(world)
    assert floors["time"] == int(START.timestamp())


def test_a_bundle_at_hand_needs_no_director(world: World) -> None:
    path = world.bundle()
    world.publish(path)
    approved = world.device().approve_local(target_of(path), FACTS)
    assert approved.version == "1.0.0"
    assert not [name for name in world.asked if name.startswith("director/")]
    stranger = world.bundle("6.6.6")
    with pytest.raises(TrustError) as caught:
        world.device().approve_local(target_of(stranger), FACTS)
    assert caught.value.reason == "not_in_image_repo"


def test_a_bundle_at_hand_must_be_the_one_that_was_published(world: World) -> None:
    world.publish(world.bundle())
    changed = world.bundle(labels=("a", "b"))
    with pytest.raises(TrustError) as caught:
        world.device().approve_local(target_of(changed), FACTS)
    assert caught.value.reason == "mismatch"


def test_a_site_without_a_network_goes_by_what_it_has(world: World) -> None:
    def cut(repo: str, name: str, data: bytes | None) -> bytes | None:
        raise UnreachableError("no network")

    path = world.bundle()
    world.publish(path)
    client = world.device()
    world.tamper = cut
    with pytest.raises(TrustError) as caught:
        client.approve_local(target_of(path), FACTS)
    assert caught.value.reason == "metadata_missing"
    world.tamper = lambda repo, name, data: data
    client.approve_local(target_of(path), FACTS)
    world.tamper = cut
    assert client.approve_local(target_of(path), FACTS).version == "1.0.0"
    world.clock.forward(days=2)
    with pytest.raises(TrustError) as caught:
        client.approve_local(target_of(path), FACTS)
    assert caught.value.reason == "metadata_expired"


def test_a_stick_serves_as_a_repository(world: World, tmp_path: Path) -> None:
    path = world.bundle()
    world.publish(path)
    shutil.copytree(world.image_files.path, tmp_path / "stick" / "metadata")
    channel = DirectoryChannel(tmp_path / "stick")
    root = world.home.roots["1.root.json"]
    floors = Floors(tmp_path / "floors.json")
    client = TrustClient(tmp_path / "t", "cam-1", channel, root, b"", floors, world.clock)
    assert client.approve_local(target_of(path), FACTS).version == "1.0.0"
    assert channel.metadata("director", "timestamp.json", 10) is None
    assert len(channel.metadata("image", "timestamp.json", 10) or b"") == 11


class TestFloors:
    def test_they_survive_and_only_rise(self, tmp_path: Path) -> None:
        floors = Floors(tmp_path / "floors.json")
        floors.raise_seen({"image/root@": 3}, BUILD_TIME + 5)
        floors.raise_seen({"image/root@": 2, "other": 1}, BUILD_TIME)
        floors.confirm("digits", 4)
        floors.confirm("digits", 1)
        again = Floors(tmp_path / "floors.json")
        assert (again.role("image/root@"), again.role("other"), again.role("none")) == (3, 1, 0)
        assert (again.epoch("digits"), again.epoch("other")) == (4, 0)
        with pytest.raises(TrustError):
            again.check_clock(START.replace(year=2020))

    @pytest.mark.parametrize("name", ["floors.json", "floors.json.copy"])
    @pytest.mark.parametrize("damage", [b"", b"\xff", b'{"v":1,"roles":{"a":-1}}', None])
    def test_one_damaged_copy_costs_nothing(
        self, tmp_path: Path, name: str, damage: bytes | None
    ) -> None:
        Floors(tmp_path / "floors.json").confirm("digits", 4)
        if damage is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(damage)
        assert Floors(tmp_path / "floors.json").epoch("digits") == 4

    def test_a_power_cut_between_the_copies_keeps_the_higher(self, tmp_path: Path) -> None:
        floors = Floors(tmp_path / "floors.json")
        floors.confirm("digits", 1)
        before = (tmp_path / "floors.json.copy").read_bytes()
        floors.confirm("digits", 2)
        write_file(tmp_path / "floors.json.copy", before)
        assert Floors(tmp_path / "floors.json").epoch("digits") == 2

    def test_two_damaged_copies_are_not_taken_for_a_new_device(self, tmp_path: Path) -> None:
        Floors(tmp_path / "floors.json").confirm("digits", 4)
        for path in tmp_path.iterdir():
            path.write_bytes(b"\0" * 20)
        with pytest.raises(TrustError) as caught:
            Floors(tmp_path / "floors.json")
        assert caught.value.reason == "floors_unreadable"

    def test_a_disk_that_fails_leaves_them_as_they_were(self, tmp_path: Path) -> None:
        floors = Floors(tmp_path / "none" / "floors.json")
        (tmp_path / "none").write_bytes(b"a file in the way")
        with pytest.raises(OSError, match=r"exists|directory"):
            floors.confirm("digits", 4)
        assert floors.epoch("digits") == 0
