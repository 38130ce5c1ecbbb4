"""Webhooks against a real receiver: signed, again until taken, and only where they may go."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_fleet import webhooks
from edgepack_fleet.adapters.posting import Poster
from edgepack_fleet.adapters.tables import DeliveryRow, DeviceRow, WebhookRow
from edgepack_fleet.core.hooks import check_url, may_reach, pause_s
from edgepack_fleet.service import Service
from fleet_rig import enrol, wait
from rest_rig import auth, problem

HOOKS = "/api/v1/webhooks"


@dataclass
class Receiver:
    """A program that changes are posted to."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    """What it answers, one after the other; then 204."""
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.heard]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.heard.append(({k.lower(): v for k, v in self.headers.items()}, body))
            status = found.answers.pop(0) if found.answers else 204
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_facts: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/hook?x=1"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def posting(fleet: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A fleet that posts and does nothing else, and does not wait between tries."""
    monkeypatch.setattr(webhooks, "IDLE_S", 0.02)
    fleet.webhooks._pause = lambda _tries: 0.0
    fleet.webhooks.start()
    yield fleet
    fleet.webhooks.stop()


def register(app: httpx.Client, fleet: Service, url: str, *types: str) -> dict[str, Any]:
    body = {"url": url, "types": list(types)}
    made = app.post(HOOKS, json=body, headers=auth(fleet, "admin"))
    assert made.status_code == 201, made.text
    return dict(made.json())


def deliveries(app: httpx.Client, fleet: Service, webhook: str) -> list[dict[str, Any]]:
    found = app.get(f"{HOOKS}/{webhook}/deliveries", headers=auth(fleet, "admin"))
    return list(found.json()["items"])


def settled(app: httpx.Client, fleet: Service, webhook: str, count: int) -> list[dict[str, Any]]:
    """Return the messages of WEBHOOK as soon as COUNT of them wait no more."""

    def probe() -> list[dict[str, Any]] | None:
        done = [d for d in deliveries(app, fleet, webhook) if d["state"] != "pending"]
        return done if len(done) >= count else None

    return wait("messages to be done with", probe)


def run(fleet: Service, bundle: str) -> None:
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").bundle = bundle


def test_a_change_is_posted_and_signed(
    app: httpx.Client, posting: Service, receiver: Receiver
) -> None:
    made = register(app, posting, receiver.url)
    enrol(posting, "cam")
    (done,) = settled(app, posting, made["id"], 1)
    assert (done["state"], done["tries"], done["answer"]) == ("delivered", 1, "204")
    headers, body = receiver.heard[0]
    assert headers["content-type"].startswith("application/cloudevents+json")
    document = json.loads(body)
    assert (document["specversion"], document["type"], document["source"], document["id"]) == (
        "1.0", "edgepack.device.enrolled", posting.source, done["event"],
    )  # fmt: skip
    # As https://www.standardwebhooks.com says, computed here from its words.
    key = base64.b64decode(made["secret"].removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert abs(int(headers["webhook-timestamp"]) - posting.now()) < 1
    listed = app.get(HOOKS, headers=auth(posting, "admin"))
    assert listed.json()["items"][0]["last_answer"] == "204"
    assert made["secret"] not in listed.text
    with posting.database.read() as session:
        assert made["secret"][6:] not in str(vars(session.get_one(WebhookRow, made["id"])))


def test_what_is_not_taken_is_posted_again_under_the_same_id(
    app: httpx.Client, posting: Service, receiver: Receiver
) -> None:
    receiver.answers = [500, 404, 302]
    made = register(app, posting, receiver.url)
    enrol(posting, "cam")
    (done,) = settled(app, posting, made["id"], 1)
    assert (done["state"], done["tries"]) == ("delivered", 4)
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert len({body for _, body in receiver.heard}) == 1


def test_what_is_never_taken_is_given_up_and_the_rest_goes_on(
    app: httpx.Client, posting: Service, receiver: Receiver
) -> None:
    receiver.answers = [503] * webhooks.TRIES
    made = register(app, posting, receiver.url)
    enrol(posting, "cam")
    (dead,) = settled(app, posting, made["id"], 1)
    assert (dead["state"], dead["tries"], dead["answer"], dead["due"]) == (
        "dead", webhooks.TRIES, "503", None,
    )  # fmt: skip
    run(posting, "m@1")
    newest, _ = settled(app, posting, made["id"], 2)
    assert newest["state"] == "delivered"


def test_a_receiver_that_is_gone_is_asked_no_more_until_it_is_tested(
    app: httpx.Client, posting: Service, receiver: Receiver
) -> None:
    receiver.answers = [410]
    made = register(app, posting, receiver.url)
    enrol(posting, "cam")
    settled(app, posting, made["id"], 1)
    url, headers = f"{HOOKS}/{made['id']}", auth(posting, "admin")
    assert app.get(url, headers=headers).json()["state"] == "gone"
    run(posting, "m@1")
    assert len(deliveries(app, posting, made["id"])) == 1
    assert app.post(f"{url}/test", headers=headers).json()["state"] == "active"
    settled(app, posting, made["id"], 2)
    assert receiver.types()[-1] == webhooks.TEST


def test_only_what_was_asked_for_is_posted(
    app: httpx.Client, posting: Service, receiver: Receiver
) -> None:
    made = register(app, posting, receiver.url, "edgepack.device.bundle")
    enrol(posting, "cam")
    for number in range(3):
        run(posting, f"m@{number}")
    settled(app, posting, made["id"], 3)
    assert receiver.types() == ["edgepack.device.bundle"] * 3
    bundles = [json.loads(body)["data"]["bundle"] for _, body in receiver.heard]
    assert bundles == ["m@0", "m@1", "m@2"], "in order, as long as they are taken"


def test_one_that_does_not_answer_holds_up_nobody(
    app: httpx.Client, posting: Service, receiver: Receiver
) -> None:
    silent = register(app, posting, "http://127.0.0.1:1/")
    made = register(app, posting, receiver.url)
    enrol(posting, "cam")
    (done,) = settled(app, posting, made["id"], 1)
    assert done["state"] == "delivered"
    (dead,) = settled(app, posting, silent["id"], 1)
    assert "ConnectError" in dead["answer"]


def test_what_waits_outlives_the_fleet(
    app: httpx.Client, fleet: Service, receiver: Receiver
) -> None:
    made = register(app, fleet, receiver.url)
    enrol(fleet, "cam")
    assert [d["state"] for d in deliveries(app, fleet, made["id"])] == ["pending"]
    again = Service(fleet.settings, fleet._clock)
    again.webhooks.start()
    try:
        settled(app, fleet, made["id"], 1)
    finally:
        again.webhooks.stop()
        again.database.close()
    assert receiver.types() == ["edgepack.device.enrolled"]


def test_a_deleted_webhook_hears_nothing_more(
    app: httpx.Client, fleet: Service, receiver: Receiver
) -> None:
    made = register(app, fleet, receiver.url)
    enrol(fleet, "cam")
    url, headers = f"{HOOKS}/{made['id']}", auth(fleet, "admin")
    assert app.delete(url, headers=headers).status_code == 204
    for path in (url, f"{url}/deliveries"):
        assert problem(app.get(path, headers=headers), 404)["reason"] == "unknown_webhook"
    assert problem(app.post(f"{url}/test", headers=headers), 404)
    assert problem(app.delete(url, headers=headers), 404)
    with fleet.database.read() as session:
        assert session.get(DeliveryRow, 1) is None


def test_old_messages_go_and_too_many_are_given_up(
    app: httpx.Client, fleet: Service, now: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WAITING", 2)
    made = register(app, fleet, "http://127.0.0.1:1/")
    enrol(fleet, "cam")
    for number in range(3):
        run(fleet, f"m@{number}")
    fleet.webhooks.tidy()
    found = deliveries(app, fleet, made["id"])
    assert [d["state"] for d in found] == ["pending", "pending", "dead", "dead"]
    now.value += webhooks.KEPT_S
    fleet.webhooks.tidy()
    assert len(deliveries(app, fleet, made["id"])) == 2


# -- where they may go


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://example.org/", "http://example.org/", "https://", "https:///path",
        "https://user:secret@example.org/", "https://user@example.org/", "https://example.org/#x",
        "https://example.org:99999/", "https://exa mple.org/", "https://example.org\\@evil/",
        "https://[::1", "http://127.0.0.1.example.org/", "http://0.0.0.0/", "http://192.168.1.1/",
        "https://example.org/\r\nX: y", "https://b\u00fccher.example/", "file:///etc/passwd",
        "https://" + "a" * 64 + ".example/",
    ],
)  # fmt: skip
def test_urls_that_are_refused_at_once(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert caught.value.reason == "bad_url"


def test_what_cannot_be_registered(app: httpx.Client, fleet: Service) -> None:
    headers = auth(fleet, "admin")
    for body in ({"url": "http://example.org"}, {"url": "https://example.org", "types": ["no"]},
                 {}, {"url": "https://example.org", "more": 1}):  # fmt: skip
        assert problem(app.post(HOOKS, json=body, headers=headers), 400)


def test_addresses_that_names_may_and_may_not_lead_to() -> None:
    private = ("10.0.0.1", "172.16.0.1", "192.168.1.1", "fd00::1", "::ffff:10.0.0.1")
    never = (
        "127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "fe80::1%eth0",
        "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "64:ff9b::a00:1",
        "2002:a00:1::", "::ffff:169.254.169.254", "240.0.0.1",
    )  # fmt: skip
    for address in private:
        assert not may_reach(address, loopback=False, private=False), address
        assert may_reach(address, loopback=False, private=True), address
    for address in never:
        for allowed in (False, True):
            assert not may_reach(address, loopback=False, private=allowed), address
    for address in ("93.184.216.34", "2606:2800:220:1::1"):
        assert may_reach(address, loopback=False, private=False), address
        assert not may_reach(address, loopback=True, private=True), "localhost is not elsewhere"
    assert may_reach("127.0.0.1", loopback=True, private=False)


def test_a_name_that_leads_to_this_machine_is_not_followed(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a name server says is not believed: neither before nor after it was checked."""
    port = int(receiver.url.rpartition(":")[2].partition("/")[0])
    answers = {"inside.example": "127.0.0.1", "meta.example": "169.254.169.254"}

    def look_up(host: str, *_facts: Any, **_more: Any) -> list[Any]:
        return [(2, 1, 6, "", (answers[host], port))]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    poster = Poster(private=True)
    try:
        for host in answers:
            outcome = poster.post(f"https://{host}:{port}/", b"{}", {})
            assert (outcome.taken, outcome.text) == (False, "its address is not a public one")
    finally:
        poster.close()
    assert receiver.heard == []


@given(st.integers(1, 100), st.floats(0, 1))
def test_pauses_grow_and_differ_and_have_an_end(tries: int, chance: float) -> None:
    found = pause_s(tries, chance)
    whole = min(3600.0, 5.0 * 2 ** (tries - 1))
    assert whole / 2 <= found <= whole


@given(st.text(max_size=80))
def test_no_url_breaks_the_check(url: str) -> None:
    for text in (url, f"https://{url}", f"https://example.org/{url}", f"https://example.org:{url}"):
        try:
            parts = check_url(text)
        except UsageError:
            continue
        assert httpx.URL(text).copy_with(host="192.0.2.1").path is not None
        assert parts.hostname
