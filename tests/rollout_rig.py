"""Rollouts without broker or HTTP: a real database, director and image repository."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest
from sqlalchemy import select

from edgepack.messages import Inventory
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow, JobRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.core.variants import Release
from edgepack_fleet.rollouts import Rollouts
from edgepack_fleet.web import rollout_views, schemas
from trust_rig import World

FITS = msgspec.to_builtins(Inventory(arch="x86_64", runtimes={"onnx": "1.23.2"}))


@dataclass
class Bench:
    """A fleet without broker or HTTP. A test moves its clock and plays its devices."""

    world: World
    database: Database
    now: float = 1_000_000.0
    rollouts: Rollouts = field(init=False)

    def __post_init__(self) -> None:
        world = self.world
        self.rollouts = Rollouts(
            self.database,
            lambda device, target: world.director.assign(device, target),
            lambda: [Release(r.name, r.version, r.variants) for r in world.image.releases()],
            lambda: self.now,
        )

    def add(self, *names: str, group: str = "lab", online: bool = True) -> None:
        with self.database.write() as session:
            if session.get(GroupRow, group) is None:
                session.add(GroupRow(id=group, created=0.0))
                session.flush()
            session.add_all(
                DeviceRow(id=n, group_id=group, enrolled=0.0, certificate_serial="1",
                          inventory=FITS, online=online)
                for n in names
            )  # fmt: skip

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.rollouts.tick(0.0)

    def set(self, device: str, status: str, reason: str = "") -> None:
        with self.database.write() as session:
            query = select(JobRow).where(JobRow.device_id == device).order_by(JobRow.created.desc())
            job = session.scalars(query).first()
            assert job is not None
            job.status, job.reason, job.updated = status, reason, self.now
            job.version += 1

    def jobs(self, rollout: str) -> dict[str, str]:
        with self.database.read() as session:
            rows = session.scalars(select(JobRow).where(JobRow.rollout_id == rollout))
            return {row.device_id: row.status for row in rows}

    def show(self, rollout: str) -> schemas.Rollout:
        with self.database.read() as session:
            found = rollout_views.rollout(session, rollout, self.now)
        assert found is not None
        return found

    def create(self, release: str = "digits@1.0.0", waves: str = "1,100%", **limits: object) -> str:
        return self.rollouts.create(release, "lab", waves, Policy(**limits))  # type: ignore[arg-type]

    def wanted(self, device: str) -> str:
        data = self.world.director.metadata(device, "timestamp.json")
        assert data is not None
        version = max(
            int(p.name.split(".")[0])
            for p in (self.world.path / "fleet/director/devices" / device).glob("*.targets.json")
        )
        return (self.world.director.metadata(device, f"{version}.targets.json") or b"").decode()


def to_revision(revision: str, database: Database) -> None:
    """Take the schema of DATABASE back to REVISION."""
    with database.migration() as migration:
        migration.downgrade(revision)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    for version in ("1.0.0", "2.0.0"):
        world.release(version)
    return world


@pytest.fixture
def bench(published: World, database_url: str) -> Iterator[Bench]:
    database = Database(database_url)
    yield Bench(published, database)
    database.close()
