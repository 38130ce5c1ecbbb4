"""A rollout, watched in a browser while it happens: `edgepack fleet serve`, a broker, devices."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from browser_rig import chromium, looking, needs_chromium
from edgepack_fleet.access import bootstrap_token
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.service import Service, Settings
from fleet_rig import EDGEPACK, Device, Identity, enrol, environment, publisher, wait

pytestmark = [needs_chromium, pytest.mark.system]


@dataclass
class Place:
    """A fleet in a process of its own, and the identities of two devices."""

    url: str
    broker: Address
    token: str
    devices: list[Identity]


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    data = tmp_path / "fleet"
    service = Service(Settings(data, Address("127.0.0.1", 1)))
    identities = [enrol(service, name) for name in ("cam-1", "cam-2")]
    service.database.close()
    world = publisher(data)
    world.release("1.0.0")
    world.release("2.0.0")
    words = ["--embedded-broker", "--listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0"]
    log, endpoints = (tmp_path / "serve.log").open("wb"), data / "endpoints.json"
    process = subprocess.Popen(
        [EDGEPACK, "fleet", "serve", "--data", data, *words],
        stdout=log, stderr=log, env=environment(tmp_path),
    )  # fmt: skip
    try:
        wait("the fleet", endpoints.exists, 60)
        where = json.loads(endpoints.read_text())
        broker = urlsplit(where["broker"])
        secret = (data / "secret").read_bytes()
        yield Place(
            where["http"], Address(broker.hostname or "", broker.port or 0),
            bootstrap_token(secret, "operator"), identities,
        )  # fmt: skip
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def test_a_rollout_is_watched_paused_and_taken_back(browser: Browser, place: Place) -> None:
    with looking(browser, place.url, place.token) as page:
        expect(page.locator("#pulse")).to_have_text("Live")
        expect(page.locator(".tile").first).to_contain_text("0 of 2")
        cameras = [Device(identity, place.broker) for identity in place.devices]
        for camera in cameras:
            camera.connect()
        expect(page.locator(".tile").first).to_contain_text("2 of 2")
        made = page.request.post(
            "/api/v1/rollouts",
            headers={"Authorization": f"Bearer {place.token}"},
            data={"release": "digits@1.0.0", "group": "lab", "waves": "1,100%"},
        )
        assert made.status == 201, made.text()
        page.get_by_role("link", name="digits@1.0.0").first.click()
        expect(page.locator("#why")).to_contain_text("0 of 2 devices run digits@1.0.0")
        job = cameras[0].waits_for_job()
        job = cameras[0].update(job, "IN_PROGRESS", state="self_test")
        expect(page.locator("#member-cam-1")).to_contain_text("self test")
        page.get_by_role("button", name="Pause").click()
        page.locator("#question").get_by_role("button", name="Pause").click()
        expect(page.locator("#why")).to_have_text("Paused by an operator.")
        cameras[0].update(job, "SUCCEEDED")
        expect(page.locator("ol.track > li").first).to_contain_text("1 done")
        assert cameras[1].job() is None, "nobody else gets it while it is paused"
        page.get_by_role("button", name="Resume").click()
        page.locator("#question").get_by_role("button", name="Resume").click()
        second = cameras[1].waits_for_job()
        cameras[1].update(second, "REJECTED", reason="golden_mismatch")
        expect(page.locator("#why")).to_contain_text("(golden_mismatch)")
        expect(page.locator("section", has_text="Failures by reason")).to_contain_text(
            "golden_mismatch"
        )
        page.get_by_role("button", name="Revert").click()
        page.locator("#question").get_by_role("button", name="Revert").click()
        expect(page.locator("#why")).to_contain_text(
            re.compile("back on the release before|nothing to go back to")
        )
        for camera in cameras:
            camera.leave()
