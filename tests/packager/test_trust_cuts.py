"""A publisher's commands, killed before any write: the next command finds the way on."""

from pathlib import Path

import pytest

from edgepack.keys import create_keypair, load_private
from edgepack.metadata import MetadataDirectory, signer_of
from edgepack_fleet.adapters.image_repo import ImageRepo
from edgepack_packager.adapters.publisher_home import PublisherHome
from edgepack_packager.core.draft import Change
from edgepack_packager.core.roles import KeyChange
from edgepack_packager.staging import merge, open_request, request, sign
from edgepack_packager.standing import current_state
from trust_rig import FACTS, World, no_passphrase


class Cut(BaseException):
    """The process is killed."""


class Knife:
    """Cuts before the write with number `at`, in the fleet or in the home."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self._writes, self._write = -1, 0, MetadataDirectory.write
        knife = self

        def write(self: MetadataDirectory, name: str, data: bytes) -> None:
            if knife._writes == knife.at:
                raise Cut(name)
            knife._writes += 1
            knife._write(self, name, data)

        monkeypatch.setattr(MetadataDirectory, "write", write)

    def cut(self, at: int) -> None:
        self.at, self._writes = at, 0


def every_cut(knife: Knife, path: Path, *replace: str) -> list[World]:
    """Return a world for every write of `rotate --replace` that it was cut before."""
    worlds: list[World] = []
    while True:
        knife.cut(-1)
        world = World(path / str(len(worlds)))
        world.release()
        knife.cut(len(worlds))
        try:
            world.rotate(*replace)
        except Cut:
            worlds.append(world)
        else:
            knife.cut(-1)
            return worlds


@pytest.mark.parametrize(
    "replace", [("targets", "line-digits"), ("root-2", "snapshot", "timestamp")], ids="-".join
)
def test_a_rotation_that_is_killed_anywhere_is_simply_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: tuple[str, ...]
) -> None:
    worlds = every_cut(Knife(monkeypatch), tmp_path, *replace)
    assert len(worlds) > 8  # every write at the fleet, and in the home
    for number, world in enumerate(worlds):
        world.home = PublisherHome(world.path / "home", no_passphrase)
        world.image = ImageRepo(world.path / "fleet" / "image", world.content, world.clock)
        if number % 2:  # whatever comes next heals it
            world.rotate(*replace)
        world.director_says("cam-1", world.release("1.1.0"))
        approved = world.device().approve(FACTS)
        assert approved is not None
        assert approved.version == "1.1.0"


def test_a_merge_that_is_killed_is_simply_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: the new root is there, and what its keys signed is not."""
    knife, world = Knife(monkeypatch), World(tmp_path)
    bob = create_keypair(tmp_path / "bob.pem", None)
    world.rotate(add=[("targets", str(bob))])
    state = current_state(world.home, world.published)
    change = Change(keys=(KeyChange("targets", threshold=2),))
    request(world.home, state, change, tmp_path / "r.json", world.clock())
    signer = signer_of(load_private(tmp_path / "bob.pem"))
    asked = open_request(tmp_path / "r.json")
    sign(asked, signer, None, lambda: True, tmp_path / "s.json")
    complete = [open_request(tmp_path / "s.json")]
    knife.cut(4)
    with pytest.raises(Cut, match="snapshot"):
        merge(world.home, world.published, complete, world.clock())
    knife.cut(-1)
    merge(world.home, world.published, complete, world.clock())
    assert world.home.root.roles["targets"].threshold == 2
    assert world.device().approve(FACTS) is None  # nothing wanted, and nothing refused
