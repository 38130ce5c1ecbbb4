"""Who may do what, with which token, and what is written down about it."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
from fastapi.routing import APIRoute
from sqlalchemy import select

from edgepack_fleet.access import ROLES
from edgepack_fleet.adapters.tables import ApiToken, AuditRow
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from fleet_rig import enrol, publisher
from rest_rig import Now, auth, problem

API = "/api/v1"
OPEN, VIEWER, OPERATOR, ADMIN = "", "viewer", "operator", "admin"
NEEDS = {
    "GET /health": OPEN,
    "GET /session": VIEWER,
    "GET /devices": VIEWER,
    "GET /devices/{device}": VIEWER,
    "POST /devices/{device}/revoke": OPERATOR,
    "POST /devices/{device}/reports": OPERATOR,
    "POST /devices/{device}/decommission": OPERATOR,
    "POST /devices/{device}/describe": OPERATOR,
    "GET /devices/{device}/requests": OPERATOR,
    "POST /devices/{device}/requests": OPERATOR,
    "GET /requests/{request}": OPERATOR,
    "POST /requests/{request}/cancel": OPERATOR,
    "GET /devices/{device}/timeline": VIEWER,
    "GET /settings/{scope}/{name}": VIEWER,
    "POST /settings/{scope}/{name}": OPERATOR,
    "GET /events": VIEWER,
    "GET /events/stream": VIEWER,
    "GET /groups": VIEWER,
    "POST /groups": OPERATOR,
    "GET /groups/{group}": VIEWER,
    "DELETE /groups/{group}": OPERATOR,
    "POST /groups/{group}/filter": OPERATOR,
    "POST /groups/{group}/add": OPERATOR,
    "POST /groups/{group}/remove": OPERATOR,
    "GET /releases": VIEWER,
    "GET /releases/{release}": VIEWER,
    "GET /releases/{release}/health": VIEWER,
    "GET /releases/{release}/drift": VIEWER,
    "GET /releases/{release}/compare": VIEWER,
    "GET /releases/{release}/measurements": VIEWER,
    "POST /releases/{release}/measurements": OPERATOR,
    "GET /alerts": VIEWER,
    "GET /alert-rules": VIEWER,
    "POST /alerts/{alert}/acknowledge": OPERATOR,
    "POST /alerts/{alert}/silence": OPERATOR,
    "GET /rollouts": VIEWER,
    "POST /rollouts": OPERATOR,
    "GET /rollouts/{rollout}": VIEWER,
    "POST /rollouts/rehearse": OPERATOR,
    "GET /rollouts/{rollout}/decisions": VIEWER,
    "POST /rollouts/{rollout}/start": OPERATOR,
    "POST /rollouts/{rollout}/approve": OPERATOR,
    "POST /rollouts/{rollout}/revert": OPERATOR,
    "POST /rollouts/{rollout}/pause": OPERATOR,
    "POST /rollouts/{rollout}/resume": OPERATOR,
    "POST /rollouts/{rollout}/cancel": OPERATOR,
    "GET /applicants": OPERATOR,
    "POST /applicants/{applicant}/accept": OPERATOR,
    "POST /applicants/{applicant}/reject": OPERATOR,
    "GET /preauthorised": OPERATOR,
    "POST /preauthorised": OPERATOR,
    "DELETE /preauthorised/{entry}": OPERATOR,
    "GET /ca": VIEWER,
    "POST /ca/rotate": ADMIN,
    "POST /ca/retire": ADMIN,
    "GET /tokens": OPERATOR,
    "POST /tokens": OPERATOR,
    "GET /repo/online-keys": OPERATOR,
    "POST /repo/online-keys/next": OPERATOR,
    "GET /repo/metadata/{name}": OPERATOR,
    "HEAD /repo/blobs/{sha256}": OPERATOR,
    "PUT /repo/blobs/{sha256}": OPERATOR,
    "GET /repo/blobs/{sha256}": OPERATOR,
    "GET /repo/patches/{target}": OPERATOR,
    "POST /repo/patches/{target}": OPERATOR,
    "POST /repo/publish": OPERATOR,
    "GET /access-tokens": ADMIN,
    "POST /access-tokens": ADMIN,
    "DELETE /access-tokens/{token}": ADMIN,
    "GET /audit": ADMIN,
    "GET /webhooks": ADMIN,
    "POST /webhooks": ADMIN,
    "GET /webhooks/{webhook}": ADMIN,
    "DELETE /webhooks/{webhook}": ADMIN,
    "POST /webhooks/{webhook}/test": ADMIN,
    "GET /webhooks/{webhook}/deliveries": ADMIN,
}
"""Every route, and the least role that may use it."""


def routes(found: Any) -> Iterator[APIRoute]:
    """Yield every route of an application, those of the routers in it, too."""
    for route in found:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from routes(inner.routes)
        elif isinstance(route, APIRoute):
            yield route


def every() -> list[str]:
    """Return every method and path below `/api/v1`."""
    return sorted(
        f"{method} {route.path.removeprefix(API)}"
        for route in routes(main_app(None).routes)
        if route.path.startswith(API)
        for method in route.methods
    )


def test_every_route_has_a_role() -> None:
    assert every() == sorted(NEEDS), "say here who may use a new route"


def test_each_role_may_do_what_it_may(app: httpx.Client, fleet: Service) -> None:
    for route in NEEDS:
        may(app, fleet, route)


def may(app: httpx.Client, fleet: Service, route: str) -> None:
    method, _, path = route.partition(" ")
    url = API + re.sub(r"\{\w+\}", "x", path)
    # An empty object is no valid body anywhere: nothing is done, and the role is looked at first.
    body: dict[str, Any] = {"json": {"not": "this"}} if method == "POST" else {}
    least = NEEDS[route]
    for role in ROLES:
        # A stream would have no end; this one is refused once the role is looked at.
        headers = auth(fleet, role) | {"Last-Event-ID": "x"}
        status = app.request(method, url, headers=headers, **body).status_code
        allowed = least == OPEN or ROLES.index(role) >= ROLES.index(least)  # type: ignore[arg-type]
        assert (status in {401, 403}) is not allowed, (route, role, status)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"},
                    {"Authorization": "Bearer"}):  # fmt: skip
        status = app.request(method, url, headers=headers, **body).status_code
        assert (status == 401) is (least != OPEN), (route, headers)


FORMS = {
    "/devices/{device_id}/tags": {"key": "site", "value": "berlin"},
    "/revoke": {"id": "one"},
    "/applicants/{applicant}/{action}": {},
    "/rollouts/{rollout_id}/{action}": {},
}
"""Every form of the pages that changes something, and what is typed into it."""


def test_who_may_only_look_sends_no_form_and_no_other_site_does(
    app: httpx.Client, fleet: Service
) -> None:
    enrol(fleet, "one")
    pages = [route for route in routes(main_app(None).routes) if not route.path.startswith(API)]
    posts = {route.path for route in pages if "POST" in route.methods}
    assert posts == {"/login", "/logout", *FORMS}, "say here what a new form needs"

    def send(form: str, origin: str = "http://testserver") -> int:
        path = re.sub(r"\{\w+\}", "one", form)
        return app.post(path, data=FORMS[form], headers={"Origin": origin},
                        follow_redirects=False).status_code  # fmt: skip

    assert [send(form) for form in FORMS] == [303] * len(FORMS), "to the login"
    sign_in(app, fleet, "viewer")
    assert {send(form) for form in FORMS} == {403}
    sign_in(app, fleet, "operator")
    assert {send(form, "http://elsewhere.example") for form in FORMS} == {403}
    told = {form: send(form) for form in FORMS}
    assert told["/devices/{device_id}/tags"] == told["/revoke"] == 303, "it is done"
    assert not {401, 403} & set(told.values())


def sign_in(app: httpx.Client, fleet: Service, role: str) -> None:
    app.cookies.clear()
    token = auth(fleet, role)["Authorization"].removeprefix("Bearer ")
    assert app.post("/login", data={"token": token}).status_code == 200


# -- access tokens


def new(app: httpx.Client, fleet: Service, **facts: Any) -> dict[str, Any]:
    body = {"name": "ci", "role": "operator"} | facts
    made = app.post(f"{API}/access-tokens", json=body, headers=auth(fleet, "admin"))
    assert made.status_code == 201, made.text
    return dict(made.json())


def bearer(made: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {made['token']}"}


def test_a_token_from_its_making_to_its_end(app: httpx.Client, fleet: Service, now: Now) -> None:
    made = new(app, fleet)
    assert app.get(f"{API}/session", headers=bearer(made)).json() == {"role": "operator"}
    listed = app.get(f"{API}/access-tokens", headers=auth(fleet, "admin"))
    assert made["token"] not in listed.text
    by_id = {t["id"]: t for t in listed.json()["items"]}
    assert set(by_id) == {made["id"], *(f"bootstrap-{role}" for role in ROLES)}
    assert by_id[made["id"]]["last_used"] == now.value
    assert by_id["bootstrap-viewer"]["last_used"] is None
    with fleet.database.read() as session:
        kept = str(session.execute(select(ApiToken.__table__)).all())
    assert made["token"] not in kept
    assert made["token"][4:] not in kept
    url = f"{API}/access-tokens/{made['id']}"
    assert app.delete(url, headers=auth(fleet, "admin")).status_code == 204
    assert problem(app.get(f"{API}/session", headers=bearer(made)), 401)
    gone = app.delete(url, headers=auth(fleet, "admin"))
    assert problem(gone, 404)["reason"] == "unknown_token"


def test_a_token_ends_by_itself(app: httpx.Client, fleet: Service, now: Now) -> None:
    short, ever = new(app, fleet, ttl_s=60), new(app, fleet, ttl_s=None)
    assert short["expires"] == now.value + 60
    assert ever["expires"] is None
    now.value += 59.9
    assert app.get(f"{API}/session", headers=bearer(short)).status_code == 200
    now.value += 0.1
    assert problem(app.get(f"{API}/session", headers=bearer(short)), 401)
    assert app.get(f"{API}/session", headers=bearer(ever)).status_code == 200


def test_a_browser_is_out_when_its_token_is(app: httpx.Client, fleet: Service) -> None:
    made = new(app, fleet, role="viewer")
    app.post("/login", data={"token": made["token"]})
    assert app.get("/devices", follow_redirects=False).status_code == 200
    app.delete(f"{API}/access-tokens/{made['id']}", headers=auth(fleet, "admin"))
    assert app.get("/devices", follow_redirects=False).status_code == 303


def test_what_no_token_can_be(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet, "admin")
    for bad in ({"role": "root"}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 65},
                {"ttl_s": 0}, {"more": 1}):  # fmt: skip
        body = {"name": "ci", "role": "viewer"} | bad
        assert problem(app.post(f"{API}/access-tokens", json=body, headers=headers), 400)
    bootstrap = app.delete(f"{API}/access-tokens/bootstrap-admin", headers=headers)
    assert problem(bootstrap, 409)["reason"] == "wrong_state"


def test_tokens_outlive_a_restart_whatever_they_are_called(
    app: httpx.Client, fleet: Service
) -> None:
    made = new(app, fleet, name="bootstrap")
    again = Service(fleet.settings)
    try:
        caller = again.access.caller(made["token"])
        assert caller is not None
        assert caller.id == made["id"]
    finally:
        again.database.close()


# -- the audit log


def audit(app: httpx.Client, fleet: Service, **query: Any) -> list[dict[str, Any]]:
    answer = app.get(f"{API}/audit", params=query, headers=auth(fleet, "admin"))
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def test_every_change_is_written_down_with_who_did_it(
    app: httpx.Client, fleet: Service, now: Now
) -> None:
    made = new(app, fleet)
    publisher(fleet.settings.data).release()
    enrol(fleet, "cam")
    body = {"release": "digits@1.0.0", "group": "lab"}
    rollout = app.post(f"{API}/rollouts", json=body, headers=bearer(made)).json()["id"]
    app.post(f"{API}/rollouts/{rollout}/resume", headers=bearer(made))
    app.post(f"{API}/ca/rotate", json={}, headers=bearer(made))
    app.get(f"{API}/devices", headers=bearer(made))
    app.post(f"{API}/groups", json={"id": "x"}, headers={"Authorization": "Bearer wrong"})
    told = [(e["who"], e["action"], e["path"], e["status"], e["reason"], e["detail"])
            for e in audit(app, fleet)]  # fmt: skip
    who = made["id"]
    assert told == [
        (who, "rotate_authority", f"{API}/ca/rotate", 403, "forbidden", {}),
        (who, "resume_rollout", f"{API}/rollouts/{rollout}/resume", 409, "wrong_state", {}),
        (who, "create_rollout", f"{API}/rollouts", 201, "", body),
        ("bootstrap-admin", "create_access_token", f"{API}/access-tokens", 201, "",
         {"name": "ci", "role": "operator"}),
    ]  # fmt: skip
    entry = audit(app, fleet)[0]
    assert (entry["time"], entry["name"], entry["role"]) == (now.value, "ci", "operator")
    assert entry["address"] == "127.0.0.1"


def test_what_people_do_on_the_pages_is_written_down_too(app: httpx.Client, fleet: Service) -> None:
    token = auth(fleet)["Authorization"][7:]
    app.post("/login", data={"token": "guess"})
    app.post("/login", data={"token": token})
    app.post("/rollouts/none/pause", headers={"Origin": "http://testserver"})
    enrol(fleet, "one")
    tag = {"key": "site", "value": "berlin"}
    app.post("/devices/one/tags", data=tag, headers={"Origin": "http://testserver"})
    told = [(e["who"], e["action"], e["path"], e["status"]) for e in audit(app, fleet)]
    assert told == [
        ("bootstrap-operator", "tag_device", "/devices/one/tags", 303),
        ("bootstrap-operator", "change_rollout", "/rollouts/none/pause", 404),
        ("bootstrap-operator", "login", "/login", 303),
    ]
    with fleet.database.read() as session:
        assert token not in str(session.execute(select(AuditRow.__table__)).all())


def test_no_secret_is_in_the_log(app: httpx.Client, fleet: Service) -> None:
    made = new(app, fleet)
    app.post(f"{API}/groups", json={"id": "lab"}, headers=bearer(made))
    enrolment = app.post(f"{API}/tokens", json={"group": "lab"}, headers=bearer(made)).json()
    app.post(f"{API}/groups", json={"id": f"epf_{'0' * 64}"}, headers=bearer(made))
    for sent in ({"password": "hunter2"}, {"id": {"deep": "hunter2"}}, ["hunter2"]):
        app.post(f"{API}/groups", json=sent, headers=bearer(made))
    for path in (f"access-tokens/{made['token']}", f"groups/{enrolment['token']}"):
        app.delete(f"{API}/{path}", headers=auth(fleet, "admin"))
    with fleet.database.read() as session:
        kept = str(session.execute(select(AuditRow.__table__)).all())
    assert "epf_..." in kept
    for secret in (made["token"], enrolment["token"], "password", "hunter2"):
        assert secret not in kept


def test_the_log_is_filtered(app: httpx.Client, fleet: Service, now: Now) -> None:
    for name in ("a", "b", "a"):
        app.post(f"{API}/groups", json={"id": name}, headers=auth(fleet))
        now.value += 10
    new(app, fleet)
    count = {
        (): 4,
        (("who", "bootstrap-operator"),): 3,
        (("action", "create_access_token"),): 1,
        (("refused", True),): 1,
        (("refused", False),): 3,
        (("since", now.value),): 1,
        (("until", now.value - 20),): 1,
    }
    for query, size in count.items():
        assert len(audit(app, fleet, **dict(query))) == size, query
    now.value += 400 * 86_400
    app.post(f"{API}/groups", json={"id": "c"}, headers=auth(fleet))
    assert len(audit(app, fleet)) == 1, "what is older than 400 days goes"


def test_what_is_sent_again_is_written_down_once(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet) | {"Idempotency-Key": "k"}
    for _ in range(3):
        assert app.post(f"{API}/groups", json={"id": "lab"}, headers=headers).status_code == 201
    assert len(audit(app, fleet)) == 1
