"""What ends in the middle of a rollout: a worker, the broker, the database. Checked by sums."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select

from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow, TelemetryRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service, Settings
from fleet_rig import Mosquitto, enrol, mosquitto, publisher, wait
from pg_rig import Postgres, postgres, require_server
from worker_rig import Steady, Worker, workers

pytestmark = [pytest.mark.mosquitto, pytest.mark.system, pytest.mark.scale]
DEVICES = 6
ROWS = 3
"""Inferences in a row of a steady device."""


@dataclass
class Scene:
    """Three workers in the middle of a rollout to devices that report all the time."""

    server: Postgres
    broker: Mosquitto
    workers: list[Worker]
    devices: list[Steady]
    database: Database

    def leader(self) -> Worker:
        return wait("a leader", lambda: next((w for w in self.workers if w.leads()), None), 60)

    def done(self) -> int:
        return sum(device.done for device in self.devices)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    data = tmp_path / "fleet"
    with contextlib.ExitStack() as stack:
        require_server()
        server = stack.enter_context(postgres())  # its own: it is killed
        url = server.create(migrated=True)
        publisher(data).release()
        service = Service(Settings(data, Address("127.0.0.1", 1), url))
        identities = [enrol(service, f"cam-{n}") for n in range(DEVICES)]
        service.rollouts.create(
            "digits@1.0.0", "lab", "1,50%,100%", Policy(soak_s=0.0, timeout_s=600.0)
        )
        service.database.close()
        broker = stack.enter_context(mosquitto(data))
        database = Database(url)
        stack.callback(database.close)
        found = stack.enter_context(workers(3, data, url, broker.address))
        devices = [Steady(identity, broker.address) for identity in identities]
        for device in devices:
            device.start()
            stack.callback(device.stop)
        yield Scene(server, broker, found, devices, database)


def kill_worker(scene: Scene) -> None:
    leader = scene.leader()
    leader.kill()
    scene.workers.remove(leader)


def kill_broker(scene: Scene) -> None:
    scene.broker.kill()
    scene.broker.start()


def kill_database(scene: Scene) -> None:
    scene.server.kill()
    scene.server.start()


def completed(scene: Scene) -> bool:
    with scene.database.read() as session:
        return session.scalar(select(RolloutRow.state)) == "completed"


@pytest.mark.parametrize("kill", [kill_worker, kill_broker, kill_database])
def test_the_rollout_goes_on_and_everything_is_counted_once(scene: Scene, kill: object) -> None:
    wait("the first update", scene.done, 60)
    kill(scene)  # type: ignore[operator]
    assert scene.done() < DEVICES, "it came too late to be in the middle"
    wait("the rollout to complete", lambda: completed(scene), 120)
    for device in scene.devices:
        device.pause()

    def acknowledged() -> bool:
        for device in scene.devices:
            device.settle()
        return not any(device.waiting for device in scene.devices)

    wait("everything to be acknowledged", acknowledged, 60)
    with scene.database.read() as session:
        kept = dict(
            session.execute(
                select(TelemetryRow.device_id, func.count()).group_by(TelemetryRow.device_id)
            ).all()
        )
        counted = dict(session.execute(select(DeviceRow.id, DeviceRow.inferences)).all())
        jobs = session.execute(select(JobRow.device_id, JobRow.status, JobRow.attempt)).all()
    assert kept == {device.name: device.said for device in scene.devices}
    assert counted == {device.name: ROWS * device.said for device in scene.devices}
    assert sorted(jobs) == [(d.name, "SUCCEEDED", 1) for d in scene.devices]
    assert all(worker.alive() for worker in scene.workers)
