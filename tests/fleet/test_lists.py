"""Lists over REST: filters, order, and pages that tell every row once whatever happens between."""

import base64
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_fleet.adapters.tables import DeviceRow, EnrolToken, EventRow, GroupRow, JobRow
from edgepack_fleet.core import cursors
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service
from fleet_rig import enrol, publisher
from rest_rig import auth, problem

pytestmark = pytest.mark.both_databases

API = "/api/v1"


@pytest.fixture
def many(fleet: Service) -> Service:
    """Seven devices in two groups, with events, tokens and two rollouts."""
    publisher(fleet.settings.data).release()
    with fleet.database.write() as session:
        session.add_all([GroupRow(id=name, created=0.0) for name in ("lab", "yard", "attic")])
        session.flush()
        for number in range(7):
            session.add(
                DeviceRow(
                    id=f"d{number}",
                    group_id="lab" if number < 5 else "yard",
                    enrolled=100.0 - number,
                    seen=float(number // 2),
                    certificate_serial="1",
                    inventory={"arch": "x86_64", "runtimes": {"onnx": "1.23.2"}},
                    online=number % 2 == 0,
                    bundle="digits@1.0.0" if number == 3 else None,
                    revoked=5.0 if number == 4 else None,
                )
            )
            session.add(
                EventRow(device_id=f"d{number}", boot="b", seq=0, received=float(number // 3),
                         type="odd" if number % 2 else "even", body={})
            )  # fmt: skip
            session.add(
                EnrolToken(id=f"t{number}", digest=str(number), group_id="lab", created=1.0,
                           expires=2.0, uses=1)
            )  # fmt: skip
    for group in ("lab", "yard"):
        fleet.rollouts.create("digits@1.0.0", group, "1,100%", Policy())
    return fleet


def ids(app: httpx.Client, fleet: Service, path: str, **query: Any) -> list[str]:
    """Return the ids of a whole list, read in pages."""
    found: list[str] = []
    cursor = None
    while True:
        params = query | ({"cursor": cursor} if cursor else {})
        answer = app.get(f"{API}/{path}", params=params, headers=auth(fleet))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert set(page) == {"items", "next"}
        assert len(page["items"]) <= query.get("limit", 100)
        found += [item.get("id") or f"{item['device']}" for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            return found


def test_every_list_is_read_in_pages_of_any_size(app: httpx.Client, many: Service) -> None:
    sizes = {"devices": 7, "events": 7, "groups": 3, "rollouts": 2, "tokens": 7, "releases": 1}
    for path, size in sizes.items():
        whole = ids(app, many, path)
        assert len(whole) == len(set(whole)) == size, path
        for limit in (1, 2, 3, size):
            assert ids(app, many, path, limit=limit) == whole, (path, limit)


def test_order_is_as_asked_for_and_turned_round(app: httpx.Client, many: Service) -> None:
    sorts = {"devices": ("id", "seen", "enrolled"), "events": ("received",), "groups": ("id",),
             "rollouts": ("created", "updated"), "tokens": ("created",),
             "releases": ("published",)}  # fmt: skip
    for path, names in sorts.items():
        for name in names:
            up = ids(app, many, path, sort=name, limit=2)
            assert ids(app, many, path, sort=f"-{name}", limit=2) == up[::-1], (path, name)
    assert ids(app, many, "devices", sort="enrolled")[0] == "d6"
    assert ids(app, many, "rollouts") == ids(app, many, "rollouts", sort="-created")


def test_filters(app: httpx.Client, many: Service) -> None:
    with many.database.write() as session:
        for device, status in (("d0", "FAILED"), ("d1", "SUCCEEDED"), ("d4", "FAILED")):
            rollout = ids(app, many, "rollouts", group="lab")[0]
            session.add(
                JobRow(id=f"j-{device}", device_id=device, rollout_id=rollout, wave=0,
                       release="digits@1.0.0", target="t", status=status, detail={}, probation_s=1,
                       timeout_s=1, created=0.0, updated=0.0)
            )  # fmt: skip
    wanted: dict[tuple[str, str, Any], list[str]] = {
        ("devices", "group", "yard"): ["d5", "d6"],
        ("devices", "online", False): ["d1", "d3", "d5"],
        ("devices", "release", "digits@1.0.0"): ["d3"],
        ("devices", "revoked", True): ["d4"],
        ("devices", "attention", True): ["d0"],
        ("devices", "attention", False): ["d1", "d2", "d3", "d4", "d5", "d6"],
        ("devices", "group", "nowhere"): [],
        ("events", "device", "d2"): ["d2"],
        ("events", "type", "odd"): ["d5", "d3", "d1"],
        ("events", "since", 2): ["d6"],
        ("events", "until", 1): ["d2", "d1", "d0"],
        ("tokens", "group", "yard"): [],
        ("releases", "name", "other"): [],
        ("rollouts", "state", "paused"): [],
    }
    for (path, name, value), expected in wanted.items():
        found = ids(app, many, path, **{name: value}, limit=2)
        assert found == expected, (path, name, value)
    with many.database.write() as session:
        rollout = ids(app, many, "rollouts", group="yard")[0]
        session.add(
            JobRow(id="newer", device_id="d0", rollout_id=rollout, wave=0, release="digits@1.0.0",
                   target="t", status="SUCCEEDED", detail={}, probation_s=1, timeout_s=1,
                   created=0.0, updated=0.0)
        )  # fmt: skip
    assert ids(app, many, "devices", attention=True) == [], "a later job went well"


def test_a_page_goes_on_where_the_last_one_ended(app: httpx.Client, many: Service) -> None:
    """Whatever comes or goes before that point shifts nothing."""
    url, headers = f"{API}/devices", auth(many)
    first = app.get(url, params={"limit": 3}, headers=headers).json()
    enrol(many, "a-new-one")
    rest = app.get(url, params={"limit": 100, "cursor": first["next"]}, headers=headers).json()
    seen = [d["id"] for d in first["items"] + rest["items"]]
    assert seen == [f"d{number}" for number in range(7)]


def test_what_cannot_be_asked_for_is_said(app: httpx.Client, many: Service) -> None:
    url, headers = f"{API}/devices", auth(many)
    for bad in ({"limit": 0}, {"limit": 1001}, {"sort": "color"}, {"grupo": "lab"},
                {"online": "perhaps"}):  # fmt: skip
        assert problem(app.get(url, params=bad, headers=headers), 400)["reason"] == "bad_request"
    of_seen = app.get(url, params={"limit": 1, "sort": "seen"}, headers=headers).json()["next"]
    for cursor in (of_seen, "x", "%%%", "AAAA", cursors.pack("id", (1,)), cursors.pack("id", ())):
        answer = app.get(url, params={"cursor": cursor}, headers=headers)
        assert problem(answer, 400)["reason"] == "bad_cursor"
    gone = cursors.pack("published", ("digits@9.9.9",))
    answer = app.get(f"{API}/releases", params={"cursor": gone}, headers=headers)
    assert problem(answer, 400)["reason"] == "bad_cursor"


words = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-cursors.LARGEST, cursors.LARGEST)
floats = st.floats(-(2.0**53), 2.0**53)


@given(words, st.lists(st.one_of(words, numbers, floats), max_size=4))
def test_a_cursor_says_what_was_put_in(sort: str, key: list[Any]) -> None:
    text = cursors.pack(sort, tuple(key))
    assert cursors.unpack(text, sort, [type(part) for part in key]) == tuple(key)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.just("\ud800"), st.text()
)
forged = st.recursive(scalars, st.lists, max_leaves=6).map(
    lambda found: base64.urlsafe_b64encode(json.dumps(["id", found]).encode()).decode()
)


@given(st.one_of(st.text(max_size=60), forged))
def test_no_cursor_reaches_a_database_unchecked(text: str) -> None:
    for kind in (str, float, int):
        with contextlib.suppress(UsageError):
            (part,) = cursors.unpack(text, "id", [kind])
            assert isinstance(part, (kind, int) if kind is float else kind)
            assert isinstance(str(part).encode(), bytes), "no half of a character"
