"""What is sent twice is done once, and every refusal is a problem document."""

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from edgepack.errors import UsageError
from edgepack_fleet.adapters.tables import AnswerRow, EnrolToken, GroupRow
from edgepack_fleet.core.rates import Rates
from edgepack_fleet.idempotency import BUSY_S
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from fleet_rig import talking_to
from rest_rig import LISTENER, Now, auth, problem

pytestmark = pytest.mark.both_databases

GROUPS, TOKENS = "/api/v1/groups", "/api/v1/tokens"


def keyed(fleet: Service, key: str = "k1", role: str = "operator") -> dict[str, str]:
    return auth(fleet, role) | {"Idempotency-Key": key}


def test_the_same_request_is_answered_the_same_and_done_once(
    app: httpx.Client, fleet: Service
) -> None:
    app.post(GROUPS, json={"id": "lab"}, headers=auth(fleet))
    first = app.post(TOKENS, json={"group": "lab"}, headers=keyed(fleet))
    assert first.status_code == 201
    again = app.post(TOKENS, json={"group": "lab"}, headers=keyed(fleet))
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    other = app.post(TOKENS, json={"group": "lab"}, headers=keyed(fleet, "k2"))
    assert other.json()["id"] != first.json()["id"]
    with fleet.database.read() as session:
        assert len(session.scalars(select(EnrolToken)).all()) == 2
        kept = session.scalars(select(AnswerRow)).all()
    secret = first.json()["token"].encode()
    assert all(secret not in (row.body or b"") for row in kept), "sealed, it is shown only once"


def test_a_key_belongs_to_one_request_of_one_token(app: httpx.Client, fleet: Service) -> None:
    made = app.post(GROUPS, json={"id": "lab"}, headers=keyed(fleet))
    assert made.status_code == 201
    other = app.post(GROUPS, json={"id": "yard"}, headers=keyed(fleet))
    assert problem(other, 422)["reason"] == "idempotency_mismatch"
    path = app.post(TOKENS, json={"id": "lab"}, headers=keyed(fleet))
    assert problem(path, 422)["reason"] == "idempotency_mismatch"
    admin = app.post(GROUPS, json={"id": "lab"}, headers=keyed(fleet, role="admin"))
    assert problem(admin, 409)["reason"] == "exists", "another token's key is another key"
    stranger = app.post(GROUPS, json={"id": "lab"}, headers={"Idempotency-Key": "k1"})
    assert problem(stranger, 401)
    for key in ("", "x" * 256, "a b"):
        answer = app.post(GROUPS, json={"id": "lab"}, headers=keyed(fleet, key))
        assert problem(answer, 400)["reason"] == "bad_key"


def test_a_refusal_is_told_again_too_but_not_one_that_says_nothing(
    app: httpx.Client, fleet: Service
) -> None:
    app.post(GROUPS, json={"id": "lab"}, headers=auth(fleet))
    for _ in range(2):
        assert problem(app.post(GROUPS, json={"id": "lab"}, headers=keyed(fleet)), 409)
    denied = app.post(GROUPS, json={"id": "new"}, headers=keyed(fleet, role="viewer"))
    assert problem(denied, 403)
    again = app.post(GROUPS, json={"id": "new"}, headers=keyed(fleet, role="viewer"))
    assert problem(again, 403)
    assert "idempotent-replayed" not in again.headers


def test_an_answer_is_forgotten_after_a_day(app: httpx.Client, fleet: Service, now: Now) -> None:
    assert app.post(GROUPS, json={"id": "lab"}, headers=keyed(fleet)).status_code == 201
    now.value += 86_399
    assert app.post(GROUPS, json={"id": "lab"}, headers=keyed(fleet)).status_code == 201
    now.value += 1
    assert problem(app.post(GROUPS, json={"id": "lab"}, headers=keyed(fleet)), 409)


def test_what_is_not_finished_is_not_begun_again(app: httpx.Client, fleet: Service) -> None:
    """A second one while the first is under way, and after the fleet was killed in its middle."""
    begun, go_on = threading.Event(), threading.Event()
    create = fleet.enrolment.offer

    def slow(*facts: Any) -> Any:
        begun.set()
        go_on.wait(20)
        return create(*facts)

    app.post(GROUPS, json={"id": "lab"}, headers=auth(fleet))
    fleet.enrolment.offer = slow  # type: ignore[method-assign]
    body, answers = {"group": "lab"}, []
    thread = threading.Thread(
        target=lambda: answers.append(app.post(TOKENS, json=body, headers=keyed(fleet)))
    )
    thread.start()
    try:
        assert begun.wait(20)
        busy = app.post(TOKENS, json=body, headers=keyed(fleet))
        assert problem(busy, 409)["reason"] == "idempotency_busy"
    finally:
        go_on.set()
        thread.join()
    again = app.post(TOKENS, json=body, headers=keyed(fleet))
    assert again.content == answers[0].content


def test_a_request_that_was_cut_short_can_be_sent_again_soon(fleet: Service, now: Now) -> None:
    assert fleet.answers.begin("token", "k", b"request") is None
    with pytest.raises(UsageError) as caught:
        fleet.answers.begin("token", "k", b"request")
    assert caught.value.reason == "idempotency_busy"
    now.value += BUSY_S
    assert fleet.answers.begin("token", "k", b"request") is None, "as if it had never come"
    with pytest.raises(UsageError):
        fleet.answers.begin("token", "k", b"request")


def test_what_broke_may_be_sent_again(app: httpx.Client, fleet: Service) -> None:
    create = fleet.enrolment.offer

    def broken(*_facts: Any) -> Any:
        raise RuntimeError

    app.post(GROUPS, json={"id": "lab"}, headers=auth(fleet))
    fleet.enrolment.offer = broken  # type: ignore[method-assign]
    assert problem(app.post(TOKENS, json={"group": "lab"}, headers=keyed(fleet)), 500)
    fleet.enrolment.offer = create  # type: ignore[method-assign]
    made = app.post(TOKENS, json={"group": "lab"}, headers=keyed(fleet))
    assert made.status_code == 201


def test_a_long_body_with_a_key_is_refused_as_without(app: httpx.Client, fleet: Service) -> None:
    headers = keyed(fleet) | {"Content-Type": "application/json"}
    answer = app.post(GROUPS, content=b" " * (256 * 1024 + 1), headers=headers)
    assert problem(answer, 413)["reason"] == "too_long"
    with fleet.database.read() as session:
        assert session.scalars(select(GroupRow)).all() == []


def test_every_refusal_is_a_problem_document(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet)
    for path in ("/api/v1/none", "/none", "/api/v2/devices", "/static/none"):
        assert problem(app.get(path, headers=headers), 404)["reason"] == "not_found"
    wrong = app.delete("/api/v1/devices", headers=headers)
    assert problem(wrong, 405)["reason"] == "method_not_allowed"
    assert "GET" in wrong.headers["allow"]
    nobody = app.get("/api/v1/devices")
    assert problem(nobody, 401)["reason"] == "unauthorized"
    assert nobody.headers["www-authenticate"] == "Bearer"
    body = {"release": 1, "group": [], "quorum": 7, "more": 1}
    bad = problem(app.post("/api/v1/rollouts", json=body, headers=headers), 400)
    assert {e["where"] for e in bad["errors"]} == {
        "body.release", "body.group", "body.quorum", "body.more",
    }  # fmt: skip
    for content in (b"{", b"\xff", b'{"id": NaN}', b"[" * 5000):
        answer = app.post(GROUPS, content=content,
                          headers=headers | {"Content-Type": "application/json"})  # fmt: skip
        assert problem(answer, 400)["title"] == "Bad Request"


@pytest.fixture
def busy(fleet: Service, now: Now) -> Any:
    app = main_app(fleet, LISTENER)
    (guard,) = [m for m in app.user_middleware if "rates" in m.kwargs]
    guard.kwargs["rates"] = Rates(2.0, 3, now)
    return app


def test_who_asks_too_much_waits_and_others_do_not(busy: Any, fleet: Service, now: Now) -> None:
    with talking_to(busy) as client:

        def ask(role: str) -> httpx.Response:
            return client.get("/api/v1/session", headers=auth(fleet, role))

        assert [ask("viewer").status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = ask("viewer")
        assert problem(refused, 429)["reason"] == "too_many"
        assert refused.headers["retry-after"] == "1"
        assert ask("admin").status_code == 200
        now.value += 0.5
        assert [ask("viewer").status_code for _ in range(2)] == [200, 429]
        assert client.get("/api/v1/health").status_code == 200


def test_rates_forget_who_was_quiet_longest(now: Now) -> None:
    rates = Rates(1.0, 1, now, names=2)
    assert [rates.take(name) for name in "aab"] == [0.0, 1.0, 0.0]
    assert rates.take("c") == 0.0
    assert rates.take("a") == 0.0, "forgotten"
    assert rates.take("c") == 1.0
    assert Rates(0, 1, now).take("a") == 0.0


def test_an_answer_that_got_lost_is_told_again(app: httpx.Client, fleet: Service) -> None:
    headers = keyed(fleet) | {"Content-Type": "application/json"}
    body = json.dumps({"id": "lab"}).encode()

    async def cut_off() -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": GROUPS,
            "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(_message: Any) -> None:
            raise asyncio.CancelledError

        await main_app(fleet, LISTENER)(scope, receive, send)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cut_off())
    again = app.post(GROUPS, content=body, headers=headers)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
