"""A fleet without a broker, and a client of its REST interface and pages."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.app import main_app
from fleet_rig import talking_to
from pg_rig import Postgres, postgres, require_server
from rest_rig import LISTENER, Now

CLOSE_TO_THE_DATABASE = {
    "test_database", "test_migrations", "test_rollout_driver", "test_uplink", "test_workers",
}  # fmt: skip
"""Files that run over PostgreSQL each time; the others do in the long run."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_databases"):
        often = metafunc.definition.path.stem in CLOSE_TO_THE_DATABASE
        server = pytest.param("postgresql", marks=() if often else pytest.mark.scale)
        for fixture in {"database_url", "empty_database_url"} & set(metafunc.fixturenames):
            metafunc.parametrize(fixture, ["sqlite", server], indirect=True)


@pytest.fixture(scope="session")
def pg() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests."""
    require_server()
    with postgres() as found:
        yield found


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of the newest schema: SQLite, or what the test is run over."""
    if getattr(request, "param", "sqlite") == "sqlite":
        url = f"sqlite:///{tmp_path / 'fleet.db'}"
        database = Database(url)
        database.migrate()
        database.close()
        yield url
    else:
        server: Postgres = request.getfixturevalue("pg")
        url = server.create(migrated=True)
        yield url
        server.drop(url)


@pytest.fixture
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        server: Postgres = request.getfixturevalue("pg")
        url = server.create()
        yield url
        server.drop(url)


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def fleet(tmp_path: Path, now: Now, database_url: str) -> Iterator[Service]:
    """A service that is not started: it has a database and repositories, and no broker."""
    service = Service(Settings(tmp_path / "fleet", Address("127.0.0.1", 1), database_url), now)
    yield service
    service.database.close()


@pytest.fixture
def app(fleet: Service) -> Iterator[httpx.Client]:
    with talking_to(main_app(fleet, LISTENER)) as client:
        yield client
