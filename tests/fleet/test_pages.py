"""The pages, as people see them: a real browser, a fleet with a day of history."""

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import insert, select

from browser_rig import chromium, findings, looking, needs_chromium
from edgepack_fleet.adapters.device_tables import ApplicantRow
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow, RolloutRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.rollouts import Plan
from edgepack_fleet.service import Service
from edgepack_fleet.web import (
    conditions,
    device_table,
    figures,
    rollout_counts,
    rollout_views,
    views,
)
from edgepack_fleet.web.app import main_app
from fleet_rig import serving
from rest_rig import LISTENER, auth
from ui_rig import Town, shown, token, town

pytestmark = [needs_chromium, pytest.mark.system]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    made = town(tmp_path_factory.mktemp("town"), time.time())
    yield made
    made.service.database.close()


@pytest.fixture(scope="module")
def url(place: Town) -> Iterator[str]:
    with shown(place) as found:
        yield found


@pytest.fixture
def page(browser: Browser, url: str, place: Town) -> Iterator[Page]:
    with looking(browser, url, token(place)) as found:
        yield found


@pytest.fixture
def empty(fleet: Service) -> Iterator[tuple[str, str]]:
    """The address of a fleet with nothing in it, and a token for it."""
    with serving(main_app(fleet, LISTENER)) as port:
        yield f"http://127.0.0.1:{port}", auth(fleet, "operator")["Authorization"][7:]
        fleet.feed.close()


def paths(place: Town) -> list[str]:
    eu, us = place.newest("cameras-eu"), place.newest("cameras-us")
    return [
        "/", "/devices", "/devices?state=failed", "/devices?q=nothing-like-it",
        "/devices/eu-cam-01", "/devices/us-cam-04", "/revoke?id=us-cam-04", "/rollouts",
        eu, us, f"{us}/decisions", f"{us}/resume", "/releases", "/releases/compare",
        "/drift?release=person@1.3.0", "/drift?release=person@1.4.0", "/devices/nobody",
    ]  # fmt: skip


def test_every_page_can_be_used_by_everybody(page: Page, place: Town) -> None:
    wrong = []
    for path in paths(place):
        page.goto(path)
        if page.locator(".plot").count():
            expect(page.locator(".plot canvas").first).to_be_visible()
        if page.locator("#decisions").count():
            page.locator("#decisions").scroll_into_view_if_needed()
            expect(page.locator("#decisions .story")).to_be_visible()
        expect(page.locator("h1, #question-title").first).to_be_visible()
        expect(page.locator("#pulse")).to_have_text("Live")
        for theme in ("Light theme", "Dark theme"):
            page.get_by_role("button", name=theme).click()
            wrong += [f"{path}, {theme}: {one}" for one in findings(page)]
    assert not wrong, "\n".join(wrong)


def test_the_login_page_and_a_wrong_token(browser: Browser, url: str) -> None:
    with looking(browser, url) as page:
        page.goto("/devices")
        assert not findings(page)
        expect(page.get_by_label("Access token")).to_be_focused()
        expect(page.get_by_text("edgepack fleet tokens show")).to_be_visible()
    with looking(browser, url) as page:
        page.goto("/devices")
        page.get_by_label("Access token").fill("guess")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not valid here")
        assert not findings(page)


@pytest.mark.parametrize("width", [375, 900])
def test_no_page_is_wider_than_its_screen(
    browser: Browser, url: str, place: Town, width: int
) -> None:
    with looking(browser, url, token(place), width=width) as page:
        for path in paths(place):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path


def test_filters_sort_and_pages_of_devices(page: Page) -> None:
    page.goto("/devices?size=25")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(25)
    page.get_by_role("link", name="Next").click()
    expect(rows).to_have_count(11)
    expect(page.get_by_text(re.compile("26.36 of 36"))).to_be_visible()
    page.goto("/devices")
    page.keyboard.press("/")
    expect(page.get_by_label("Search")).to_be_focused()
    page.keyboard.type("us-cam-0")
    expect(rows).to_have_count(9)
    expect(page).to_have_url(re.compile("q=us-cam-0"))
    expect(page.get_by_label("Search")).to_be_focused()
    page.get_by_label("State").select_option("failed")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("golden_mismatch")
    page.reload()
    expect(rows).to_have_count(3)
    page.get_by_role("link", name="Clear").click()
    expect(rows).to_have_count(36)
    page.get_by_role("link", name="Inferences").click()
    expect(page.get_by_role("columnheader", name="Inferences")).to_have_attribute(
        "aria-sort", "ascending"
    )
    page.get_by_role("link", name="Inferences").click()
    expect(rows.first).to_contain_text("eu-cam-01")


def test_devices_are_chosen_and_stay_chosen(page: Page, place: Town) -> None:
    page.goto("/devices?group=lab")
    page.get_by_label("Choose bench-2").check()
    page.get_by_label("Choose bench-3").check()
    expect(page.get_by_text("2 chosen")).to_be_visible()
    place.disconnect("bench-1")
    expect(page.locator("#row-bench-1")).to_contain_text("offline")
    expect(page.get_by_label("Choose bench-2")).to_be_checked()
    expect(page.get_by_text("2 chosen")).to_be_visible()
    page.get_by_label("Choose all on this page").check()
    expect(page.get_by_text("4 chosen")).to_be_visible()
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("heading", name="Revoke 4 devices?")).to_be_visible()
    page.get_by_role("button", name="Keep them").click()
    expect(page).to_have_url(re.compile("/devices$"))
    place.connect("bench-1", "person@1.4.0")


def test_a_device_has_its_story_and_its_numbers(page: Page, place: Town) -> None:
    page.goto("/devices/eu-cam-01")
    expect(page.locator(".plot canvas")).to_have_count(5)
    expect(page.get_by_role("img", name="Latency, 95 %")).to_have_attribute(
        "aria-label", re.compile(r"in ms: \d+ intervals, lowest")
    )
    story = page.locator(".story")
    for text in ("It is not connected any more", "It runs person@1.4.0 now"):
        expect(story.get_by_text(text)).to_be_visible()
    page.get_by_role("link", name="connections").click()
    expect(page.locator(".story").get_by_text("It connected").first).to_be_visible()
    expect(page.locator(".story").get_by_text("It runs person@1.4.0 now")).to_have_count(0)
    page.goto("/devices/eu-cam-04")
    expect(page.locator(".story")).to_contain_text("has drifted: inputs.image.mean")


def test_a_rollout_says_why_it_waits(page: Page, place: Town) -> None:
    page.goto(place.newest("cameras-eu"))
    expect(page.locator("#why")).to_contain_text("Wave 2 of 3: 4 of 20 devices run person@1.4.0")
    waves = page.get_by_role("list", name="Waves").get_by_role("listitem")
    expect(page.locator("ol.track > li.now")).to_contain_text("1 under way")
    gate = page.get_by_role("row", name="agreement").last
    expect(gate).to_contain_text("not known yet")
    expect(gate).to_contain_text("missing: eu-cam-04")
    ratio = page.get_by_role("row", name="p95 ratio").last
    expect(ratio).to_contain_text("1.16")
    expect(ratio).to_contain_text("≤ 1.2")
    assert waves.count() >= 3
    page.goto(place.newest("cameras-us"))
    failures = page.locator("section", has=page.get_by_role("heading", name="Failures by reason"))
    expect(failures.locator(".row").first).to_contain_text("golden_mismatch")
    failures.get_by_role("link", name="us-cam-04").click()
    expect(page.get_by_role("heading", name="us-cam-04")).to_be_visible()


def test_a_person_decides_by_keyboard_alone(page: Page, place: Town) -> None:
    place.group("by-hand")
    place.enrol("hand-1", "by-hand")
    place.connect("hand-1")
    path = "/rollouts/" + place.rollout("person@1.3.0", "by-hand", "100%")
    page.goto("/rollouts")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("article a").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(path))
    pause = page.get_by_role("button", name="Pause")
    page.wait_for_load_state()  # without scripts, the question is a page of its own
    _tab_to(page, "Pause …")
    page.keyboard.press("Space")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("No further device gets person@1.3.0")
    assert not findings(page)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(pause).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    _tab_to(page, "Pause")
    page.keyboard.press("Enter")
    expect(page.locator("#why")).to_have_text("Paused by an operator.")
    page.get_by_role("button", name="Revert").click()
    question = page.locator("#question")
    expect(question).to_contain_text("go back to the release they had before")
    question.get_by_role("button", name="Revert").click()
    expect(page.locator("#why")).to_contain_text("Reverting")
    page.locator("#decisions").scroll_into_view_if_needed()
    expect(page.locator("#decisions")).to_contain_text("reverting")
    expect(page.locator("#decisions")).to_contain_text("paused")


def _tab_to(page: Page, name: str) -> None:
    """Press Tab until what has the focus says NAME."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == name:
            return
    raise AssertionError(f"no way to {name} by keyboard")


def test_the_theme_is_the_systems_or_ones_own(browser: Browser, url: str, place: Town) -> None:
    def ground(page: Page) -> str:
        page.wait_for_load_state()  # with its sheet
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with looking(browser, url, token(place), "dark") as page:
        dark = ground(page)
        page.get_by_role("button", name="Light theme").click()
        light = ground(page)
        assert light != dark
        page.goto("/devices")
        assert ground(page) == light, "the next page comes in it"
        expect(page.get_by_role("button", name="Light theme")).to_have_attribute(
            "aria-pressed", "true"
        )
        page.get_by_role("button", name="Theme of the system").click()
        assert ground(page) == dark


def test_an_empty_fleet_shows_the_commands_to_run(browser: Browser, empty: tuple[str, str]) -> None:
    with looking(browser, *empty) as page:
        for path, command in (
            ("/", "edgepack-agent enroll TOKEN"), ("/devices", "edgepack fleet tokens create"),
            ("/rollouts", "edgepack fleet rollouts create"), ("/releases", "edgepack repo publish"),
            ("/releases/compare", "edgepack build MODEL"), ("/drift", "edgepack build MODEL"),
        ):  # fmt: skip
            page.goto(path)
            expect(page.get_by_text(command).first).to_be_visible()
            expect(page.get_by_role("button", name="Copy").first).to_be_visible()
            assert not findings(page), path


def test_a_page_without_scripts_does_the_same(browser: Browser, url: str, place: Town) -> None:
    context = browser.new_context(java_script_enabled=False, base_url=url)
    try:
        page = context.new_page()
        page.goto(place.newest("lab"))
        page.get_by_label("Access token").fill(token(place))
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Revert").click()
        expect(page.get_by_role("heading", name="Take it back?")).to_be_visible()
        page.get_by_role("button", name="Leave it as it is").click()
        page.get_by_role("link", name="Show every decision").click()
        expect(page.get_by_text("made again from its inputs, the same").first).to_be_visible()
    finally:
        context.close()


HIDE = """hidden => {
    Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_hidden_tabs_leave_the_connections_to_the_one_that_is_seen(page: Page, place: Town) -> None:
    page.goto("/devices?group=lab")
    for _ in range(6):  # as many as a browser has connections to a host
        expect(page.locator("#pulse")).to_have_text("Live")
        page.evaluate(HIDE, True)
        expect(page.locator("#pulse")).to_have_text("Not live")
        page = page.context.new_page()
        page.goto("/devices?group=lab")
    expect(page.locator("#pulse")).to_have_text("Live")
    first = page.context.pages[0]
    place.disconnect("bench-4")
    expect(page.locator("#row-bench-4")).to_contain_text("offline")
    expect(first.locator("#row-bench-4")).to_contain_text("online")
    first.evaluate(HIDE, False)
    expect(first.locator("#row-bench-4")).to_contain_text("offline")
    expect(first.locator("#pulse")).to_have_text("Live")
    place.connect("bench-4", "person@1.4.0")
    expect(first.locator("#row-bench-4")).to_contain_text("online")


def test_a_session_that_is_over_leads_to_the_login(page: Page, place: Town) -> None:
    page.goto("/devices")
    page.context.clear_cookies()
    place.disconnect("bench-4")
    expect(page.get_by_label("Access token")).to_be_visible()
    place.connect("bench-4", "person@1.4.0")


def test_ten_thousand_devices_are_a_page_like_any_other(
    browser: Browser, empty: tuple[str, str], fleet: Service
) -> None:
    with fleet.database.write() as session:
        session.add(GroupRow(id="many", created=0.0))
        session.flush()
        common = {"group_id": "many", "enrolled": 0.0, "certificate_serial": "1", "inventory": {}}
        session.execute(insert(DeviceRow), [
            common | {"id": f"cam-{n:05}", "online": n % 3 > 0, "inferences": n}
            for n in range(10_000)
        ])  # fmt: skip
    with looking(browser, *empty) as page:
        expect(page.locator(".tile").first).to_contain_text("6,666 of 10,000")
        page.goto("/devices?sort=-inferences&page=200")
        expect(page.get_by_text(re.compile("9951.10000 of 10,000"))).to_be_visible()
        page.get_by_label("Search").fill("cam-0777")
        expect(page.locator("tbody tr")).to_have_count(10)
        page.goto("/devices?page=99999")
        expect(page.get_by_text("Page 200 of 200")).to_be_visible()


def test_two_releases_are_compared_in_plain_words(page: Page) -> None:
    page.goto("/releases/compare")
    said = page.locator("section", has=page.get_by_role("heading", name="What the field says"))
    expect(said).to_contain_text("no difference seen")
    expect(said).to_contain_text(re.compile(r"B is faster by [\d.]+\.\.[\d.]+ %"))
    expect(page.get_by_role("img", name=re.compile("^B, and A: below 0.1"))).to_be_visible()
    built = page.get_by_role("region", name="As built")
    expect(built.get_by_role("row", name="Score").first).to_contain_text("+1.4 %")
    page.get_by_label("Group").select_option("lab")
    expect(page).to_have_url(re.compile("group=lab"))
    expect(said).to_contain_text("not enough is known")


def test_drift_is_shown_against_what_was_built(page: Page) -> None:
    page.goto("/drift?release=person@1.3.0")
    feature = page.locator("article", has_text="inputs.image.mean")
    expect(feature).to_contain_text("drifts")
    expect(feature.get_by_role("img")).to_have_attribute("aria-label", re.compile("now, and as b"))
    expect(page.locator("article", has_text="confidence")).to_contain_text("as built")
    page.get_by_role("link", name="eu-cam-05").click()
    expect(page).to_have_url(re.compile("/devices/eu-cam-05"))
    expect(page.locator(".story")).to_contain_text("has drifted: inputs.image.mean")


def test_devices_as_a_table_for_other_programs(page: Page, place: Town) -> None:
    page.goto("/devices?group=lab")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="CSV").click()
    lines = waiting.value.path().read_text().splitlines()
    assert lines[0].startswith("id,group,online,desired,bundle")
    assert [line.split(",")[0] for line in lines[1:]] == [f"bench-{n}" for n in range(1, 5)]
    with place.service.database.write() as session:
        session.get_one(DeviceRow, "bench-3").agent = "=cmd()"
    with page.expect_download() as waiting:
        page.get_by_role("link", name="CSV").click()
    assert "'=cmd()" in waiting.value.path().read_text(), "a spreadsheet would run it"


def test_lists_and_single_rollouts_count_alike(place: Town) -> None:
    with place.service.database.read() as session:
        rows = session.scalars(select(RolloutRow)).all()
        short = rollout_counts.briefs(session, rows)
        full = rollout_views.rollouts(session, rows, place.service.now())
    assert len(rows) >= 6
    for brief, rollout in zip(short, full, strict=True):
        counted = [(w.size, w.done, w.failed) for w in rollout.waves]
        assert [(w.size, w.done, w.failed) for w in brief.waves] == counted, rollout.id


def test_who_asks_to_join_is_let_in_or_refused(page: Page, place: Town) -> None:
    page.goto("/")
    page.get_by_role("link", name="2 devices wait to be let in").click()
    first, second = (page.locator(".row", has_text=f"new-cam-{n}") for n in (1, 2))
    first.get_by_role("button", name="Accept").click()
    dialog = page.locator("#question")
    expect(dialog).to_contain_text("Compare the fingerprint of its key")
    assert not findings(page)
    dialog.get_by_role("button", name="Accept").click()
    expect(second).to_be_visible()
    expect(first).to_have_count(0)
    second.get_by_role("button", name="Reject").click()
    dialog.get_by_role("button", name="Reject").click()
    expect(page.get_by_role("heading", name="Waiting to join")).to_have_count(0)
    with place.service.database.read() as session:
        rows = session.scalars(select(ApplicantRow).order_by(ApplicantRow.name)).all()
    assert [row.state for row in rows] == ["accepted", "rejected"]
    page.goto(f"/applicants/{rows[0].id}/accept")
    expect(page.get_by_text("It does not wait any more: it is accepted.")).to_be_visible()


def test_devices_are_tagged_and_found_by_their_tags(page: Page) -> None:
    page.goto("/devices")
    page.get_by_label("Tag").fill("site")
    page.keyboard.press("Tab")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    rows.first.get_by_role("link", name="site=hall").click()
    expect(rows).to_have_count(1)
    page.get_by_role("link", name="bench-1").click()
    page.get_by_label("Key").fill("floor")
    page.get_by_label("Value").fill("3")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("link", name="floor=3")).to_be_visible()
    page.get_by_label("Key").fill("floor")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("link", name="row=2")).to_be_visible()
    expect(page.get_by_role("link", name="floor=3")).to_have_count(0)
    page.get_by_label("Key").fill("no key")
    page.get_by_label("Value").fill("x")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("heading", name="this tag cannot be kept")).to_be_visible()


def test_open_alerts_lead_to_what_they_are_about(page: Page) -> None:
    alerts = page.locator("#alerts")
    fired = alerts.get_by_role("link", name="group_offline").first
    expect(fired).to_contain_text("critical")
    alerts.get_by_text("History").click()
    expect(alerts.get_by_role("link", name="errors_rise").first).to_contain_text("over")
    assert not findings(page)
    fired.click()
    expect(page).to_have_url(re.compile("/devices.group=cameras-us"))


def test_whoever_may_only_look_decides_nothing(browser: Browser, url: str, place: Town) -> None:
    with looking(browser, url, token(place, "viewer")) as page:
        for path in ("/devices", "/devices/bench-1"):
            page.goto(path)
            expect(page.get_by_role("button", name="Set")).to_have_count(0)
            expect(page.get_by_role("button", name="Accept")).to_have_count(0)
        page.goto("/applicants/a-1/accept")
        expect(page.get_by_text("This needs the role operator")).to_be_visible()
        for path in ("/applicants/a-1/accept", "/devices/bench-1/tags"):
            answer = page.request.post(path, form={"key": "a"}, headers={"Origin": url})
            assert answer.status == 403


def test_a_draft_is_started_and_a_rollout_approved(page: Page, place: Town) -> None:
    place.group("by-word")
    place.enrol("word-1", "by-word")
    place.connect("word-1")
    plan = Plan("person@1.3.0", "by-word", "100%", Policy(approval=True), draft=True)
    made = place.service.rollouts.plan(plan)
    page.goto(f"/rollouts/{made}")
    for action, said in (("Start", "awaiting approval"), ("Approve", "running")):
        page.get_by_role("button", name=action).first.click()
        # In a dialog, or on a page of its own if the scripts are not there yet.
        page.locator("#question").get_by_role("button", name=action).click()
        expect(page.locator(".title")).to_contain_text(said)


def test_a_button_that_has_just_changed_asks_what_it_says(page: Page, place: Town) -> None:
    place.group("soon")
    plan = Plan("person@1.3.0", "soon", "100%", Policy(), draft=True)
    path = f"/rollouts/{place.service.rollouts.plan(plan)}"
    page.goto(path)
    page.evaluate("""() => {
        const button = document.querySelector("#live a[href$='/start']");
        for (const name of ["href", "hx-get"]) {
            button.setAttribute(name, button.getAttribute(name).replace("start", "cancel"));
        }
        htmx.process(button);
        document.addEventListener(
            "htmx:afterSwap", () => setTimeout(() => button.click()), { once: true });
        refresh();
    }""")
    expect(page.get_by_role("dialog").get_by_role("button", name="Start")).to_be_visible()
    expect(page).to_have_url(re.compile(f"{path}$"))


def test_overview_and_list_agree_on_what_is_wanted(place: Town) -> None:
    with place.service.database.read() as session:
        rows = session.scalars(select(DeviceRow).where(DeviceRow.revoked.is_(None))).all()
        shown = views.devices(session, rows)
        counted = figures.count(session)
        late = device_table.every(session, device_table.Asked(state="behind"))
        wishes = {wish.device: wish.desired for wish in conditions.wishes(session)}
    assert wishes == {device.id: device.desired for device in shown}
    behind = {d.id for d in shown if d.desired and d.desired != d.bundle}
    assert {device.id for device in late} == behind
    assert (counted.wanted, counted.wanted - counted.on_target) == (
        sum(d.desired is not None for d in shown), len(behind),
    )  # fmt: skip
    assert behind, "a rollout is on its way"
    us = {wishes[f"us-cam-{n:02}"] for n in range(1, 13)}
    assert us == {"person@1.3.0", "person@1.4.0"}, "it is paused: some have it, the others wait"
