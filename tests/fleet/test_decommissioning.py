"""A device is taken out of service on the real broker, and another one gets its name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from edgepack import messages
from edgepack.errors import UnreachableError
from edgepack_fleet.adapters.device_tables import ConnectionRow
from edgepack_fleet.adapters.tables import Base, DeviceRow, EventRow
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from fleet_rig import Device, Mosquitto, enrol, mosquitto, refused, running, talking_to, wait
from rest_rig import auth, problem

API = "/api/v1"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[tuple[Service, Mosquitto]]:
    data = tmp_path / "fleet"
    with mosquitto(data) as broker, running(data, broker.address) as service:
        yield service, broker


@pytest.fixture
def rest(home: tuple[Service, Mosquitto]) -> Iterator[httpx.Client]:
    with talking_to(main_app(home[0])) as client:
        yield client


def live(service: Service, broker: Mosquitto, number: int) -> Device:
    """Return a device `cam` that is online and has told something."""
    device = Device(enrol(service, "cam"), broker.address)
    (device.identity.key.parent).rename(device.identity.key.parent.with_name(f"kept-{number}"))
    folder = device.identity.key.parent.with_name(f"kept-{number}")
    device.identity.key = folder / "key.pem"
    device.identity.certificate = folder / "certificate.pem"
    device.connect()
    event = messages.Event(boot=f"b{number}", seq=0, ts=1.0, type="camera")
    device.say("evt", [event])
    device.hears("ack")
    return device


def about(service: Service, device: str) -> dict[str, int]:
    """Return how many rows there are about DEVICE, by table."""
    with service.database.read() as session:
        counts = {
            name: session.scalar(
                select(func.count()).select_from(table).where(table.c.device_id == device)
            )
            for name, table in Base.metadata.tables.items()
            if "device_id" in table.c
        }
    return {name: count for name, count in counts.items() if count}


def leave(rest: httpx.Client, service: Service, device: str, **how: Any) -> httpx.Response:
    url = f"{API}/devices/{device}/decommission"
    return rest.post(url, json=how, headers=auth(service))


@pytest.mark.mosquitto
def test_the_director_says_nothing_of_it_any_more(
    home: tuple[Service, Mosquitto], rest: httpx.Client
) -> None:
    service, broker = home
    live(service, broker, 1)
    service.director.assign("cam", None)
    assert service.director.metadata("cam", "timestamp.json")
    folder = service.settings.data / "director" / "devices" / "cam"
    assert folder.is_dir()
    assert leave(rest, service, "cam").status_code == 200
    assert not folder.exists()


@pytest.mark.mosquitto
def test_its_name_is_free_and_what_it_told_stays(
    home: tuple[Service, Mosquitto], rest: httpx.Client
) -> None:
    service, broker = home
    first = live(service, broker, 1)
    wait("the fleet to know it is online", lambda: "connections" in about(service, "cam"))
    told = about(service, "cam")
    done = leave(rest, service, "cam").json()
    kept = done["kept_as"]
    assert kept.startswith("cam~")
    assert refused(first)
    assert about(service, "cam") == {}
    left = about(service, kept)
    assert left["events"] == told["events"] + 1, "and that it was revoked"
    assert left["streams"] == told["streams"]
    shown = rest.get(f"{API}/devices/{kept}", headers=auth(service)).json()
    assert shown["standing"] == "It is revoked."
    timeline = rest.get(f"{API}/devices/{kept}/timeline", headers=auth(service)).json()["items"]
    said = [e["sentence"] for e in timeline]
    assert "It told 'camera'." in said
    assert "bootstrap took it out of service." in said

    second = live(service, broker, 2)
    assert second.name == "cam"
    assert not service.revocation.blocks("cam")
    service.revocation.tick()
    assert not service.revocation.blocks("cam")
    assert about(service, "cam")["events"] == 1
    assert refused(first), "the one before it still cannot come back"
    second.leave()
    first.forget()

    assert leave(rest, service, kept).json() == {"device": kept, "kept_as": kept}
    assert leave(rest, service, kept, purge=True).json()["kept_as"] is None
    assert about(service, kept) == {}
    assert problem(leave(rest, service, kept), 404)["reason"] == "unknown_device"


@pytest.mark.mosquitto
def test_all_that_it_told_goes_if_that_is_wanted(
    home: tuple[Service, Mosquitto], rest: httpx.Client
) -> None:
    service, broker = home
    device = live(service, broker, 1)
    rest.post(f"{API}/groups", json={"id": "yard"}, headers=auth(service))
    rest.post(f"{API}/groups/yard/add", json={"devices": ["cam"]}, headers=auth(service))
    assert leave(rest, service, "cam", purge=True).json() == {"device": "cam", "kept_as": None}
    device.forget()
    assert about(service, "cam") == {}
    with service.database.read() as session:
        assert session.scalars(select(DeviceRow.id)).all() == []
        for table in (EventRow, ConnectionRow):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_a_name_is_not_free_while_its_session_may_be_open(fleet: Service) -> None:
    """There is no broker here: nobody can say whether the session has ended."""
    enrol(fleet, "cam")
    with pytest.raises(UnreachableError) as caught:
        fleet.roster.decommissioning.decommission("cam")
    assert caught.value.reason == "session_open"
    assert fleet.revocation.blocks("cam"), "but it is revoked"
    assert enrol(fleet, "cam").name != "cam"


def test_another_worker_lets_the_new_one_in(fleet: Service) -> None:
    from edgepack_fleet.revocation import Revocation

    enrol(fleet, "cam")
    with pytest.raises(UnreachableError):
        fleet.roster.decommissioning.decommission("cam")
    other = Revocation(fleet.database, fleet.pki, fleet.settings.broker, fleet.now)
    assert other.blocks("cam")
    with fleet.database.write() as session:
        session.delete(session.get_one(DeviceRow, "cam"))
    enrol_again = fleet.settings.data.parent / "device-cam"
    enrol_again.rename(enrol_again.with_name("gone"))
    assert enrol(fleet, "cam").name == "cam"
    other.tick()
    assert not other.blocks("cam")
