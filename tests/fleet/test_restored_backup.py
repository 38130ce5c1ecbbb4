"""A fleet's directory is restored from a copy that is ten versions old; devices go on."""

import contextlib
import shutil
from pathlib import Path

import pytest

from agent_rig import Site
from edgepack.trust import TrustError
from edgepack_fleet.adapters.image_repo import ImageRepo
from edgepack_fleet.backup import restore as put_back
from edgepack_fleet.backup import take
from fleet_rig import mosquitto, publisher, running, wait
from trust_rig import FACTS, World


def backup(world: Path) -> None:
    shutil.copytree(world / "fleet", world / "backup")


def restore(world: Path) -> None:
    shutil.rmtree(world / "fleet")
    shutil.copytree(world / "backup", world / "fleet")


def test_online_metadata_ten_versions_old(tmp_path: Path) -> None:
    world = World(tmp_path)
    old, new = world.release("1.0.0"), world.release("1.1.0")
    clients = {name: world.device(name) for name in ("cam-1", "cam-2", "cam-3")}
    for name, client in clients.items():
        world.director.assign(name, old)
        client.approve(FACTS)
    backup(tmp_path)
    for n in range(10):
        world.clock.forward(minutes=1)
        world.image = ImageRepo(tmp_path / "fleet" / "image", world.content, world.clock)
        for name, client in clients.items():
            world.director.assign(name, old if n % 2 else new)
            assert client.approve(FACTS) is not None
    world.clock.forward(minutes=1)
    restore(tmp_path)
    later = World(tmp_path, world.clock)
    for name in clients:
        again = later.device(name)  # the same files, as after a restart
        assert again.approve(FACTS) is not None
        later.director.assign(name, new)
        found = again.approve(FACTS)
        assert found is not None
        assert found.version == "1.1.0"


def test_publications_that_a_backup_does_not_have_are_published_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.director.assign("cam-1", world.release("1.0.0"))
    client = world.device()
    client.approve(FACTS)
    backup(tmp_path)
    lost = [world.bundle(f"1.{n}.0") for n in range(1, 11)]
    for path in lost:
        world.clock.forward(minutes=1)
        world.publish(path)
        client.approve(FACTS)
    restore(tmp_path)
    world.clock.forward(minutes=1)
    later = World(tmp_path, world.clock)
    again = later.device()
    with pytest.raises(TrustError) as caught:
        again.approve(FACTS)
    assert caught.value.reason == "rollback", "the publisher's newer word is known there"

    newest = later.bundle("2.0.0")
    with pytest.raises(TrustError) as caught:
        later.publish(newest)
    assert caught.value.reason == "metadata_missing"
    assert "publish its bundle again" in caught.value.fix
    later.publish(*lost, newest)
    later.director.assign("cam-1", later.image.releases()[-1].variants[0])
    found = again.approve(FACTS)
    assert found is not None


@pytest.mark.mosquitto
def test_a_real_device_updates_from_a_restored_fleet(tmp_path: Path) -> None:
    data = tmp_path / "fleet"
    publisher(data)
    with contextlib.ExitStack() as stack:
        copy = tmp_path / "monday.tar"
        with mosquitto(data) as broker, running(data, broker.address) as service:
            site = Site(tmp_path, broker, service)
            site.publish("1.0.0")
            site.publish("1.1.0")
            device = site.device()
            stack.callback(device.close)
            device.start()
            assert site.ended(site.roll_out("1.0.0")) == "completed"
            take(data, service.database, copy)
        # The broker of a restored fleet listens where devices know it.
        with mosquitto(data, broker.address) as again, running(data, again.address) as service:
            site.service = service
            assert site.ended(site.roll_out("1.1.0")) == "completed"
        shutil.rmtree(data)
        put_back(copy, data)
        with mosquitto(data, broker.address) as again, running(data, again.address) as service:
            site.service = service
            site.publish("1.2.0")
            assert site.ended(site.roll_out("1.2.0")) == "completed"
            wait("the new model", lambda: device.serving() == "digits@1.2.0")
