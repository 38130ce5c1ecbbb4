"""A publisher revokes what runs: devices hear of it and remember, and nothing is installed."""

import json
import shutil
from pathlib import Path

import pytest

from edgepack.errors import UnreachableError
from edgepack.metadata import parse, sign
from edgepack.trust import ON_REVOKED, Standing, TrustError
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.trust import DirectoryChannel
from trust_rig import FACTS, World, line_of


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_a_publisher_says_of_installed_models(world: World) -> None:
    world.release(security_epoch=2)
    client = world.device()
    assert client.standing("digits") == Standing("digits")
    assert client.check("digits") == Standing("digits", 0, "keep")
    world.revoke(3, "stop")
    said = client.check("digits")
    assert said == Standing("digits", 3, "stop")
    assert (said.revokes(2), said.stops(2)) == (True, True)
    assert (said.revokes(3), said.stops(3)) == (False, False)


def test_keep_is_what_happens_unless_stop_is_said(world: World) -> None:
    world.release()
    world.revoke(1)
    said = world.device().check("digits")
    assert (said.revokes(0), said.stops(0)) == (True, False)


def test_the_policy_may_change_either_way(world: World) -> None:
    world.release()
    client = world.device()
    for policy in ("stop", "keep", "stop"):
        world.revoke(1, policy)  # type: ignore[arg-type]
        assert client.check("digits").on_revoked == policy
        assert Floors(world.path / "cam-1" / "floors.json").standing("digits").on_revoked == policy


def test_it_holds_offline_and_after_a_reboot(world: World) -> None:
    def cut(repo: str, name: str, data: bytes | None) -> bytes | None:
        raise UnreachableError("no network")

    world.release()
    world.revoke(1, "stop")
    world.device().check("digits")
    world.tamper = cut
    shutil.rmtree(world.path / "cam-1" / "tuf")
    client = world.device()
    with pytest.raises(UnreachableError):
        client.check("digits")
    assert client.standing("digits").stops(0)


def test_an_update_of_the_line_hears_of_it_too(world: World) -> None:
    world.director.assign("cam-1", world.release())
    world.revoke(1, "stop")
    client = world.device()
    with pytest.raises(TrustError) as caught:
        client.approve(FACTS)
    assert caught.value.reason == "epoch_below_floor"
    assert client.standing("digits").stops(0)


def test_a_mirror_brings_it_to_a_site_without_a_network(world: World, tmp_path: Path) -> None:
    world.release()
    world.revoke(1, "stop")
    world.export(tmp_path / "stick")
    client = world.device()
    assert client.check("digits", DirectoryChannel(tmp_path / "stick")).stops(0)
    assert client.standing("digits").stops(0)


def test_a_revoked_model_is_not_gone_back_to(world: World) -> None:
    """The floor for going back is the higher of what was committed and what was signed."""
    world.release()
    world.revoke(4)
    client = world.device()
    client.check("digits")
    floors = Floors(world.path / "cam-1" / "floors.json")
    assert floors.epoch("digits") == 4
    assert floors.epoch("other") == 0


def test_a_line_nobody_knows_says_nothing(world: World) -> None:
    world.release()
    client = world.device()
    assert client.check("unknown") == Standing("unknown")


def test_old_news_does_not_undo_it(world: World) -> None:
    from edgepack.metadata import OnlineKeys, seal

    world.release()
    client = world.device()
    client.check("digits")
    before = world.image_files.current()
    world.revoke(1, "stop")
    client.check("digits")
    keys = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    seal(world.image_files, before, keys, world.clock())
    with pytest.raises(TrustError) as caught:
        client.check("digits")
    assert caught.value.reason == "rollback"
    assert client.standing("digits").stops(0)


@pytest.mark.parametrize("policy", ["explode", 1, None, ["stop"]])
def test_a_policy_this_agent_does_not_know(world: World, policy: object) -> None:
    from tuf.api.metadata import Targets

    from edgepack.metadata import OnlineKeys, seal

    world.release()
    line = Targets.from_dict(line_of(world).to_dict())
    line.version += 1
    line.unrecognized_fields[ON_REVOKED] = policy
    data = sign(line, world.home.signer("line-digits"))
    assert parse(data, Targets)
    files = world.image_files
    files.write(f"{line.version}.line-digits.json", data)
    keys = OnlineKeys(world.online_key("snapshot"), world.online_key("timestamp"))
    seal(files, files.current() | {"line-digits": data}, keys, world.clock())
    with pytest.raises(TrustError) as caught:
        world.device().check("digits")
    assert caught.value.reason == "bad_metadata"


class TestFloors:
    def test_of_two_copies_the_later_says_what_holds(self, tmp_path: Path) -> None:
        """Also after a cut between the two: the policy may have changed either way."""
        floors = Floors(tmp_path / "floors.json")
        floors.raise_seen({}, 0, Standing("digits", 3, "stop"))
        before = (tmp_path / "floors.json.copy").read_bytes()
        floors.raise_seen({}, 0, Standing("digits", 3, "keep"))
        (tmp_path / "floors.json.copy").write_bytes(before)
        assert Floors(tmp_path / "floors.json").standing("digits") == Standing("digits", 3, "keep")

    def test_floors_of_before_there_were_policies_are_read(self, tmp_path: Path) -> None:
        old = {"v": 1, "roles": {"image/root@": 2}, "epochs": {"digits": 4}, "time": 1800000000}
        (tmp_path / "floors.json").write_text(json.dumps(old))
        floors = Floors(tmp_path / "floors.json")
        assert floors.epoch("digits") == 4
        assert floors.standing("digits") == Standing("digits")
