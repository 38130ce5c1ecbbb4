"""Helps tests that talk to the REST interface of a fleet in this process."""

from typing import Any

import httpx

from edgepack_fleet.access import bootstrap_token
from edgepack_fleet.service import Service

LISTENER = "https://127.0.0.1:8443"


class Now:
    """The clock of the fleet under test."""

    value = 1_790_000_000.0

    def __call__(self) -> float:
        return self.value


def auth(fleet: Service, role: Any = "operator") -> dict[str, str]:
    secret = (fleet.settings.data / "secret").read_bytes()
    return {"Authorization": f"Bearer {bootstrap_token(secret, role)}"}


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["detail"]
    return found
