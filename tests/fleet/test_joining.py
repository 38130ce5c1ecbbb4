"""Devices that a person must accept, and devices that are known beforehand."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import messages
from edgepack.errors import UsageError
from edgepack.keys import key_id
from edgepack_agent.adapters import enroll as agent
from edgepack_agent.cli import root as edgepack_agent
from edgepack_fleet.adapters import database
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.admission import Expected
from edgepack_fleet.service import Service, Settings
from edgepack_fleet.web.app import main_app
from edgepack_fleet.web.devices import device_app
from fleet_rig import INVENTORY, csr, listening, publisher, talking_to, wait
from rest_rig import LISTENER, Now, auth, problem

API = "/api/v1"


@pytest.fixture
def door(fleet: Service) -> Iterator[httpx.Client]:
    """The device listener."""
    with talking_to(device_app(fleet)) as client:
        yield client


@pytest.fixture
def token(app: httpx.Client, fleet: Service) -> str:
    """The secret of a token that wants an approval within an hour."""
    return new_token(app, fleet)


def new_token(app: httpx.Client, fleet: Service, **more: Any) -> str:
    app.post(f"{API}/groups", json={"id": "lab"}, headers=auth(fleet))
    body = {"group": "lab", "uses": 3, "approval_s": 3600, "tags": {"site": "hall"}} | more
    made = app.post(f"{API}/tokens", json=body, headers=auth(fleet))
    assert made.status_code == 201, made.text
    return agent.read_token(made.json()["token"]).secret


def test_who_comes_while_the_database_is_locked_is_told_to_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_MS", 50)
    service = Service(Settings(tmp_path / "fleet", Address("127.0.0.1", 1)))
    with talking_to(main_app(service, LISTENER)) as app:
        secret = new_token(app, service, approval_s=None)
    with talking_to(device_app(service)) as door:
        newcomer = Newcomer(door, secret)
        with service.database.write():
            answer = newcomer.ask()
        assert problem(answer, 503)["reason"] == "busy"
        assert int(answer.headers["Retry-After"]) > 0
        newcomer.joins()
    service.database.close()


class Newcomer:
    """A device with a key that asks to join."""

    def __init__(self, door: httpx.Client, secret: str, name: str = "cam") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.door, self.secret, self.name = door, secret, name
        self.csr = csr(self.key)

    @property
    def fingerprint(self) -> str:
        return key_id(self.key.public_key())

    def ask(self) -> httpx.Response:
        wanted = messages.EnrollRequest(
            secret=self.secret, csr=self.csr, name=self.name, inventory=INVENTORY
        )
        return self.door.post("/enroll", content=messages.encode(wanted))

    def waits(self) -> messages.EnrollPending:
        answer = self.ask()
        assert answer.status_code == 202, answer.text
        assert answer.headers["Retry-After"] == "15"
        return messages.decode(answer.content, messages.EnrollPending)

    def joins(self) -> messages.EnrollReply:
        answer = self.ask()
        assert answer.status_code == 200, answer.text
        return messages.decode(answer.content, messages.EnrollReply)

    def refused(self) -> str:
        return str(problem(self.ask(), 403)["reason"])


def decide(app: httpx.Client, fleet: Service, applicant: str, what: str) -> httpx.Response:
    return app.post(f"{API}/applicants/{applicant}/{what}", headers=auth(fleet))


def listed(app: httpx.Client, fleet: Service, path: str, **query: Any) -> list[dict[str, Any]]:
    answer = app.get(f"{API}/{path}", params=query, headers=auth(fleet))
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def device(app: httpx.Client, fleet: Service, name: str) -> dict[str, Any]:
    return dict(app.get(f"{API}/devices/{name}", headers=auth(fleet)).json())


def test_a_device_waits_until_it_is_accepted(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str, now: Now
) -> None:
    cam = Newcomer(door, token)
    said = cam.waits()
    assert (said.fingerprint, said.deadline) == (cam.fingerprint, now.value + 3600)
    assert cam.waits() == said, "who asks again is the same"
    (shown,) = listed(app, fleet, "applicants", state="pending")
    assert (shown["id"], shown["name"], shown["fingerprint"]) == (
        said.applicant, "cam", cam.fingerprint,
    )  # fmt: skip
    assert listed(app, fleet, "devices") == []
    accepted = decide(app, fleet, said.applicant, "accept").json()
    assert (accepted["state"], accepted["by"]) == ("accepted", "operator")
    assert cam.joins().device == "cam"
    found = device(app, fleet, "cam")
    assert (found["group"], found["tags"]) == ("lab", {"site": "hall"})
    told = [c for c in fleet.feed.after(0, 100) if c.type == "edgepack.applicant.state"]
    assert [c.data["state"] for c in told] == ["pending", "accepted", "enrolled"]
    assert cam.joins().certificate == cam.joins().certificate, "a lost answer is given again"
    assert [a["state"] for a in listed(app, fleet, "applicants")] == ["enrolled"]
    assert [(t["used"], t["approval_s"]) for t in listed(app, fleet, "tokens")] == [(1, 3600)]


def test_a_device_that_is_rejected_is_told_so(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    cam = Newcomer(door, token)
    applicant = cam.waits().applicant
    assert decide(app, fleet, applicant, "reject").json()["state"] == "rejected"
    assert cam.refused() == "enrolment_rejected"
    for what in ("accept", "reject"):
        again = problem(decide(app, fleet, applicant, what), 409)
        assert again["reason"] == "wrong_state"
    assert problem(decide(app, fleet, "a-0", "accept"), 404)["reason"] == "unknown_applicant"


def test_nobody_waits_for_ever(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str, now: Now
) -> None:
    cam, other = Newcomer(door, token), Newcomer(door, token, "other")
    applicant, fetched = cam.waits().applicant, other.waits().applicant
    now.value += 3599
    decide(app, fleet, fetched, "accept")
    now.value += 1
    assert cam.refused() == "approval_expired"
    assert problem(decide(app, fleet, applicant, "accept"), 409)["why"] == "it is expired"
    assert [a["id"] for a in listed(app, fleet, "applicants", state="expired")] == [applicant]
    assert listed(app, fleet, "applicants", state="pending") == []
    assert other.joins().device == "other", "the token is over, but it was accepted in time"
    assert Newcomer(door, token, "late").refused() == "token_expired"
    now.value += 91 * 86_400
    fleet.roster.admission.tidy()
    assert listed(app, fleet, "applicants") == []


def test_what_a_stranger_calls_itself_is_shown_only_if_it_could_be_a_name(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    cam = Newcomer(door, token, "\x1b[31mroot\x00")
    decide(app, fleet, cam.waits().applicant, "accept")
    assert [a["name"] for a in listed(app, fleet, "applicants")] == [""]
    assert cam.joins().device.startswith("device-")


def test_strangers_cannot_fill_the_list(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    for _ in range(3):
        Newcomer(door, token).waits()
    assert Newcomer(door, token).refused() == "token_used"
    assert len(listed(app, fleet, "applicants")) == 3


def test_a_reply_that_was_lost_is_given_again_after_the_token_is_over(
    app: httpx.Client, door: httpx.Client, fleet: Service, now: Now
) -> None:
    secret = new_token(app, fleet, uses=1, approval_s=None)
    cam = Newcomer(door, secret)
    certificate = cam.joins().certificate
    now.value += 10_000
    assert cam.joins().certificate == certificate
    assert Newcomer(door, secret).refused() == "token_expired"


def expect(app: httpx.Client, fleet: Service, *devices: dict[str, Any]) -> httpx.Response:
    body = {"devices": list(devices)}
    return app.post(f"{API}/preauthorised", json=body, headers=auth(fleet))


def test_a_device_that_is_expected_comes_in_at_once(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    app.post(f"{API}/groups", json={"id": "yard"}, headers=auth(fleet))
    by_key, by_name = Newcomer(door, token, "whatever"), Newcomer(door, token, "sn-2")
    answer = expect(
        app,
        fleet,
        {"id": "gate", "fingerprint": by_key.fingerprint, "group": "yard", "tags": {"pole": "3"}},
        {"id": "sn-2", "group": "lab"},
    )
    assert answer.json() == {"added": 2}
    assert by_key.joins().device == "gate"
    assert by_name.joins().device == "sn-2"
    found = device(app, fleet, "gate")
    assert (found["group"], found["tags"]) == ("yard", {"pole": "3"})
    Newcomer(door, token, "sn-2").waits()  # an entry is good for one device
    assert {e["used_by"] for e in listed(app, fleet, "preauthorised", used=True)} == {
        "gate", "sn-2",
    }  # fmt: skip
    assert listed(app, fleet, "preauthorised", used=False) == []


def test_who_claims_the_name_of_an_expected_key_waits(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    expect(app, fleet, {"id": "gate", "fingerprint": "0" * 64, "group": "lab"})
    Newcomer(door, token, "gate").waits()


def test_a_no_outweighs_a_name_on_a_list_but_not_a_key(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    cam = Newcomer(door, token)
    decide(app, fleet, cam.waits().applicant, "reject")
    expect(app, fleet, {"id": "cam", "group": "lab"})
    assert cam.refused() == "enrolment_rejected"
    expect(app, fleet, {"fingerprint": cam.fingerprint, "group": "lab"})
    assert cam.joins().device == "cam"


def test_the_key_of_a_revoked_device_lets_nobody_in(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    cam = Newcomer(door, token)
    decide(app, fleet, cam.waits().applicant, "accept")
    cam.joins()
    fleet.revocation.revoke("cam")
    assert cam.refused() == "device_revoked"


def test_a_plain_token_leads_into_its_own_group_only(
    app: httpx.Client, door: httpx.Client, fleet: Service
) -> None:
    secret = new_token(app, fleet, approval_s=None)
    app.post(f"{API}/groups", json={"id": "yard"}, headers=auth(fleet))
    expect(app, fleet, {"id": "sn-2", "group": "yard", "tags": {"a": "b"}})
    assert Newcomer(door, secret, "sn-2").joins().group == "lab"
    assert listed(app, fleet, "preauthorised", used=True) == []


def test_who_waits_already_comes_in_once_it_is_expected(
    app: httpx.Client, door: httpx.Client, fleet: Service, token: str
) -> None:
    cam = Newcomer(door, token)
    cam.waits()
    expect(app, fleet, {"fingerprint": cam.fingerprint, "group": "lab"})
    assert cam.joins().device == "cam"
    assert [a["state"] for a in listed(app, fleet, "applicants")] == ["enrolled"]
    assert [t["used"] for t in listed(app, fleet, "tokens")] == [1], "counted once"


def test_a_list_is_taken_whole_or_not_at_all(app: httpx.Client, fleet: Service, token: str) -> None:
    good = {"id": "sn-1", "group": "lab", "tags": {"a": "1"}}
    for reason, wrong in {
        "bad_entry": {"group": "lab"},
        "unknown_group": {"id": "sn-2", "group": "nowhere"},
        "bad_tag": {"id": "sn-2", "group": "lab", "tags": {"a b": "1"}},
    }.items():
        assert expect(app, fleet, good, wrong).json()["reason"] == reason
    assert expect(app, fleet, {"id": "../x", "group": "lab"}).json()["reason"] == "bad_entry"
    assert listed(app, fleet, "preauthorised") == []
    expect(app, fleet, good)
    expect(app, fleet, good | {"tags": {"a": "2"}})
    (entry,) = listed(app, fleet, "preauthorised")
    assert (entry["tags"], entry["by"]) == ({"a": "2"}, "operator"), "the later word counts"
    url = f"{API}/preauthorised/{entry['id']}"
    assert app.delete(url, headers=auth(fleet)).status_code == 204
    assert problem(app.delete(url, headers=auth(fleet)), 404)["reason"] == "unknown_entry"
    with pytest.raises(UsageError):
        fleet.roster.admission.expect([Expected("nowhere", "x")], "")


# -- the agent's side, over TLS


@pytest.fixture
def home(fleet: Service, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A device's configuration, and what its enrolment is called with."""
    world = publisher(fleet.settings.data)
    world.release()
    (tmp_path / "agent.yaml").write_text(f"data_dir: {tmp_path / 'device'}\n")
    (tmp_path / "root.json").write_bytes(fleet.images.metadata("1.root.json") or b"")
    with listening(fleet) as port:
        yield {"config": tmp_path / "agent.yaml", "root": tmp_path / "root.json",
               "url": f"https://127.0.0.1:{port}"}  # fmt: skip


def enroll(home: dict[str, Any], *words: str) -> Result:
    head = ["--config", str(home["config"]), "enroll"]
    return CliRunner().invoke(edgepack_agent, [*head, *words], catch_exceptions=True)


def text_of(fleet: Service, home: dict[str, Any]) -> str:
    from edgepack_fleet.adapters.tables import GroupRow
    from edgepack_fleet.enrolment import Offer, token_text

    with fleet.database.write() as session:
        session.merge(GroupRow(id="lab", created=0.0, filter=""))
    made = fleet.enrolment.offer(Offer("lab", 600, 5, approval_s=600))
    return token_text(made, home["url"], fleet.pki.ca_sha256)


def test_the_agent_waits_politely_and_keeps_its_key(
    app: httpx.Client, fleet: Service, home: dict[str, Any]
) -> None:
    words = (text_of(fleet, home), "--root", str(home["root"]), "--name", "cam")
    first = enroll(home, *words)
    assert getattr(first.exception, "reason", "") == "approval_pending", first.output
    assert getattr(first.exception, "exit_code", 0) == 7
    (applicant,) = listed(app, fleet, "applicants")
    assert applicant["id"] in first.exception.why  # type: ignore[union-attr]
    second = enroll(home, *words, "--wait", "0.01")
    assert getattr(second.exception, "reason", "") == "approval_pending"
    assert len(listed(app, fleet, "applicants")) == 1, "the same key asks again"
    decide(app, fleet, applicant["id"], "accept")
    third = enroll(home, *words)
    assert third.exit_code == 0, third.exception
    assert "enrolled as cam" in third.output
    left = {path.name for path in (home["config"].parent / "device").iterdir()}
    assert not [name for name in left if name.startswith(".identity")]


def test_the_agent_that_waits_is_accepted_meanwhile(
    app: httpx.Client, fleet: Service, home: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack_fleet.admission.RETRY_S", 0)
    words = (text_of(fleet, home), "--root", str(home["root"]), "--wait", "60")
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(enroll(home, *words)))
    thread.start()
    (applicant,) = wait("the applicant", lambda: listed(app, fleet, "applicants"))
    decide(app, fleet, applicant["id"], "accept")
    thread.join(60)
    assert found[0].exit_code == 0, found[0].exception


def test_a_key_is_made_beforehand_for_a_list(
    app: httpx.Client, fleet: Service, home: dict[str, Any]
) -> None:
    made = enroll(home, "--prepare")
    fingerprint = made.output.strip()
    assert len(fingerprint) == 64
    assert enroll(home, "--prepare").output.strip() == fingerprint
    token = text_of(fleet, home)
    expect(app, fleet, {"id": "gate", "fingerprint": fingerprint, "group": "lab"})
    joined = enroll(home, token, "--root", str(home["root"]))
    assert "enrolled as gate" in joined.output, joined.exception
    again = enroll(home, "--prepare")
    assert getattr(again.exception, "reason", "") == "already_enrolled"
