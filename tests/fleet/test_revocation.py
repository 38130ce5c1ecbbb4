"""A revoked device with an open session, on the real broker."""

import json
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from edgepack import messages, topics
from edgepack_fleet.access import bootstrap_token, fleet_secret
from edgepack_fleet.adapters.tables import DeviceRow, EventRow, JobRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from fleet_rig import (
    Device,
    Mosquitto,
    enrol,
    mosquitto,
    publisher,
    refused,
    running,
    talking_to,
    wait,
)

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Service, Mosquitto]]:
    data = tmp_path / "fleet"
    publisher(data).release()
    with mosquitto(data) as broker, running(data, broker.address) as service:
        yield service, broker


def row(service: Service, device: str) -> DeviceRow:
    with service.database.read() as session:
        return session.get_one(DeviceRow, device)


def gone(device: Device) -> bool:
    return not device.client.is_connected()


def silent(device: Device, seconds: float = 1.0) -> bool:
    try:
        device.heard.get(timeout=seconds)
    except queue.Empty:
        return True
    return False


def test_a_revoked_device_with_an_open_session_gets_and_delivers_nothing(
    fleet: tuple[Service, Mosquitto],
) -> None:
    service, broker = fleet
    cam, other = (Device(enrol(service, name), broker.address) for name in ("cam", "other"))
    for device in (cam, other):
        device.connect()
        wait("its birth", lambda name=device.name: row(service, name).online)
    rollout = service.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
    cam.waits_for_job()

    begun = time.monotonic()
    done = service.revocation.revoke("cam", by="operator")
    assert done.session == "ended"
    wait("its session to end", lambda: gone(cam), 5)
    assert time.monotonic() - begun < 5

    while not cam.heard.empty():
        cam.heard.get()
    service.link.publish(topics.down("cam", "job/notify"), b"{}")
    assert refused(cam)
    assert silent(cam)
    assert not row(service, "cam").online
    with service.database.read() as session:
        jobs = session.scalars(select(JobRow).where(JobRow.rollout_id == rollout)).all()
        ends = {job.device_id: (job.status, job.reason) for job in jobs}
        (event,) = session.scalars(select(EventRow).where(EventRow.type == "revoked")).all()
    assert ends["cam"] == ("CANCELED", "device_revoked")
    assert (event.device_id, event.body["detail"]) == ("cam", {"by": "operator"})
    other.update(other.waits_for_job(), "SUCCEEDED")
    other.leave()


def test_what_a_revoked_device_says_is_refused_even_if_the_broker_lets_it(
    fleet: tuple[Service, Mosquitto],
) -> None:
    """A broker that knows nothing of revocation lists: the fleet itself takes nothing."""
    service, broker = fleet
    broker.kill()
    config = broker.config.read_text()
    trusting = config.replace(f"capath {service.pki.trust.path}", f"cafile {service.pki.ca_path}")
    broker.config.write_text(
        "\n".join(line for line in trusting.splitlines() if not line.startswith("crlfile"))
    )
    broker.start()
    wait("the fleet to be back", lambda: service.link.connected)
    cam = Device(enrol(service, "cam"), broker.address)
    cam.connect()
    wait("its birth", lambda: row(service, "cam").online)
    assert service.revocation.revoke("cam").session == "list_ignored"
    wait("its session to end", lambda: gone(cam), 5)

    back = Device(cam.identity, broker.address)
    back.connect(conn="c2")
    event = messages.Event(boot="b", seq=0, ts=0.0, type="activated", bundle="m@6.6.6")
    back.say("evt", messages.encode_batch([event]))
    back.say("job/get", messages.JobGet(token="t"))
    request = {"v": 1, "xfer": "x", "repo": "image", "name": "timestamp.json"}
    back.say("meta", json.dumps(request).encode())
    wait("it to be refused", lambda: service.uplink.refused["revoked"] >= 3)
    wait("it to be refused", lambda: service.transfer.refused["revoked"])
    assert silent(back)
    assert row(service, "cam").bundle is None
    back.leave()


def test_a_tick_that_began_before_lets_nobody_back_in(
    fleet: tuple[Service, Mosquitto], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = fleet
    enrol(service, "cam")
    read = service.revocation._load

    def slowly() -> frozenset[str]:
        found = read()
        service.revocation.revoke("cam")
        return found

    monkeypatch.setattr(service.revocation, "_load", slowly)
    service.revocation.tick()
    assert service.revocation.blocks("cam")


def test_a_broker_that_is_away_is_told_when_it_is_back(
    fleet: tuple[Service, Mosquitto],
) -> None:
    service, broker = fleet
    cam = enrol(service, "cam")
    broker.kill()
    with talking_to(main_app(service)) as client:
        token = _token(service)
        answer = client.post(
            "/api/v1/devices/cam/revoke", headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.json()["session"] == "unreachable"
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/api/v1/devices/cam", headers=headers).json()["revoked"]
        unknown = client.post("/api/v1/devices/nobody/revoke", headers=headers)
        assert (unknown.status_code, unknown.json()["reason"]) == (404, "unknown_device")
    assert row(service, "cam").fenced is None
    broker.start()
    wait("its session to end", lambda: row(service, "cam").fenced)
    assert refused(Device(cam, broker.address))


def _token(service: Service) -> str:
    return bootstrap_token(fleet_secret(service.settings.data, create=False), "operator")
