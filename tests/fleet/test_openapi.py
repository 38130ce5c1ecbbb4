"""The description of the REST interface, held against the interface by other people's tool."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.app import main_app
from fleet_rig import enrol, publisher, serving
from rest_rig import LISTENER, auth

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
ENDLESS = "/api/v1/events/stream"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    """The address of a fleet with a device and a rollout."""
    data = tmp_path_factory.mktemp("described") / "fleet"
    service = Service(Settings(data, Address("127.0.0.1", 1), max_per_s=0))
    publisher(data).release()
    enrol(service, "cam")
    try:
        with serving(main_app(service, LISTENER)) as port:
            yield f"http://127.0.0.1:{port}", service
            service.feed.close()
    finally:
        service.feed.close()
        service.database.close()


DOCUMENT = main_app(None).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT).exclude(path=ENDLESS)
few = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
many = settings(few, max_examples=300, derandomize=False)


OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
# Not by SCHEMA.parametrize: its tests all have one name, of which pytest-xdist runs one.
every = pytest.mark.parametrize("operation", OPERATIONS, ids=[o.label for o in OPERATIONS])


def ask(place: tuple[str, Service], operation: Any, often: settings) -> None:
    """Ask whatever OPERATION describes, as OFTEN, and hold the answers against the description."""
    url, service = place
    headers = auth(service, "admin")

    @often
    @given(case=operation.as_strategy())
    def asked(case: schemathesis.Case) -> None:
        case.validate_response(case.call(base_url=url, headers=headers), checks=CHECKS)

    asked()


@every
def test_nothing_is_answered_that_is_not_described(
    place: tuple[str, Service], operation: Any
) -> None:
    ask(place, operation, few)


@pytest.mark.scale
@every
def test_nothing_at_all_is_answered_that_is_not_described(
    place: tuple[str, Service], operation: Any
) -> None:
    ask(place, operation, many)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_the_description_is_valid_and_says_how_everything_is_refused() -> None:
    validate(DOCUMENT)
    for path, method, operation in operations():
        answers = set(operation["responses"])
        assert answers & {"200", "201", "202", "204"}, (path, method)
        assert {"400", "429", "500"} <= answers, (path, method)
        assert ({"401", "403"} <= answers) is ("security" in operation), (path, method)
        names = {p["name"] for p in operation.get("parameters", ())}
        assert ("Idempotency-Key" in names) is (method == "post"), (path, method)


def test_every_list_has_the_same_envelope_and_the_same_questions() -> None:
    lists = [
        (path, operation)
        for path, method, operation in operations()
        if method == "get" and "limit" in {p["name"] for p in operation.get("parameters", ())}
    ]
    assert len(lists) >= 10
    for path, operation in lists:
        names = {p["name"] for p in operation["parameters"]}
        assert {"limit", "cursor", "sort"} <= names, path
        content = operation["responses"]["200"]["content"]["application/json"]["schema"]
        found = DOCUMENT["components"]["schemas"][content["$ref"].rpartition("/")[2]]
        assert set(found["properties"]) == {"items", "next"}, path


def test_what_is_described_is_what_is_served(tmp_path: Path) -> None:
    paths = {path for path, _, _ in operations()}
    assert ENDLESS in paths
    assert all(path.startswith("/api/v1/") for path in paths)
