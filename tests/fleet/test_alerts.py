"""Alerts from a value beyond its limit to a mail in somebody's inbox."""

import queue
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from edgepack.errors import UsageError
from edgepack_fleet.adapters.alert_files import load_alerts
from edgepack_fleet.adapters.alert_tables import AlertRow, NoticeRow
from edgepack_fleet.adapters.tables import ChangeRow, DeviceRow, JobRow, RolloutRow
from edgepack_fleet.alerting import DEADLINE_S, Alerts
from edgepack_fleet.core.alert_rules import METRICS
from edgepack_fleet.core.alerts import Alert, Reading, Rule, nobody_runs, step
from edgepack_fleet.service import Service
from fleet_rig import enrol, free_port, house
from rest_rig import Now, auth, problem

API = "/api/v1"
RULE = Rule("Hot", "error_rate", ">", 0.5, 0.3, for_s=60, repeat_s=600, missing_s=120)
LOOKS = st.lists(
    st.tuples(st.sampled_from([1.0, 10.0, 59.0, 61.0, 700.0, -30.0]),
              st.sampled_from([0.1, 0.3, 0.4, 0.5, 0.6, 0.9, None])),
    max_size=60,
)  # fmt: skip


@given(LOOKS, st.data())
def test_what_is_told_of_an_alert_makes_sense(
    looks: list[tuple[float, float | None]], data: st.DataObject
) -> None:
    alert, now, open_, bad_since = Alert(), 1e6, False, None
    for seconds, value in looks:
        now += seconds
        if data.draw(st.sampled_from([False] * 5 + [True])):
            alert = Alert(
                **{f: getattr(alert, f) for f in Alert.__slots__} | {"silenced": now + 50}
            )
        before, (alert, told) = alert, step(RULE, alert, value, now)
        bad = value is not None and value > RULE.limit
        bad_since = None if not bad and before.state != "firing" else bad_since
        bad_since = now if bad and bad_since is None else bad_since and min(bad_since, now)
        if alert.state == "firing" and before.state != "firing":
            assert bad
            assert bad_since is not None
            assert now - bad_since >= RULE.for_s, "only after it lasted"
        if before.state == "firing" and alert.state != "firing":
            assert alert.state == "resolved"
            assert value is None or value <= RULE.clear, "not while it is between both limits"
        if told in {"firing", "repeat"}:
            assert now >= alert.silenced
            assert alert.state == "firing"
            assert open_ == (told == "repeat"), "once, then as a repetition"
            open_ = True
        if told == "resolved":
            assert open_, "nobody hears of the end of what he has not heard of"
        if alert.state != "firing":
            open_ = False
    # Whatever happened, it ends when all is well, or nothing is known any more.
    for value, pause in ((0.0, 1.0), (None, 4000.0)):
        ended = alert
        for _ in range(4):
            now += pause
            ended, _ = step(RULE, ended, value, now)
        assert ended.state in {"inactive", "resolved"}


def test_an_alert_that_is_taken_up_is_not_repeated() -> None:
    alert, _ = step(RULE, Alert(), 0.9, 0.0)
    alert, told = step(RULE, alert, 0.9, 60.0)
    assert (alert.state, told) == ("firing", "firing")
    assert step(RULE, alert, 0.9, 660.0)[1] == "repeat"
    taken = Alert(**{f: getattr(alert, f) for f in Alert.__slots__} | {"acknowledged": "me"})
    assert step(RULE, taken, 0.9, 660.0)[1] is None
    assert step(RULE, taken, 0.1, 660.0)[1] == "resolved"


def test_the_rules_of_the_fleet_can_be_read_and_each_metric_is_watched() -> None:
    found = load_alerts(None)
    assert {rule.metric for rule in found.rules} == set(METRICS)
    assert found.mail is None


def test_the_file_in_the_reference_can_be_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "monitoring.md"
    path = tmp_path / "alerts.yml"
    path.write_text(page.read_text().split("```yaml\n")[1].split("```")[0])
    found = load_alerts(path)
    ours = {rule.name for rule in load_alerts(None).rules}
    assert {rule.name for rule in found.rules} == ours | {"ErrorsInTheLab"}
    assert found.mail is not None
    assert found.mqtt is not None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rules: [{name: A, metric: speed, above: 1}]", "metrics are"),
        ("rules: [{name: A, metric: error_rate}]", "either"),
        ("rules: [{name: A, metric: error_rate, above: 1, below: 2}]", "either"),
        ("rules: [{name: A, metric: error_rate, above: 1, clear: 2}]", "beyond"),
        ("rules: [{name: A, metric: error_rate, above: 1, fr: 5m}]", "fr"),
        ("rules: [{name: A, metric: error_rate, above: 1, for: soon}]", "for"),
        ("mail: {host: mail.example, from: a@b, to: [c@d], tls: none}", "TLS"),
        ("mqtt: {host: broker.example, tls: false}", "TLS"),
        ("mail: {host: x, from: a@b, to: []}", "length"),
        ("[1, 2]", "object"),
        ("{", "parsing"),
    ],
)
def test_what_is_no_file_of_rules_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "alerts.yml"
    path.write_text(text)
    with pytest.raises(UsageError, match=str(path)) as caught:
        load_alerts(path)
    assert why in caught.value.why


def alerts_of(fleet: Service, path: Path, text: str, now: Now, values: list[Reading]) -> Alerts:
    path.write_text(text)
    return Alerts(fleet.database, load_alerts(path), lambda _: values, now)


def states(fleet: Service) -> dict[str, str]:
    with fleet.database.read() as session:
        return {f"{r.rule} {r.labels.get('group', '')}".strip(): r.state
                for r in session.scalars(select(AlertRow))}  # fmt: skip


HOT = "defaults: false\nrules: [{name: Hot, metric: error_rate, above: 0.5, clear: 0.3, for: 1m}]\n"


def test_alerts_are_told_over_rest_webhooks_and_stream(
    fleet: Service, app: httpx.Client, tmp_path: Path, now: Now
) -> None:
    values = [Reading("error_rate", {"group": g}, 0.9) for g in ("lab", "site")]
    fleet.alerts = watch = alerts_of(fleet, tmp_path / "a.yml", HOT, now, values)
    watch.look()
    assert states(fleet) == {"Hot lab": "pending", "Hot site": "pending"}
    now.value += 60
    watch.look()
    assert states(fleet) == {"Hot lab": "firing", "Hot site": "firing"}
    headers = auth(fleet)
    listed = app.get(f"{API}/alerts?state=firing", headers=headers).json()["items"]
    lab = next(a for a in listed if a["labels"] == {"group": "lab"})
    done = app.post(f"{API}/alerts/{lab['id']}/acknowledge", headers=headers).json()
    assert done["acknowledged_by"] == "operator"
    site = next(a for a in listed if a["labels"] == {"group": "site"})
    quiet = app.post(f"{API}/alerts/{site['id']}/silence", json={"seconds": 86400}, headers=headers)
    assert quiet.json()["silenced_until"] == now.value + 86400
    now.value += 5 * 3600
    watch.look()
    values.clear()
    values.append(Reading("error_rate", {"group": "lab"}, 0.1))
    watch.look()
    now.value += 2 * 3600
    watch.look()
    assert states(fleet) == {"Hot site": "resolved"}, "what says nothing for an hour ends"
    with fleet.database.read() as session:
        told = [(c.type, c.data["labels"]["group"]) for c in session.scalars(select(ChangeRow))
                if c.type.startswith("edgepack.alert")]  # fmt: skip
    kinds = ("edgepack.alert.firing", "edgepack.alert.resolved")
    assert sorted(told) == [(kind, group) for kind in kinds for group in ("lab", "site")]
    gone = app.post(f"{API}/alerts/none/acknowledge", headers=headers)
    assert problem(gone, 404)["reason"] == "unknown_alert"
    rules = app.get(f"{API}/alert-rules", headers=headers).json()["items"]
    assert [(r["name"], r["op"], r["clear"]) for r in rules] == [("Hot", ">", 0.3)]


SLOW = "defaults: false\nrules: [{name: Slower, metric: p95_ratio, above: 1.5, for: 1m}]\n"


def test_an_alert_ends_when_nobody_runs_the_release_any_more(
    fleet: Service, app: httpx.Client, tmp_path: Path, now: Now
) -> None:
    for name in ("cam-1", "cam-2"):
        enrol(fleet, name)
    labels = {"release": "digits@1.0.0", "group": "lab"}
    values = [Reading("p95_ratio", labels, 1.8349)]
    fleet.alerts = watch = alerts_of(fleet, tmp_path / "a.yml", SLOW, now, values)

    def run(**releases: str) -> None:
        with fleet.database.write() as session:
            for name, release in releases.items():
                session.get_one(DeviceRow, name.replace("_", "-")).bundle = release
        now.value += 60
        watch.look()

    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = app.get(f"{API}/alerts", headers=auth(fleet)).json()["items"]
        return found

    run(cam_1="digits@1.0.0", cam_2="digits@1.0.0")
    run(cam_1="digits@2.0.0")
    (one,) = listed()
    assert (one["state"], one["reading"], one["reason"]) == ("firing", "1.83 times", "")
    run(cam_2="digits@2.0.0")
    (one,) = listed()
    why = "no device of lab runs digits@1.0.0 any more"
    assert (one["state"], one["reason"]) == ("resolved", why)
    with fleet.database.read() as session:
        query = select(ChangeRow).where(ChangeRow.type == "edgepack.alert.resolved")
        assert session.scalars(query).one().data["reason"] == why
    run()
    run()
    assert listed()[0]["state"] == "resolved", "what was measured of it before says no more"
    run(cam_1="digits@1.0.0")
    run()
    assert (listed()[0]["state"], listed()[0]["reason"]) == ("firing", "")


def test_a_release_on_probation_is_watched(fleet: Service, tmp_path: Path, now: Now) -> None:
    """A device says that it runs a model only after that, which may take a day."""
    enrol(fleet, "cam-1")
    labels = {"release": "digits@1.0.0", "group": "lab"}
    values = [Reading("p95_ratio", labels, 1.8)]
    watch = alerts_of(fleet, tmp_path / "a.yml", SLOW, now, values)

    def looked() -> list[str]:
        for _ in range(3):
            now.value += 60
            watch.look()
        with fleet.database.read() as session:
            return list(session.scalars(select(AlertRow.state)))

    assert looked() == []
    with fleet.database.write() as session:
        session.add(
            RolloutRow(id="r1", number=1, group_id="lab", release="digits@1.0.0", variants=[],
                       waves="100%", policy={}, forgiven=[], state="running", created=0.0,
                       updated=0.0)
        )  # fmt: skip
        session.flush()
        session.add(
            JobRow(id="r1-cam", device_id="cam-1", rollout_id="r1", wave=0, release="digits@1.0.0",
                   target="models/m/1.0.0/onnx-int8.json", status="IN_PROGRESS", detail={},
                   probation_s=5, timeout_s=60, created=0.0, updated=0.0)
        )  # fmt: skip
    assert looked() == ["firing"]


def test_ways_back_are_told_of_a_release_that_nobody_runs() -> None:
    labels = {"release": "digits@2.0.0"}
    assert nobody_runs("rollback_rate", labels, set()) == ""
    assert nobody_runs("offline_share", {"group": "lab"}, set()) == ""
    assert nobody_runs("drift_features", labels, {("digits@2.0.0", "lab")}) == ""
    assert nobody_runs("drift_features", labels, set()) == "no device runs digits@2.0.0 any more"


class Inbox:
    """Keeps what a mail server takes."""

    def __init__(self) -> None:
        self.mails: queue.Queue[Envelope] = queue.Queue()

    async def handle_DATA(  # noqa: N802  its name is the protocol's
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        self.mails.put(envelope)
        return "250 OK"


@pytest.fixture
def mail(tmp_path: Path) -> Iterator[tuple[Controller, Inbox, Path]]:
    """A mail server that wants STARTTLS and a password, and the certificate it shows."""
    cert, key = tmp_path / "mail.pem", tmp_path / "mail.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-keyout", key, "-out", cert, "-days", "2", "-nodes", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    inbox = Inbox()

    def check(*words: Any) -> AuthResult:
        return AuthResult(success=words[-1].password == b"secret" and words[-1].login == b"fleet")

    server = Controller(
        inbox, hostname="127.0.0.1", port=free_port(), tls_context=context, require_starttls=True,
        authenticator=check, auth_required=True,
    )  # fmt: skip
    server.start()
    yield server, inbox, cert
    server.stop()


def test_a_mail_tells_of_all_that_happened_at_once_and_again_until_it_is_taken(
    fleet: Service, tmp_path: Path, now: Now, mail: tuple[Controller, Inbox, Path]
) -> None:
    server, inbox, cert = mail
    (tmp_path / "password").write_text("wrong\n")
    more = f"user: fleet, password_file: {tmp_path / 'password'}, ca_file: {cert}"
    to = "from: fleet@example.org, to: [a@example.org, b@example.org]"
    text = f"{HOT}mail: {{host: localhost, port: {server.port}, {to}, {more}}}\n"
    values = [Reading("error_rate", {"group": g}, 0.9) for g in ("lab", "site")]
    watch = alerts_of(fleet, tmp_path / "a.yml", text, now, values)
    watch.look()
    now.value += 60
    watch.look()
    watch.send()
    with fleet.database.read() as session:
        (waiting,) = session.scalars(select(NoticeRow))
    assert waiting.tries == 1
    assert inbox.mails.empty()
    (tmp_path / "password").write_text("secret\n")
    watch.send()
    assert inbox.mails.empty(), "not before its time"
    now.value += 60
    watch.send()
    envelope = inbox.mails.get(timeout=10)
    content = str(envelope.content, "utf-8") if isinstance(envelope.content, bytes) else ""
    assert envelope.rcpt_tos == ["a@example.org", "b@example.org"]
    assert "[edgepack] 2 alerts: warning: Hot fires: group lab" in content
    assert "Hot fires: group site (now 90 %)" in content
    watch.look()
    watch.send()
    assert inbox.mails.empty(), "once"
    watch = alerts_of(fleet, tmp_path / "b.yml", text.replace(str(server.port), str(free_port())),
                      now, values)  # fmt: skip
    values[:] = [Reading("error_rate", {"group": "lab"}, 0.0)]
    watch.look()
    watch.send()
    now.value += DEADLINE_S
    watch.send()
    with fleet.database.read() as session:
        assert session.scalars(select(NoticeRow)).all() == [], "given up after a day"


@pytest.mark.mosquitto
def test_the_broker_of_the_site_is_told(fleet: Service, tmp_path: Path, now: Now) -> None:
    with house(tmp_path) as (port, heard, _client):
        text = HOT.replace("1m", "0s") + f"mqtt: {{host: 127.0.0.1, port: {port}, tls: false}}\n"
        values = [Reading("error_rate", {"group": "lab"}, 0.9)]
        watch = alerts_of(fleet, tmp_path / "a.yml", text, now, values)
        watch.look()
        watch.send()
        message = heard.get(timeout=10)
        assert message.topic == "edgepack/alerts"
        assert b'"rule": "Hot"' in message.payload
        with fleet.database.read() as session:
            assert session.scalars(select(NoticeRow)).all() == []


def test_the_fleet_measures_what_its_rules_want(fleet: Service, now: Now) -> None:
    for n in range(4):
        enrol(fleet, f"cam-{n}")
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam-0").online = True
    fleet.alerts.look()
    pending = states(fleet)
    assert pending["DevicesOffline lab"] == "pending"
    assert pending["BrokerDown"] == "pending"
    assert "CertificateEnds lab" not in pending
    now.value += 85 * 86400
    fleet.alerts.look()
    assert states(fleet)["CertificateEnds lab"] == "pending"
    assert states(fleet)["DevicesOffline lab"] == "firing"
    with fleet.database.write() as session:
        for row in session.scalars(select(DeviceRow)):
            row.online = True
    fleet.alerts.look()
    assert states(fleet)["DevicesOffline lab"] == "resolved"
