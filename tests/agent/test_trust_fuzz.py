"""Metadata that anybody on the way has changed: a device trusts it or says why not. Fuzzed."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.trust import Reason
from fuzz import almost, damaged, examples, refusal
from trust_rig import FACTS, World

quick = examples(25)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tmp_path_factory.mktemp("world"))
    found.director.assign("cam-1", found.release())
    assert found.device().approve(FACTS) is not None
    return found


def asked_of(world: World) -> list[str]:
    """Return every file that a device without a cache asks for."""
    shutil.rmtree(world.path / "cam-1")
    world.asked.clear()
    world.tamper = lambda repo, name, data: data
    approved = world.device().approve(FACTS)
    assert approved is not None
    return list(world.asked)


@pytest.fixture(scope="module")
def files(world: World) -> list[str]:
    return asked_of(world)


def changed(data: st.DataObject, sample: bytes | None) -> bytes:
    if sample is None:
        return data.draw(damaged(b'{"signed":{"_type":"root","version":2},"signatures":[]}'))
    if data.draw(st.booleans()):
        return data.draw(damaged(sample))
    document: Any = data.draw(almost(json.loads(sample)))
    return json.dumps(document).encode()


def approve_the_model(world: World) -> None:
    approved = world.device().approve(FACTS)
    assert approved is not None
    assert approved.path == "models/digits/1.0.0/onnx-int8.json"


@quick
@given(st.data())
def test_changed_metadata_is_refused_in_our_words_or_means_the_same(
    world: World, files: list[str], data: st.DataObject
) -> None:
    fresh = data.draw(st.booleans())
    if fresh:
        shutil.rmtree(world.path / "cam-1", ignore_errors=True)
    target = data.draw(st.sampled_from(files))

    def tamper(repo: str, name: str, honest: bytes | None) -> bytes | None:
        return changed(data, honest) if f"{repo}/{name}" == target else honest

    world.tamper = tamper
    assert refusal(approve_the_model, world) in {None, *get_args(Reason)}
    world.tamper = lambda repo, name, honest: honest
    assert world.device().approve(FACTS) is not None, "and the device recovers"


@quick
@given(st.data())
def test_a_changed_cache_or_first_root_never_is_a_crash(world: World, data: st.DataObject) -> None:
    cache = world.path / "cam-1"
    world.device().approve(FACTS)
    paths = sorted(path for path in cache.rglob("*.json") if not path.is_symlink())
    paths = [path for path in paths if "floors" not in path.name]
    path: Path = data.draw(st.sampled_from(paths))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    assert world.device().approve(FACTS) is not None
    client = world.device()
    client._roots["image"] = data.draw(damaged(client._roots["image"]))
    assert refusal(client.approve, FACTS) in {None, *get_args(Reason)}
