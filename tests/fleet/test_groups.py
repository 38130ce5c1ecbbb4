"""Groups, tags and filters, and which rollout a device follows that is in several groups."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.errors import UsageError
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow
from edgepack_fleet.core import tags
from edgepack_fleet.core.filters import FIELDS, parse_filter
from edgepack_fleet.core.fitting import Group, belongs
from edgepack_fleet.core.model import Policy
from edgepack_fleet.core.precedence import Claim, follows
from edgepack_fleet.membership import COLUMNS, fitting, seek
from edgepack_fleet.organising import Description, Organiser
from edgepack_fleet.rollouts import Plan
from edgepack_fleet.service import Service
from edgepack_fleet.web import schemas, views
from fleet_rig import enrol
from rest_rig import auth, problem
from rollout_rig import Bench, bench, published, to_revision

__all__ = ["bench", "published"]
API = "/api/v1"


# -- one device follows one rollout

NAMES = ("a", "b", "c", "d")
STATUSES = ("QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED")


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    priorities = draw(st.lists(st.integers(-2, 2), max_size=6))
    return [
        Claim(f"r{number}", draw(st.sampled_from(NAMES)), (priority, number), draw(st.booleans()))
        for number, priority in enumerate(priorities)
    ]


groups = st.frozensets(st.sampled_from(NAMES))
jobs = st.dictionaries(st.sampled_from([f"r{n}" for n in range(6)]), st.sampled_from(STATUSES))


@given(groups, jobs, claims())
def test_no_two_rollouts_may_give_a_device_something(
    inside: frozenset[str], given_jobs: dict[str, str], made: list[Claim]
) -> None:
    """A rollout may if it serves a group of the device and none that goes before has the device."""
    may = [
        claim
        for claim in made
        if claim.serves
        and claim.group in inside
        and follows(inside, given_jobs, [c for c in made if c.rank > claim.rank]) is None
    ]
    first = follows(inside, given_jobs, made)
    assert len(may) <= 1
    assert not may or may == [first]
    assert follows(inside, given_jobs, made[::-1]) == first, "in whatever order they are asked"


@given(groups, jobs, claims(), st.integers(-2, 2))
def test_a_higher_priority_wins_in_every_group(
    inside: frozenset[str], given_jobs: dict[str, str], made: list[Claim], priority: int
) -> None:
    for group in NAMES:
        top = Claim("top", group, (priority + 5, 99), serves=True)
        first = follows(inside, given_jobs, [*made, top])
        assert (first == top) is (group in inside)


@given(groups, claims())
def test_who_leaves_every_group_follows_nobody(inside: frozenset[str], made: list[Claim]) -> None:
    done = {claim.rollout: "SUCCEEDED" for claim in made}
    assert follows(frozenset(), done, made) is None
    first = follows(inside, {}, made)
    assert first is None or (first.serves and first.group in inside)


@given(st.sampled_from(["x", "y"]), st.integers(0, 100))
def test_a_filter_is_a_group_of_all_that_fit(site: str, ram: int) -> None:
    group = Group("g", parse_filter("tag.site=x and inventory.ram_mb>=50"))
    facts = {"tag.site": site, "inventory.ram_mb": ram, "group": frozenset({"lab"})}
    assert belongs(group, facts.get) is (site == "x" and ram >= 50)  # type: ignore[arg-type]
    assert belongs(Group("lab"), facts.get)  # type: ignore[arg-type]
    assert not belongs(Group("g"), facts.get)  # type: ignore[arg-type]


# -- rollouts to groups that overlap


def organiser(bench: Bench) -> Organiser:
    return Organiser(bench.database, lambda: bench.now)


def to(bench: Bench, group: str, release: str = "digits@1.0.0", **facts: Any) -> str:
    return bench.rollouts.plan(Plan(release, group, "100%", Policy(), **facts))


def everybody(session: Session) -> list[schemas.Device]:
    """Return every device as the interface shows it, by id."""
    return views.devices(session, session.scalars(select(DeviceRow).order_by(DeviceRow.id)).all())


def desired(bench: Bench) -> dict[str, str | None]:
    with bench.database.read() as session:
        return {device.id: device.desired for device in everybody(session)}


def test_a_rollout_to_a_filter_reaches_those_that_fit_and_those_that_come_to_fit(
    bench: Bench,
) -> None:
    bench.add("a", "b", "c")
    made = organiser(bench)
    made.create_group("berlin", "tag.site=berlin")
    made.describe("a", Description(tags={"site": "berlin"}))
    rollout = to(bench, "berlin")
    bench.tick()
    assert bench.jobs(rollout) == {"a": "QUEUED"}
    bench.set("a", "SUCCEEDED")
    bench.tick()
    assert bench.show(rollout).state == "completed"
    made.describe("b", Description(tags={"site": "berlin"}))
    bench.tick()
    assert bench.jobs(rollout) == {"a": "SUCCEEDED", "b": "QUEUED"}, "a late joiner"
    assert desired(bench) == {"a": "digits@1.0.0", "b": "digits@1.0.0", "c": None}


def test_late_joiners_of_a_filter_are_throttled_as_others(bench: Bench) -> None:
    bench.add(*(f"d{n}" for n in range(6)))
    made = organiser(bench)
    made.create_group("hot", "tag.hot=yes")
    made.describe("d0", Description(tags={"hot": "yes"}))
    policy = Policy(max_in_flight=2)
    rollout = bench.rollouts.plan(Plan("digits@1.0.0", "hot", "100%", policy))
    bench.tick()
    bench.set("d0", "SUCCEEDED")
    bench.tick()
    for number in range(1, 6):
        made.describe(f"d{number}", Description(tags={"hot": "yes"}))
    bench.tick()
    assert sorted(bench.jobs(rollout)) == ["d0", "d1", "d2"]


def test_who_leaves_a_filter_keeps_what_it_runs_and_gets_nothing_new(bench: Bench) -> None:
    bench.add("a", "b")
    made = organiser(bench)
    made.create_group("hot", "tag.hot=yes")
    for device in ("a", "b"):
        made.describe(device, Description(tags={"hot": "yes"}))
    first = to(bench, "hot")
    bench.tick()
    bench.set("a", "SUCCEEDED")
    bench.set("b", "SUCCEEDED")
    made.describe("a", Description(tags={"hot": None}))
    second = to(bench, "hot", "digits@2.0.0")
    bench.tick()
    assert bench.jobs(first) == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert bench.jobs(second) == {"b": "QUEUED"}
    assert desired(bench) == {"a": "digits@1.0.0", "b": "digits@2.0.0"}


def test_a_job_that_was_not_taken_up_is_withdrawn_from_who_leaves(bench: Bench) -> None:
    bench.add("a", "b")
    made = organiser(bench)
    made.create_group("hot", "tag.hot=yes")
    made.describe("a", Description(tags={"hot": "yes"}))
    rollout = to(bench, "hot")
    bench.tick()
    made.describe("a", Description(tags={"hot": "no"}))
    bench.tick(120)
    assert bench.jobs(rollout) == {}


def test_in_two_groups_the_priority_decides_then_the_newer(bench: Bench) -> None:
    bench.add("a", "b")
    made = organiser(bench)
    made.create_group("night")
    made.create_group("fits", "id=a")
    made.add("night", ["a"])
    high = to(bench, "night", "digits@2.0.0", priority=5)
    low = to(bench, "lab")
    newer = to(bench, "fits")
    bench.tick()
    assert (bench.jobs(high), bench.jobs(low)) == ({"a": "QUEUED"}, {"b": "QUEUED"})
    assert bench.jobs(newer) == {}
    assert desired(bench) == {"a": "digits@2.0.0", "b": "digits@1.0.0"}
    bench.rollouts.cancel(high)
    bench.tick()
    assert bench.jobs(newer) == {"a": "QUEUED"}, "the newer of those that are left"
    assert bench.jobs(low) == {"b": "QUEUED"}


def test_a_device_that_moves_on_leaves_nothing_behind(bench: Bench) -> None:
    bench.add("a")
    bench.add("b", group="yard")
    made = organiser(bench)
    made.add("yard", ["a"])
    for group in ("yard", "lab"):
        made.describe("a", Description(group=group))
    with bench.database.read() as session:
        assert [d.groups for d in everybody(session)] == [["lab"], ["yard"]]


def test_a_device_moves_to_another_group_and_follows_that_one(bench: Bench) -> None:
    bench.add("a")
    bench.add("b", group="yard")
    old = to(bench, "yard")
    bench.tick()
    bench.set("b", "SUCCEEDED")
    bench.tick()
    new = to(bench, "lab", "digits@2.0.0")
    bench.tick()
    bench.set("a", "SUCCEEDED")
    bench.tick()
    organiser(bench).describe("a", Description(group="yard"))
    bench.tick()
    assert bench.jobs(old) == {"a": "QUEUED", "b": "SUCCEEDED"}
    assert bench.jobs(new) == {"a": "SUCCEEDED"}
    assert desired(bench) == {"a": "digits@1.0.0", "b": "digits@1.0.0"}


def test_what_cannot_be_arranged_is_said(bench: Bench) -> None:
    bench.add("a")
    made = organiser(bench)
    made.create_group("all", "id=*")
    for reason, change in {
        "bad_filter": lambda: made.create_group("x", "nonsense"),
        "exists": lambda: made.create_group("lab"),
        "unknown_group": lambda: made.add("nowhere", ["a"]),
        "filter_group": lambda: made.add("all", ["a"]),
        "unknown_device": lambda: made.add("lab", ["a", "nobody"]),
        "home_group": lambda: made.remove("lab", ["a"]),
        "not_a_filter": lambda: made.refilter("lab", "id=*"),
        "bad_tag": lambda: made.describe("a", Description(tags={"": "x"})),
        "group_in_use": lambda: made.delete_group("lab"),
    }.items():
        with pytest.raises(UsageError) as caught:
            change()
        assert caught.value.reason == reason
    with pytest.raises(UsageError) as caught:
        made.describe("a", Description(group="all"))
    assert caught.value.reason == "filter_group"
    made.delete_group("all")
    with pytest.raises(UsageError, match="no group"):
        made.delete_group("all")


def test_the_migration_goes_both_ways_with_data(bench: Bench) -> None:
    bench.add("a")
    made = organiser(bench)
    made.create_group("hot", "tag.hot=yes")
    made.create_group("night")
    made.add("night", ["a"])
    made.describe("a", Description(tags={"hot": "yes"}, name="Gate"))
    rollout = to(bench, "hot")
    bench.tick()
    to_revision("0004", bench.database)
    bench.database.migrate()
    assert bench.jobs(rollout) == {"a": "QUEUED"}
    with bench.database.read() as session:
        (device,) = everybody(session)
        assert (device.groups, device.tags, device.name) == (["lab"], {}, "")
        assert [g.filter for g in views.groups(session, ["hot", "lab", "night"])] == [None] * 3


keys = st.from_regex(r"[a-c]{1,2}", fullmatch=True)


@given(st.dictionaries(keys, st.text("xyz", min_size=1)),
       st.dictionaries(keys, st.none() | st.text("xyz", min_size=1)))  # fmt: skip
def test_tags_after_a_change(before: dict[str, str], changes: dict[str, str | None]) -> None:
    after = tags.changed(before, changes)
    for key in before | changes:
        assert after.get(key) == changes.get(key, before.get(key))
    assert list(after) == sorted(after)


@pytest.mark.parametrize(
    "wrong",
    [{"": "x"}, {"a b": "x"}, {"a": ""}, {"a": "x" * 257}, {"a": "\n"}, {"k" * 64: "x"},
     {"a.": "x"}, {f"k{n}": "x" for n in range(33)}],
)  # fmt: skip
def test_a_tag_has_bounds(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        tags.checked(wrong)
    assert caught.value.reason == "bad_tag"


# -- over REST


def ask(app: httpx.Client, fleet: Service, path: str, **query: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        params = query | ({"cursor": cursor} if cursor else {})
        page = app.get(f"{API}/{path}", params=params, headers=auth(fleet)).json()
        found += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            return found


@pytest.fixture
def cameras(fleet: Service) -> Service:
    """Nine devices: even ones in Berlin, those from 5 on with more memory, one revoked."""
    with fleet.database.write() as session:
        session.add_all([GroupRow(id=name, created=0.0) for name in ("lab", "yard")])
        session.flush()
        for number in range(9):
            session.add(
                DeviceRow(
                    id=f"d{number}", group_id="lab", enrolled=0.0, certificate_serial="1",
                    seen=float(number % 3), online=number % 2 == 0,
                    tags={"site": "berlin"} if number % 2 == 0 else {},
                    inventory={"ram_mb": 4096 if number >= 5 else 1024,
                               "runtimes": {"openvino": "2025.4.0"}},
                    revoked=5.0 if number == 8 else None,
                )
            )  # fmt: skip
    return fleet


def test_lists_take_a_filter_and_pages_of_any_size(app: httpx.Client, cameras: Service) -> None:
    text = "target=openvino and tag.site=berlin and inventory.ram_mb>=2048 and not revoked=true"
    assert ask(app, cameras, "devices", filter=text) == ["d6"]
    wanted = "online=true or inventory.ram_mb>2000"
    whole = ask(app, cameras, "devices", filter=wanted, sort="seen")
    assert sorted(whole) == ["d0", "d2", "d4", "d5", "d6", "d7", "d8"]
    for limit in (1, 2, 3, 7):
        assert ask(app, cameras, "devices", filter=wanted, sort="seen", limit=limit) == whole
        turned = ask(app, cameras, "devices", filter=wanted, sort="-seen", limit=limit)
        assert turned == whole[::-1]
    assert ask(app, cameras, "devices", filter=wanted, online=False) == ["d5", "d7"]
    url, headers = f"{API}/devices", auth(cameras)
    wrong = problem(app.get(url, params={"filter": "site=berlin"}, headers=headers), 400)
    assert wrong["reason"] == "bad_filter"
    assert "character 1," in wrong["why"]


def test_a_filter_means_the_same_whatever_is_read_for_it(cameras: Service) -> None:
    assert set(COLUMNS) == {field.partition(".")[0] for field in FIELDS}
    values = ("d1", "lab", "true", "openvino", "berlin", "4096", "x")
    fields = ("inventory.ram_mb", "inventory.runtimes", "tag.site", *COLUMNS)
    with cameras.database.read() as session:
        rows = session.scalars(select(DeviceRow).order_by(DeviceRow.id)).all()
        for field in (f for f in fields if f in FIELDS or "." in f):
            for value in values:
                wanted = parse_filter(f"{field}={value}")
                found = [row.id for row in seek(session, wanted)]
                assert found == [row.id for row in fitting(session, wanted, rows)], field


def test_groups_over_rest(app: httpx.Client, cameras: Service) -> None:
    headers = auth(cameras)

    def post(path: str, body: Any, status: int = 200) -> dict[str, Any]:
        answer = app.post(f"{API}/{path}", json=body, headers=headers)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    made = post("groups", {"id": "big", "filter": "inventory.ram_mb>=2048"}, 201)
    assert (made["filter"], made["devices"], made["online"]) == ("inventory.ram_mb>=2048", 4, 2)
    assert ask(app, cameras, "devices", group="big", limit=2) == ["d5", "d6", "d7", "d8"]
    post("groups/big/filter", {"filter": "group=yard"})
    assert post("groups/yard/add", {"devices": ["d1", "d2", "d1"]})["devices"] == 2
    assert ask(app, cameras, "devices", group="big") == ["d1", "d2"]
    assert ask(app, cameras, "devices", group="yard") == ["d1", "d2"]
    shown = app.get(f"{API}/devices/d1", headers=headers).json()
    assert (shown["group"], shown["groups"]) == ("lab", ["big", "lab", "yard"])
    assert post("groups/yard/remove", {"devices": ["d1"]})["devices"] == 1
    post("groups/lab/remove", {"devices": ["d1"]}, 409)
    post("groups/big/add", {"devices": ["d1"]}, 409)
    post("tokens", {"group": "big"}, 409)
    assert app.delete(f"{API}/groups/big", headers=headers).status_code == 204
    assert app.delete(f"{API}/groups/lab", headers=headers).status_code == 409
    assert app.delete(f"{API}/groups/yard", headers=headers).status_code == 204, "d2 only leaves"
    assert ask(app, cameras, "groups", sort="-id") == ["lab"]


def test_a_device_is_described(app: httpx.Client, cameras: Service) -> None:
    url, headers = f"{API}/devices/d1/describe", auth(cameras)
    body = {"name": "Gate 3", "notes": "on a pole", "tags": {"site": "köln", "a/b": "1"}}
    found = app.post(url, json=body, headers=headers).json()
    assert {name: found[name] for name in body} == body
    found = app.post(url, json={"tags": {"site": None}, "group": "yard"}, headers=headers).json()
    assert (found["tags"], found["name"], found["groups"]) == ({"a/b": "1"}, "Gate 3", ["yard"])
    assert ask(app, cameras, "devices", filter='name="Gate 3" and tag.a/b=1') == ["d1"]
    for odd in ({"name": "a\x00"}, {"name": "a\nb"}, {"notes": "\x00"}, {"colour": "red"}):
        assert problem(app.post(url, json=odd, headers=headers), 400)["reason"] == "bad_request"
    wrong = app.post(url, json={"tags": {"a b": "1"}}, headers=headers)
    assert problem(wrong, 400)["reason"] == "bad_tag"
    nobody = app.post(f"{API}/devices/nobody/describe", json={}, headers=headers)
    assert problem(nobody, 404)["reason"] == "unknown_device"


def test_it_is_on_record_who_did_it(app: httpx.Client, fleet: Service, tmp_path: Path) -> None:
    from fleet_rig import publisher

    publisher(fleet.settings.data).release()
    enrol(fleet, "cam")
    made = app.post(f"{API}/access-tokens", json={"name": "Alice", "role": "operator"},
                    headers=auth(fleet, "admin")).json()  # fmt: skip
    alice = {"Authorization": f"Bearer {made['token']}"}
    body = {"release": "digits@1.0.0", "group": "lab"}
    rollout = app.post(f"{API}/rollouts", json=body, headers=alice).json()["id"]
    paused = app.post(f"{API}/rollouts/{rollout}/pause", headers=alice).json()
    assert paused["reason"] == "Paused by Alice."
    told = app.get(f"{API}/rollouts/{rollout}/decisions", headers=alice).json()["decisions"]
    assert [d["by"] for d in told] == ["Alice", "Alice"]
    resumed = app.post(f"{API}/rollouts/{rollout}/resume", headers=auth(fleet)).json()
    assert resumed["reason"] == "Resumed by an operator.", "a bootstrap token is nobody's"
