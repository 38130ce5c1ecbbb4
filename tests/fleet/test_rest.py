"""The REST interface, the pages and the enrolment listener, each as the application it is."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from edgepack import messages
from edgepack_fleet.adapters.tables import ApiToken, DeviceRow, EnrolToken, EventRow
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from edgepack_fleet.web.devices import device_app
from fleet_rig import INVENTORY, csr, enrol, publisher, talking_to
from rest_rig import LISTENER, Now, auth, problem


@pytest.fixture
def door(fleet: Service) -> Iterator[httpx.Client]:
    """The device listener."""
    with talking_to(device_app(fleet)) as client:
        yield client


# -- who may


def test_health_is_open_and_all_else_is_not(app: httpx.Client, fleet: Service) -> None:
    health = app.get("/api/v1/health")
    assert health.json()["status"] == "degraded", "there is no broker"
    paths = app.get("/api/v1/openapi.json").json()["paths"]
    closed = [(path, method) for path, item in paths.items() for method in item
              if path != "/api/v1/health"]  # fmt: skip
    assert len(closed) >= 20
    for path, method in closed:
        url = re.sub(r"\{\w+\}", "x", path)
        assert app.request(method, url).status_code == 401, (method, path)
        wrong = app.request(method, url, headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401
        if method in {"post", "put"}:
            viewer = app.request(method, url, headers=auth(fleet, "viewer"))
            assert viewer.status_code == 403, (method, path)
    assert problem(app.get("/api/v1/devices"), 401)


def test_tokens_are_kept_as_hashes_and_follow_the_secret(fleet: Service, app: httpx.Client) -> None:
    old = auth(fleet, "admin")
    assert app.get("/api/v1/session", headers=old).json() == {"role": "admin"}
    with fleet.database.read() as session:
        kept = session.scalars(select(ApiToken.digest)).all()
    assert hashlib.sha256(old["Authorization"][7:].encode()).hexdigest() in kept
    (fleet.settings.data / "secret").write_bytes(b"another secret")
    again = Service(fleet.settings)
    again.database.close()
    assert app.get("/api/v1/session", headers=old).status_code == 401


# -- groups, rollouts, releases


def test_groups_and_their_errors(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet)
    made = app.post("/api/v1/groups", json={"id": "lab"}, headers=headers)
    assert (made.status_code, made.json()["devices"]) == (201, 0)
    assert problem(app.post("/api/v1/groups", json={"id": "lab"}, headers=headers), 409)
    for bad in ({"id": "No Spaces"}, {"id": "a", "more": 1}, {}, [], "x"):
        found = problem(app.post("/api/v1/groups", json=bad, headers=headers), 400)
        assert found["code"] == 2
    assert [g["id"] for g in app.get("/api/v1/groups", headers=headers).json()["items"]] == ["lab"]
    assert problem(app.get("/api/v1/groups/none", headers=headers), 404)


def test_a_rollout_over_rest(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet)
    publisher(fleet.settings.data).release()
    enrol(fleet, "cam")
    releases = app.get("/api/v1/releases", headers=headers).json()["items"]
    assert [r["id"] for r in releases] == ["digits@1.0.0"]
    shown = app.get("/api/v1/releases/digits@1.0.0", headers=headers).json()
    assert shown["variants"][0]["runtime"] == "onnx"
    body = {"release": "digits@1.0.0", "group": "lab", "waves": "1,100%"}
    made = app.post("/api/v1/rollouts", json=body, headers=headers)
    assert made.status_code == 201
    assert made.json()["state"] == "running"
    assert made.json()["waves"][0] == {
            "size": 1, "done": 0, "failed": 0, "pending": 1, "gates": [],
        }  # fmt: skip
    assert made.json()["devices"][0]["status"] == "QUEUED"
    url = f"/api/v1/rollouts/{made.json()['id']}"
    assert app.post(f"{url}/pause", headers=headers).json()["state"] == "paused"
    assert problem(app.post(f"{url}/pause", headers=headers), 409)
    assert app.post(f"{url}/resume", headers=headers).json()["state"] == "running"
    assert app.post(f"{url}/cancel", headers=headers).json()["state"] == "cancelled"
    assert app.get(url, headers=headers).json()["reason"] == "Cancelled by an operator."
    window = {"days": ["mon"], "from": "22:00", "to": "04:00", "zone": ""}
    bad = {"group": "none", "release": "digits@9.9.9", "waves": "0", "max_failures": 0}
    bad |= {"windows": [window], "quorum": 0}
    for field, value in bad.items():
        answer = app.post("/api/v1/rollouts", json=body | {field: value}, headers=headers)
        assert problem(answer, 404 if field in {"group", "release"} else 400)
    assert problem(app.get("/api/v1/rollouts/none", headers=headers), 404)


def test_devices_over_rest(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet, "viewer")
    enrol(fleet, "cam")
    (shown,) = app.get("/api/v1/devices", headers=headers).json()["items"]
    assert shown == app.get("/api/v1/devices/cam", headers=headers).json()
    assert (shown["id"], shown["groups"], shown["online"], shown["target"], shown["job"]) == (
        "cam", ["lab"], False, "onnx", None,
    )  # fmt: skip
    assert "nobody" in problem(app.get("/api/v1/devices/nobody", headers=headers), 404)["detail"]


# -- the publisher's routes


def test_blobs_are_checked_as_they_arrive(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet)
    content = os.urandom(300_000)
    sha256 = hashlib.sha256(content).hexdigest()
    url = f"/api/v1/repo/blobs/{sha256}"
    assert app.head(url, headers=headers).status_code == 404
    wrong = problem(app.put(url, content=content[:-1], headers=headers), 422)
    assert wrong["code"] == 3
    assert app.head(url, headers=headers).status_code == 404
    assert app.put(url, content=content, headers=headers).json() == {"size": len(content)}
    assert app.head(url, headers=headers).headers["content-length"] == str(len(content))
    assert problem(app.put("/api/v1/repo/blobs/xyz", content=b"", headers=headers), 400)


def test_metadata_is_published_and_read(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet)
    keys = app.get("/api/v1/repo/online-keys", headers=headers).json()
    assert set(keys) == {"snapshot", "timestamp"}
    world = publisher(fleet.settings.data)
    assert problem(app.get("/api/v1/repo/metadata/timestamp.json", headers=headers), 404)
    world.release()
    assert app.get("/api/v1/repo/metadata/1.root.json", headers=headers).status_code == 200
    evil = {"metadata": {"1.root.json": "{}", "../../x": "{}"}}
    refused = problem(app.post("/api/v1/repo/publish", json=evil, headers=headers), 422)
    assert refused["code"] == 3
    assert problem(app.post("/api/v1/repo/publish", json={"metadata": 1}, headers=headers), 400)


def test_a_long_body_is_not_read_to_its_end_whoever_sends_it(app: httpx.Client) -> None:
    limits = {"/api/v1/groups": 256 * 1024, "/login": 256 * 1024, "/api/v1/repo/publish": 32 << 20}
    for path, limit in limits.items():
        short = app.post(path, content=b" " * limit, headers={"Content-Type": "application/json"})
        assert short.status_code in {400, 401}, short.text
        form = {"Content-Type": "application/x-www-form-urlencoded"} if path == "/login" else {}
        assert problem(app.post(path, content=b" " * (limit + 1), headers=form), 413)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=3))
def test_no_push_breaks_the_fleet(
    app: httpx.Client, fleet: Service, metadata: dict[str, str]
) -> None:
    answer = app.post("/api/v1/repo/publish", json={"metadata": metadata}, headers=auth(fleet))
    assert 400 <= answer.status_code < 500, answer.text


# -- enrolment


def new_token(app: httpx.Client, fleet: Service, **more: Any) -> dict[str, Any]:
    app.post("/api/v1/groups", json={"id": "lab"}, headers=auth(fleet))
    made = app.post("/api/v1/tokens", json={"group": "lab"} | more, headers=auth(fleet))
    assert made.status_code == 201, made.text
    text = made.json()["token"]
    assert text.startswith("ep1.")
    facts: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text[4:] + "=="))
    return facts


def request(secret: str, name: str = "cam", **more: Any) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    facts = {"secret": secret, "csr": csr(key), "name": name, "inventory": INVENTORY} | more
    return messages.encode(messages.EnrollRequest(**facts))


def test_a_token_becomes_a_device_once(
    app: httpx.Client, door: httpx.Client, fleet: Service
) -> None:
    facts = new_token(app, fleet)
    assert (facts["url"], facts["group"]) == (LISTENER, "lab")
    ca = x509.load_pem_x509_certificate(door.get("/enroll/ca").content)
    from cryptography.hazmat.primitives import hashes

    assert ca.fingerprint(hashes.SHA256()).hex() == facts["ca"]
    answer = door.post("/enroll", content=request(facts["secret"]))
    reply = messages.decode(answer.content, messages.EnrollReply)
    assert (reply.device, reply.group, reply.broker_host, reply.broker_port) == (
        "cam", "lab", "127.0.0.1", 1,
    )  # fmt: skip
    certificate = x509.load_pem_x509_certificate(reply.certificate.encode())
    certificate.verify_directly_issued_by(ca)
    assert reply.director_root.encode() == fleet.director.root()
    again = problem(door.post("/enroll", content=request(facts["secret"], "cam2")), 403)
    assert again["reason"] == "token_used"
    assert "used" in again["detail"]
    with fleet.database.read() as session:
        assert session.scalars(select(DeviceRow.id)).all() == ["cam"]
        assert facts["secret"] not in str(session.execute(select(EnrolToken)).mappings().all())


def test_wrong_and_expired_tokens(
    app: httpx.Client, door: httpx.Client, fleet: Service, now: Now
) -> None:
    facts = new_token(app, fleet, ttl_s=60)
    assert problem(door.post("/enroll", content=request("wrong")), 403)["reason"] == "token_invalid"
    now.value += 60
    late = problem(door.post("/enroll", content=request(facts["secret"])), 403)
    assert late["reason"] == "token_expired"


def test_a_request_that_gets_no_certificate_does_not_use_the_token_up(
    app: httpx.Client, door: httpx.Client, fleet: Service
) -> None:
    secret = new_token(app, fleet)["secret"]
    bad = [
        request(secret, csr="-----BEGIN CERTIFICATE REQUEST-----"),
        request(secret, csr="\x00"),
        b"{",
        b"\xff" * 100,
        b"[]",
        json.dumps({"v": 1, "secret": secret}).encode(),
    ]
    for body in bad:
        assert door.post("/enroll", content=body).status_code == 422
    assert door.post("/enroll", content=b" " * 70_000).status_code == 413
    assert door.post("/enroll", content=request(secret)).status_code == 200


def test_names_are_free_or_made_up_and_nobody_is_taken_over(
    app: httpx.Client, door: httpx.Client, fleet: Service
) -> None:
    secret = new_token(app, fleet, uses=6)["secret"]
    names = []
    for wish in ("cam", "cam", "fleet", "../x", "", "x" * 200):
        answer = door.post("/enroll", content=request(secret, wish))
        names.append(messages.decode(answer.content, messages.EnrollReply).device)
    assert names[0] == "cam"
    assert names[1].startswith("cam-")
    assert all(name.startswith("device-") for name in names[2:])
    assert len(set(names)) == 6
    listed = app.get("/api/v1/tokens", headers=auth(fleet)).json()["items"]
    assert [(t["used"], t["uses"]) for t in listed] == [(6, 6)]


def test_the_device_listener_serves_nothing_else(door: httpx.Client, fleet: Service) -> None:
    for path in ("/", "/login", "/api/v1/devices", "/api/v1/health", "/static/fleet.css"):
        assert door.get(path, headers=auth(fleet, "admin")).status_code == 404
    assert door.get("/enroll").status_code == 405
    assert problem(door.get("/enroll/image-root"), 404)["reason"] == "no_root"
    world = publisher(fleet.settings.data)
    world.release()
    assert door.get("/enroll/image-root").content == world.home.roots["1.root.json"]


# -- pages


def log_in(
    app: httpx.Client, fleet: Service, role: str = "operator", after: str = "/"
) -> httpx.Response:
    token = auth(fleet, role)["Authorization"][7:]
    return app.post("/login", data={"token": token, "after": after}, follow_redirects=False)


def test_pages_need_a_session_and_a_session_a_token(app: httpx.Client, fleet: Service) -> None:
    for path in ("/", "/devices", "/rollouts", "/releases", "/devices/x", "/rollouts/x"):
        answer = app.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/login?after={path}")
    wrong = app.post("/login", data={"token": "guess"})
    assert wrong.status_code == 403
    assert "not valid" in wrong.text
    answer = log_in(app, fleet, after="/devices")
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/devices"
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert auth(fleet)["Authorization"][7:] not in cookie, "the cookie is not the token"
    assert app.get("/devices").status_code == 200
    app.post("/logout")
    assert app.get("/", follow_redirects=False).status_code == 303


@pytest.mark.parametrize("after", ["//evil.example", "https://evil.example", "/\\evil", "x"])
def test_the_login_leads_nowhere_else(app: httpx.Client, fleet: Service, after: str) -> None:
    assert log_in(app, fleet, after=after).headers["location"] == "/"


def test_sessions_end_and_cannot_be_forged(app: httpx.Client, fleet: Service, now: Now) -> None:
    log_in(app, fleet)
    value = app.cookies["edgepack_session"]
    digest, expires, seal = value.split(".")
    for forged in (
        f"{digest}.{int(expires) + 1}.{seal}",
        f"{'0' * 64}.{expires}.{seal}",
        f"{digest}.{expires}.{seal[::-1]}",
        f"{digest}.{expires}",
        f"{digest}.x.{seal}",
        "..",
    ):
        assert fleet.access.session_caller(forged) is None
    now.value += 12 * 3600
    assert fleet.access.session_caller(value) is None


def test_empty_pages_show_the_command_to_run(app: httpx.Client, fleet: Service) -> None:
    log_in(app, fleet)
    assert "edgepack-agent enroll TOKEN" in app.get("/devices").text
    assert "edgepack fleet rollouts create" in app.get("/rollouts").text
    assert "edgepack repo publish" in app.get("/releases").text
    assert "edgepack fleet tokens create" in app.get("/").text


def test_pages_show_the_fleet_and_let_operators_act(app: httpx.Client, fleet: Service) -> None:
    publisher(fleet.settings.data).release()
    enrol(fleet, "cam")
    from edgepack_fleet.core.model import Policy

    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "1,100%", Policy())
    log_in(app, fleet, "viewer")
    page = app.get(f"/rollouts/{rollout}").text
    assert "digits@1.0.0" in page
    assert "Wave 2" in page
    assert "/pause" not in page, "a viewer only looks"
    assert "cam" in app.get("/devices").text
    assert "x86_64" in app.get("/devices/cam").text
    assert "models/digits" not in app.get("/releases").text
    assert "int8" in app.get("/releases").text
    same = {"Origin": "http://testserver"}
    assert app.post(f"/rollouts/{rollout}/pause", headers=same).status_code == 403
    log_in(app, fleet, "operator")
    for origin in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert app.post(f"/rollouts/{rollout}/pause", headers=origin).status_code == 403
    paused = app.post(f"/rollouts/{rollout}/pause", headers=same)
    assert "Paused by an operator." in paused.text
    overview = app.get("/", headers=same).text
    attention = overview.partition("Needs attention")[2]
    assert "Paused by an operator." in attention, "a paused rollout needs a person"
    again = app.post(f"/rollouts/{rollout}/pause", headers=same)
    assert again.status_code == 409
    assert "is paused" in again.text
    assert app.post(f"/rollouts/{rollout}/explode", headers=same).status_code == 404
    for path in ("/rollouts/none", "/devices/<b>none"):
        missing = app.get(path)
        assert (missing.status_code, missing.headers["content-type"][:9]) == (404, "text/html")
        assert "Back to the overview" in missing.text
        assert "<b>none" not in missing.text


def test_who_revoked_which_device_is_written_down(app: httpx.Client, fleet: Service) -> None:
    enrol(fleet, "cam")
    enrol(fleet, "revoke")
    same = {"Origin": "http://testserver"}
    log_in(app, fleet, "viewer")
    assert app.post("/revoke", data={"id": "cam"}, headers=same).status_code == 403
    assert app.get("/revoke?id=cam").status_code == 403
    log_in(app, fleet)
    assert "Revoke 1 device?" in app.get("/revoke?id=cam").text
    assert app.post("/revoke", data={"id": "cam"}).status_code == 403, "not from our pages"
    page = app.post("/revoke", data={"id": "cam"}, headers=same).text
    assert "bootstrap revoked it." in page
    assert "Revoked" in page
    assert "Revoked" not in app.get("/devices/revoke").text, "a name is no action"
    assert app.get("/revoke?id=cam").status_code == 404


def test_pages_ask_nothing_of_other_hosts_and_escape_what_devices_say(
    app: httpx.Client, fleet: Service
) -> None:
    enrol(fleet, "cam")
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").bundle = "<script>alert(1)</script>"
    log_in(app, fleet)
    for path in ("/", "/devices", "/devices/cam", "/login"):
        answer = app.get(path)
        assert "<script>alert" not in answer.text
        assert not re.findall(r"(?:src|href|action)=.(?:https?:)?//", answer.text)
        assert not re.findall(r"\sstyle=|\son\w+=", answer.text), "the policy would block it"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        # Browsers send `Origin: null` with the forms of a page that asks for `no-referrer`.
        assert answer.headers["referrer-policy"] == "same-origin"
    for name in ("fleet.css", "fleet.js", "icons.svg", "mark.svg"):
        text = app.get(f"/static/{name}").text
        assert "http" not in text.replace("http://www.w3.org", ""), name


def test_the_description_of_the_interface_is_whole() -> None:
    document = main_app(None).openapi()
    assert document["openapi"].startswith("3.")
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["description"], (method, path)


def test_reports_that_a_person_carries_here(app: httpx.Client, fleet: Service) -> None:
    enrol(fleet, "cam")
    report = messages.Event(boot="b", seq=0, ts=1.0, type="activated", bundle="digits@1.0.0")
    body = {"kind": "evt", "payload": base64.b64encode(messages.encode(report)).decode()}
    url = "/api/v1/devices/cam/reports"
    assert app.post(url, json=body, headers=auth(fleet, "viewer")).status_code == 403
    for _ in range(2):
        answer = app.post(url, json=body, headers=auth(fleet))
        assert (answer.status_code, answer.json()) == (200, {"taken": True, "refused": ""})
    device = app.get("/api/v1/devices/cam", headers=auth(fleet)).json()
    assert device["last_seen"] in {None, 0.0}, "a file is no sign of life"
    with fleet.database.read() as session:
        assert len(session.scalars(select(EventRow)).all()) == 1
    nonsense = body | {"payload": base64.b64encode(b"[nonsense").decode()}
    answer = app.post(url, json=nonsense, headers=auth(fleet)).json()
    assert answer == {"taken": False, "refused": "bad_message"}
    assert app.post(url.replace("cam", "who"), json=body, headers=auth(fleet)).status_code == 404
    assert not app.post(url, json=body | {"payload": ""}, headers=auth(fleet)).json()["taken"]


def test_who_looks_with_a_browser_gets_a_page_and_programs_a_document(
    app: httpx.Client, fleet: Service
) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    gone = app.get("/nonsense", headers=browser)
    assert (gone.status_code, gone.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "There is no such page" in gone.text
    assert "Content-Security-Policy" in gone.headers
    wrong = app.delete("/devices", headers=browser)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
    assert "cannot be asked for in that way" in wrong.text
    assert "The address may be old" not in wrong.text
    told = app.post("/login", headers=browser)
    assert (told.status_code, "token" in told.text) == (400, True)
    assert told.headers["content-type"].startswith("text/html")
    assert problem(app.get("/nonsense"), 404)["reason"] == "not_found"
    assert problem(app.delete("/devices"), 405)["reason"] == "method_not_allowed"
    for path in ("/api/v1/nonsense", "/api/nonsense", "/static/nonsense.js"):
        assert problem(app.get(path, headers=browser), 404), path
    assert "Log out" not in gone.text
    app.post("/login", data={"token": auth(fleet)["Authorization"][7:]})
    known = app.get("/nonsense", headers=browser)
    assert known.status_code == 404
    assert "Log out" in known.text, "who has logged in finds the way on"
