"""The OpenAPI document names what the runner serves now, all of it and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from openapi_spec_validator import validate

from fleet_rig import wait
from slots import Client, Heard, digits_slot, listen

MODEL = "/v2/models/digits"
VERSIONED = f"{MODEL}/versions/1.0.0"
SERVED = {
    "/v2", "/v2/health/live", "/v2/health/ready", "/healthz", "/readyz", "/metrics",
    "/openapi.json", "/v2/repository/index", "/v2/edgepack/cameras", "/preview",
    MODEL, f"{MODEL}/ready", f"{MODEL}/infer",
    VERSIONED, f"{VERSIONED}/ready", f"{VERSIONED}/infer",
}  # fmt: skip
CAMERA = "the {front} door"
PICTURE = f"/preview/{quote(CAMERA)}.jpg"


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Heard]:
    slot = digits_slot(tmp_path / "slot")
    with listen(tmp_path / "api.sock") as unix, Heard(slot, [unix]) as heard:
        heard.unix = unix.getsockname()
        yield heard.accepting()


def document(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.ask("GET", "/openapi.json")[2])
    validate(found)
    return found


def check_served(client: Client, found: dict[str, Any]) -> None:
    """Check that each operation of the document FOUND gives an answer it tells of."""
    for path, operations in found["paths"].items():
        for method, about in operations.items():
            status, headers, _ = client.ask(method.upper(), path)
            assert status == (400 if path.endswith("/infer") else 200), path
            kind = headers["content-type"].partition(";")[0]
            assert kind in about["responses"][str(status)]["content"], path


def test_what_is_served_is_documented_and_what_is_documented_is_served(runner: Heard) -> None:
    with Client(runner.unix) as client:
        found = document(client)
        assert found["paths"].keys() == SERVED
        check_served(client, found)
        free = {
            path
            for path, ways in found["paths"].items()
            if ways.get("get", {}).get("security") == []
        }
        assert free == {"/healthz", "/readyz", "/preview"}


def test_the_picture_of_a_camera_is_documented_as_long_as_there_is_one(runner: Heard) -> None:
    with Client(runner.unix) as client:
        runner.tell("sources", sources=[{"name": CAMERA, "source": "test:pattern"}])
        wait("a picture", lambda: client.ask("GET", PICTURE)[0] == 200)
        found = document(client)
        assert found["paths"].keys() == SERVED | {PICTURE}
        check_served(client, found)
        runner.tell("sources", sources=[])
        wait("it to go", lambda: document(client)["paths"].keys() == SERVED)
        assert client.ask("GET", PICTURE)[0] == 404
