"""Publishing with patches: which are made, which are offered, and what is said of them."""

import hashlib
import io
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_rig import SIZE, model, release
from edgepack.bundle import open_bundle
from edgepack.errors import EdgepackError, UsageError
from edgepack.offers import offers_name, read_offers
from edgepack.patch import FRAME_BASE, FRAME_TARGET, apply_patch
from edgepack_packager.adapters.patch_workshop import Workshop
from edgepack_packager.adapters.published import DirectoryRepository
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.core.deltas import Pair, bases_of, check_wanted, hopeless, sample, windows
from edgepack_packager.repository import PublishRequest, init, publish
from fuzz import refusal
from trust_rig import START, World, no_passphrase


def blob_of(bundle: Path) -> tuple[str, int]:
    with open_bundle(bundle) as opened:
        files = {f.path: f for f in opened.manifest.files}
        return files["model/model.onnx"].sha256, files["model/model.onnx"].size


def test_a_patch_is_offered_that_makes_the_new_of_the_old(tmp_path: Path) -> None:
    world = World(tmp_path)
    old, new = model(), model(2000)
    world.publish(release(tmp_path, "1.0.0", old))
    seen = []
    bundle = release(tmp_path, "1.1.0", new)
    done = world.publish(bundle, delta_from=("auto",))
    (delta,) = done.deltas
    assert (delta.pair.base_release, delta.pair.path) == ("digits@1.0.0", "model/model.onnx")
    assert delta.codec == "bsdiff"
    assert delta.ratio < 0.1
    assert delta.tried.keys() == {"zstd", "bsdiff"}
    assert delta.tried["bsdiff"] == delta.size < delta.tried["zstd"]

    target, size = blob_of(bundle)
    data = (tmp_path / "fleet" / "patches" / offers_name(target)).read_bytes()
    (offer,) = read_offers(data, target, size).offers
    patch = world.content.read(offer.patch)
    assert len(patch) == offer.size == delta.size
    out = io.BytesIO()
    apply_patch(io.BytesIO(patch), io.BytesIO(world.content.read(offer.base)), out)
    assert out.getvalue() == new

    again = world.publish(bundle, delta_from=("auto",), progress=lambda *told: seen.append(told))
    assert [(d.codec, d.size) for d in again.deltas] == [("bsdiff", delta.size)]
    assert not seen, "a patch that is offered was made again"
    world.content.drop(offer.patch)
    world.publish(bundle, delta_from=("auto",))
    assert world.content.has(offer.patch), "a patch that was lost was not made again"


def test_what_saves_nothing_is_not_offered(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(release(tmp_path, "1.0.0", model()))
    bundle = release(tmp_path, "2.0.0", model(seed=6))
    (delta,) = world.publish(bundle, delta_from=("digits@1.0.0",)).deltas
    assert (delta.codec, delta.size, delta.ratio) == ("full", SIZE, 1.0)
    assert min(delta.tried.values()) > 0.9 * SIZE
    assert not list((tmp_path / "fleet").glob("patches/*"))


def test_a_file_that_is_the_same_needs_no_patch(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(release(tmp_path, "1.0.0", model()))
    assert world.publish(release(tmp_path, "1.0.1", model()), delta_from=("auto",)).deltas == ()


def test_a_base_that_is_not_published_is_refused_before_anything_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(release(tmp_path, "1.0.0", model()))
    bundle = release(tmp_path, "1.1.0", model(10))
    with pytest.raises(UsageError, match=r"digits@0\.9\.0 is not published") as caught:
        world.publish(bundle, delta_from=("auto", "digits@0.9.0"))
    assert caught.value.reason == "unknown_release"
    assert "digits@1.1.0" not in {r.version for r in world.image.releases()}


def test_a_directory_gets_patches_too(tmp_path: Path) -> None:
    init(tmp_path / "own", None, START)
    home = PublisherHome(tmp_path / "own", no_passphrase)
    stick = tmp_path / "stick"
    place = DirectoryRepository(stick, home.online_keys, START, timedelta(days=1))
    publish(home, place, PublishRequest([release(tmp_path, "1.0.0", model())]), START)
    bundle = release(tmp_path, "1.1.0", model(100))
    publish(home, place, PublishRequest([bundle], delta_from=("auto",)), START)
    target, size = blob_of(bundle)
    (offer,) = read_offers((stick / "patches" / offers_name(target)).read_bytes(), target).offers
    assert (stick / "blobs" / "sha256" / offer.patch).stat().st_size == offer.size < size


def test_a_mirror_has_patches_if_they_are_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(release(tmp_path, "1.0.0", model()))
    bundle = release(tmp_path, "1.1.0", model(100))
    (delta,) = world.publish(bundle, delta_from=("auto",)).deltas
    target, _ = blob_of(bundle)
    plain, full = tmp_path / "plain", tmp_path / "full"
    less, more = world.export(plain), world.export(full, patches=True)
    assert more.size_bytes - less.size_bytes == delta.size
    assert not (plain / "patches").exists()
    (offer,) = read_offers((full / "patches" / offers_name(target)).read_bytes(), target).offers
    assert (full / "blobs" / "sha256" / offer.patch).stat().st_size == delta.size


def test_an_offer_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    for version, changes in (("1.0.0", 0), ("1.1.0", 100)):
        bundle = release(tmp_path, version, model(changes))
        world.publish(bundle, delta_from=("auto",))
    target, size = blob_of(bundle)
    patches = world.published.patches
    (good,) = patches.offers(target, size).offers
    other, other_size = blob_of(release(tmp_path, "1.0.0", model()))
    for changes, reason in (
        ({"patch": other, "size": other_size}, "bad_patch"),
        ({"codec": "bsdiff"}, "bad_offers"),
        ({"codec": "xdelta"}, "bad_offers"),
        ({"size": good.size + 1}, "blob_missing"),
        ({"base": "0" * 64}, "blob_missing"),
    ):
        wrong = msgspec.structs.replace(good, **changes)
        assert refusal(patches.add, target, size, [wrong]) == reason, changes
    assert patches.offers(target, size).offers == (good,)
    assert world.content.has(other), "a blob that is no patch was removed"


def test_a_patch_that_is_replaced_is_removed(tmp_path: Path) -> None:
    world = World(tmp_path)
    for version, changes in (("1.0.0", 0), ("1.1.0", 100)):
        bundle = release(tmp_path, version, model(changes))
        world.publish(bundle, delta_from=("auto",))
    target, size = blob_of(bundle)
    patches = world.published.patches
    (good,) = patches.offers(target, size).offers
    longer = world.content.read(good.patch) + b"another"

    sha = hashlib.sha256(longer).hexdigest()
    world.content.put(sha, io.BytesIO(longer))
    patches.add(target, size, [msgspec.structs.replace(good, patch=sha, size=len(longer))])
    assert not world.content.has(good.patch)
    assert world.content.has(sha)


def test_a_workshop_refuses_what_does_not_make_its_target(tmp_path: Path) -> None:
    pair = Pair("d@1", "d@2", "model/m", "1" * 64, 4, "2" * 64, 4)
    with Workshop(lambda *_: None) as workshop:
        workshop.file(pair.base).write_bytes(b"base")
        workshop.file(pair.target).write_bytes(b"made")
        made = workshop.make(pair, "zstd")
        assert made is not None
        with pytest.raises(EdgepackError, match="no patches could be made") as caught:
            workshop.prove(pair, made)  # its digest is not the one that was promised
        assert caught.value.reason == "patch_failed"
        place = workshop.file("x").parent
    assert not place.exists()


@given(st.integers(0, 10**9), st.integers(1, 10**8))
def test_frames_cover_the_target_and_stay_inside_the_base(base: int, target: int) -> None:
    place = 0
    for window in windows(base, target):
        assert window.target_offset == place
        assert 0 < window.target_length <= FRAME_TARGET
        assert window.base_offset >= 0
        assert window.base_offset + window.base_length <= base
        assert window.base_length == min(FRAME_BASE, base)
        place += window.target_length
    assert place == target


def test_files_of_one_length_are_looked_at_where_they_are() -> None:
    size = 10 * FRAME_TARGET + 17
    for window in windows(size, size):
        assert window.base_offset <= window.target_offset
        end = window.target_offset + window.target_length
        assert end <= window.base_offset + window.base_length


def test_large_files_are_tried_by_a_frame_of_their_middle() -> None:
    size = 10 * FRAME_TARGET
    frame = sample(windows(size, size))
    assert frame is not None
    assert frame.target_offset == size // 2
    assert hopeless(frame.target_length, frame)
    assert not hopeless(frame.target_length // 2, frame)
    assert sample(windows(FRAME_TARGET, FRAME_TARGET)) is None


def test_auto_takes_the_newest_versions_of_the_same_variant() -> None:
    def path(version: str, variant: str = "onnx-int8") -> str:
        return f"models/digits/{version}/{variant}.json"

    published = [path(v) for v in ("1.9.0", "1.10.0", "1.10.0-rc.1", "2.0.0", "1.2.0")]
    published += [path("1.11.0", "onnx-fp32"), "models/digits/exam.npz"]
    assert bases_of(path("2.0.0"), published, ["auto"]) == [path("1.10.0"), path("1.10.0-rc.1")]
    assert bases_of(path("2.0.0"), published, ["digits@1.2.0"]) == [path("1.2.0")]
    assert bases_of(path("2.0.0"), published, ["digits@1.11.0"]) == []
    assert bases_of(path("2.0.0"), published, []) == []


def test_what_is_wanted_is_checked() -> None:
    assert check_wanted(("auto", "digits@1.0.0")) == ("auto", "digits@1.0.0")
    assert check_wanted(("none",)) == ()
    for wrong in (("none", "auto"), ("1.0.0",), ("a@b@c",), ("",)):
        assert refusal(check_wanted, wrong) == "usage"
