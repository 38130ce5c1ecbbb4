"""`edgepack fleet ...` against a fleet that really listens."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from edgepack.cli import root
from edgepack.errors import EdgepackError, UsageError
from edgepack_fleet.access import bootstrap_token
from edgepack_fleet.adapters.device_tables import ApplicantRow
from edgepack_fleet.adapters.tables import DeviceRow, JobRow
from edgepack_fleet.core.expected import read_expected
from edgepack_fleet.service import Service
from edgepack_fleet.web.app import main_app
from fleet_rig import enrol, publisher, serving

Run = Callable[..., str]


@pytest.fixture
def run(fleet: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `edgepack fleet` and returns what it prints on stdout."""
    publisher(fleet.settings.data).release()
    secret = (fleet.settings.data / "secret").read_bytes()
    with serving(main_app(fleet, "https://127.0.0.1:8443")) as port:
        monkeypatch.setenv("EDGEPACK_FLEET_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("EDGEPACK_FLEET_TOKEN", bootstrap_token(secret, "admin"))

        def call(*words: str) -> str:
            found = CliRunner().invoke(root, ["fleet", *words], catch_exceptions=True)
            if isinstance(found.exception, EdgepackError):
                raise found.exception
            assert found.exit_code == 0, found.output
            return found.stdout

        yield call


def as_json(run: Run, *words: str) -> Any:
    found = json.loads(run(*words, "--json"))
    assert found["schema"].startswith("edgepack.")
    return found


def refused(run: Run, *words: str) -> EdgepackError:
    with pytest.raises(EdgepackError) as caught:
        run(*words)
    return caught.value


# -- devices and groups


def test_devices_are_tagged_and_found(run: Run, fleet: Service) -> None:
    for name in ("cam-1", "cam-2", "cam-3"):
        enrol(fleet, name)
    said = run("devices", "set", "cam-1", "cam-2", "--tag", "site=berlin", "--tag", "pole=3=a")
    assert "cam-2: lab; pole=3=a, site=berlin" in said
    run("devices", "set", "cam-2", "--untag", "site", "--name", "Gate", "--notes", "on a pole")
    found = as_json(run, "devices", "list", "--filter", "tag.site=berlin")["devices"]
    assert [d["id"] for d in found] == ["cam-1"]
    shown = run("devices", "show", "cam-2")
    for word in ("Gate", "on a pole", "pole=3=a", "Nothing is wanted of it"):
        assert word in shown
    wrong = refused(run, "devices", "list", "--filter", "tag.site")
    assert (wrong.reason, wrong.exit_code) == ("bad_filter", 2)
    assert "character 9" in wrong.why
    assert refused(run, "devices", "set", "cam-1").exit_code == 2
    assert refused(run, "devices", "set", "cam-1", "cam-2", "--name", "x").exit_code == 2
    assert refused(run, "devices", "set", "cam-1", "--tag", "site").reason == "bad_tag"
    assert refused(run, "devices", "set", "nobody", "--name", "x").reason == "unknown_device"


def test_groups_of_both_kinds(run: Run, fleet: Service) -> None:
    enrol(fleet, "cam-1")
    assert run("groups", "create", "hot", "--filter", "tag.hot=yes").strip() == "hot"
    run("groups", "create", "night")
    run("groups", "add", "night", "cam-1")
    run("devices", "set", "cam-1", "--tag", "hot=yes")
    rows = {g["id"]: g for g in as_json(run, "groups", "list")["groups"]}
    assert [(rows[g]["devices"], rows[g]["filter"]) for g in ("hot", "night", "lab")] == [
        (1, "tag.hot=yes"), (1, None), (1, None),
    ]  # fmt: skip
    assert "tag.hot=yes" in run("groups", "show", "hot")
    assert "0 device(s)" in run("groups", "filter", "hot", "id=nobody")
    assert "0 device(s)" in run("groups", "remove", "night", "cam-1")
    assert "is deleted" in run("groups", "delete", "hot")
    assert refused(run, "groups", "delete", "lab").reason == "group_in_use"


def test_the_timeline_in_words(run: Run, fleet: Service) -> None:
    enrol(fleet, "cam-1")
    run("devices", "set", "cam-1", "--name", "Gate")
    assert "described it." in run("devices", "timeline", "cam-1")
    (entry,) = as_json(run, "devices", "timeline", "cam-1", "--kind", "audit")["entries"]
    assert entry["facts"]["action"] == "describe_device"


def test_there_is_no_broker_so_no_name_gets_free(run: Run, fleet: Service) -> None:
    enrol(fleet, "cam-1")
    assert refused(run, "devices", "decommission", "cam-1").exit_code == 7


# -- who may join


def applicant(fleet: Service, name: str) -> str:
    with fleet.database.write() as session:
        from edgepack_fleet.adapters.tables import EnrolToken

        token = session.scalars(select(EnrolToken)).first()
        assert token is not None
        session.add(
            ApplicantRow(id=f"a-{name}", token_id=token.id, fingerprint=name * 64, name=name,
                         group_id="lab", inventory={}, created=fleet.now(),
                         deadline=fleet.now() + 60, state="pending", by="", decided=None)
        )  # fmt: skip
    return f"a-{name}"


def test_people_decide_about_applicants(run: Run, fleet: Service) -> None:
    run("groups", "create", "lab")
    made = as_json(run, "tokens", "create", "--group", "lab", "--tag", "site=hall", "--approval")
    assert made["token"].startswith("ep1.")
    (token,) = as_json(run, "tokens", "list")["tokens"]
    assert (token["approval_s"], token["tags"]) == (86_400, {"site": "hall"})
    one, two = applicant(fleet, "a"), applicant(fleet, "b")
    assert one in run("devices", "pending")
    assert f"{one} (a) is accepted" in run("devices", "accept", one)
    partly = refused(run, "devices", "reject", one, two)
    assert (partly.exit_code, partly.reason) == (8, "wrong_state")
    assert refused(run, "devices", "reject", one).exit_code == 2
    assert as_json(run, "devices", "pending")["applicants"] == []
    states = {
        a["id"]: a["state"] for a in as_json(run, "devices", "pending", "--all")["applicants"]
    }
    assert states == {one: "accepted", two: "rejected"}


def test_a_list_of_devices_known_beforehand(run: Run, fleet: Service, tmp_path: Path) -> None:
    run("groups", "create", "lab")
    file = tmp_path / "devices.csv"
    file.write_text(f"serial,fingerprint,group,tag.site\nsn-1,,,hall\nsn-2,{'a' * 64},lab,\n")
    said = run("devices", "preauthorise", str(file), "--group", "lab")
    assert "2 device(s) are expected" in said
    listed = as_json(run, "devices", "preauthorised")["preauthorised"]
    assert sorted((e["device"], e["tags"].get("site")) for e in listed) == [
        ("sn-1", "hall"), ("sn-2", None),
    ]  # fmt: skip
    assert "sn-1" in run("devices", "preauthorised")
    words = [word for e in listed for word in ("--forget", e["id"])]
    assert as_json(run, "devices", "preauthorised", *words)["preauthorised"] == []
    file.write_text("id,group\nsn-1,nowhere\n")
    assert refused(run, "devices", "preauthorise", str(file)).reason == "unknown_group"
    file.write_bytes(b"\xff\xfe")
    assert refused(run, "devices", "preauthorise", str(file)).reason == "bad_list"
    assert refused(run, "devices", "preauthorise", str(tmp_path / "no")).reason == "bad_list"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("id\n", 1),
        ("group,tag.a\nlab,1", 1),
        ("id,colour\nx,red", 1),
        ("id,id\nx,y", 1),
        ("id,group\nx", 2),
        ("id,group\nx,lab\n\ny,", 4),
        ("id,group\n,lab", 2),
        ("fingerprint,group\nxyz,lab", 2),
        ('id,group\n"x,lab', 2),
    ],
)
def test_what_is_no_list_is_said_with_the_line(text: str, line: int) -> None:
    with pytest.raises(UsageError) as caught:
        read_expected(text)
    assert caught.value.reason == "bad_list"
    assert caught.value.why.startswith(f"line {line}:")


def test_lists_as_spreadsheets_write_them() -> None:
    colons = ":".join(["AB"] * 32)
    text = f"\ufeffid;fingerprint;group;tag.site\r\n cam ; {colons};lab;Halle 3\r\n;;;\r\n"
    assert read_expected(text) == [
        {"id": "cam", "fingerprint": "ab" * 32, "group": "lab", "tags": {"site": "Halle 3"}}
    ]


@given(st.text() | st.lists(st.sampled_from(["id", "group", ",", ";", "\n", '"', "tag.a", "x"]))
       .map("".join))  # fmt: skip
def test_any_text_is_a_list_or_is_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        found = read_expected(text, "lab")
        assert all(d["group"] and (d["id"] or d["fingerprint"]) for d in found)


# -- rollouts


def test_a_dry_run_says_who_would_get_what(run: Run, fleet: Service) -> None:
    for name in ("a", "b"):
        enrol(fleet, name)
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "a").online = True
    words = ("rollouts", "create", "digits@1.0.0", "--group", "lab", "--waves", "1,100%")
    parts = as_json(run, *words, "--dry-run")["devices"]
    assert [(p["device"], p["wave"], p["why"]) for p in parts] == [
        ("a", 0, ""), ("b", 1, "it is offline and gets it when it returns"),
    ]  # fmt: skip
    assert "it is offline" in run(*words, "--dry-run")
    assert as_json(run, "rollouts", "list")["rollouts"] == [], "nothing is made"


def test_a_rollout_is_replayed(run: Run, fleet: Service) -> None:
    enrol(fleet, "a")
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "a").online = True
    made = as_json(run, "rollouts", "create", "digits@1.0.0", "--group", "lab")["id"]
    fleet.rollouts.tick(0.0)
    told = as_json(run, "rollouts", "replay", made)["decisions"]
    assert [(d["by"], d["same"]) for d in told] == [("", True), ("admin", None)]
    assert "assign" in run("rollouts", "replay", made)
    with fleet.database.write() as session:
        from edgepack_fleet.adapters.tables import DecisionRow

        (row,) = session.scalars(select(DecisionRow).where(DecisionRow.digest != ""))
        row.actions = []
    differs = refused(run, "rollouts", "replay", made)
    assert (differs.exit_code, differs.reason) == (3, "decision_differs")
    assert refused(run, "rollouts", "replay", "r99").reason == "unknown_rollout"


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("22:00-04:00", {"from": "22:00", "to": "04:00"}),
        ("sat, sun;22:00-04:00", {"from": "22:00", "to": "04:00", "days": ["sat", "sun"]}),
        ("22:00-04:00;Europe/Berlin", {"from": "22:00", "to": "04:00", "zone": "Europe/Berlin"}),
        ("mon;1:00-02:00;UTC", None),
        ("someday;01:00-02:00", None),
        ("night", None),
        ("", None),
    ],
)
def test_windows(run: Run, fleet: Service, text: str, window: dict[str, Any] | None) -> None:
    enrol(fleet, "a")
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "a").online = True
    words = ("rollouts", "create", "digits@1.0.0", "--group", "lab", "--window", text)
    if window is None:
        assert refused(run, *words).reason == "bad_request"
        return
    made = as_json(run, *words)
    (kept,) = made["policy"]["windows"]
    assert window.items() <= kept.items()
    fleet.rollouts.tick(0.0)
    with fleet.database.read() as session:
        (job,) = session.scalars(select(JobRow))
        assert job.terms["windows"] == [kept]
