"""A fleet without a broker, and a client of its REST interface and pages."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.app import main_app
from fleet_rig import talking_to
from rest_rig import LISTENER, Now


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def fleet(tmp_path: Path, now: Now) -> Iterator[Service]:
    """A service that is not started: it has a database and repositories, and no broker."""
    service = Service(Settings(tmp_path / "fleet", Address("127.0.0.1", 1)), now)
    yield service
    service.database.close()


@pytest.fixture
def app(fleet: Service) -> Iterator[httpx.Client]:
    with talking_to(main_app(fleet, LISTENER)) as client:
        yield client
