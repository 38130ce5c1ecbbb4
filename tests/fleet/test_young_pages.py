"""The pages of a fleet that is an hour old: little was measured, and not all went well."""

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from browser_rig import chromium, findings, looking, needs_chromium
from ui_rig import Town, shown, token, young

pytestmark = [needs_chromium, pytest.mark.system]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    made = young(tmp_path_factory.mktemp("young"), time.time())
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


def waves(page: Page) -> list[str]:
    """Return what is said of each wave of the track."""
    return page.locator("ol.track > li .stands").all_inner_texts()


def test_every_page_of_a_young_fleet_can_be_used_by_everybody(page: Page, place: Town) -> None:
    wrong = []
    rollouts = [f"/rollouts/{one}" for one in place.rollouts()]
    for path in ("/", "/rollouts", "/drift", "/releases/compare", "/devices/bench-1", *rollouts):
        page.goto(path)
        for theme in ("Light theme", "Dark theme"):
            page.get_by_role("button", name=theme).click()
            wrong += [f"{path}, {theme}: {one}" for one in findings(page)]
    assert not wrong, "\n".join(wrong)


def test_what_could_not_be_judged_is_not_said_to_be_as_built(page: Page, place: Town) -> None:
    page.goto("/drift?release=person@1.3.0")
    expect(page.locator(".title")).to_contain_text("not judged yet: 400 of 1,000 values")
    card = page.locator("article", has_text="inputs.image.mean")
    expect(card).to_contain_text("not judged yet")
    expect(card).not_to_contain_text("PSI")
    expect(page.locator("#live .chip.good")).to_have_count(0)
    for name, values in (("yard-1", 9000), ("yard-2", 9000)):
        place.report(name, "person@1.3.0", count=values)
    page.reload()
    expect(page.locator(".title .chip.good")).to_have_text("the fleet is as built")
    place.event("yard-2", "drift", "person@1.3.0", "classes", psi=0.2, p=1e-9, n=2000)
    page.reload()
    expect(page.locator(".title")).to_contain_text("1 device drifting")
    expect(page.locator(".title .chip.good")).to_have_count(0)


def test_a_wave_says_how_it_ended(page: Page, place: Town) -> None:
    for group, said in (
        ("gate", ["failed", "no device for it"]),
        ("yard", ["was taken back", "failed"]),
        ("lab", ["done"]),
    ):
        page.goto(place.newest(group))
        assert waves(page) == said, group
    page.goto(place.newest("gate"))
    expect(page.locator("ol.track .bar")).to_have_count(1)


def test_what_was_overtaken_asks_for_nothing(page: Page, place: Town) -> None:
    paused = place.rollouts("lab", "person@1.4.0")[0]
    attention = page.locator("section", has=page.get_by_role("heading", name="Needs attention"))
    expect(attention).to_contain_text("person@1.4.0 to gate")
    expect(attention).not_to_contain_text("person@1.4.0 to lab")
    expect(page.locator(".tile", has_text="Rollouts on hold").locator(".big")).to_have_text("1")
    page.goto(f"/rollouts/{paused}")
    expect(page.locator("#overtaken")).to_contain_text("Overtaken by person@1.5.0")
    expect(page.locator(".title .actions a")).to_have_text(["Cancel …", "Revert …"])
    expect(page.locator("#live")).not_to_contain_text("rollouts create person@1.4.0")
    page.goto(place.newest("yard"))
    expect(page.locator(".title .actions")).to_have_count(0)
    page.goto(place.newest("lab"))
    expect(page.locator(".title .actions a")).to_have_text(["Revert …"])


def test_a_single_value_is_seen_on_its_chart(page: Page) -> None:
    page.goto("/devices/bench-1")
    expect(page.locator(".plot canvas")).to_have_count(4)
    edges = page.evaluate("""() => [...drawn.values()].map(({plot}) =>
        [plot.scales.x.max - plot.scales.x.min, plot.scales.x.max - Date.now() / 1000,
         plot.series[1].points.filter?.(plot, 1, true, null)?.length ?? null])""")
    for width, ahead, marks in edges:
        assert width >= 3600
        assert ahead <= 0, "the axis does not run into the future"
        assert marks in {1, None}
    boxes = page.locator(".chart").evaluate_all(
        "charts => charts.map((one) => Math.round(one.getBoundingClientRect().width))"
    )
    assert len(set(boxes)) == 1, boxes


def test_values_have_units_and_nothing_has_moved_by_minus_nothing(page: Page) -> None:
    page.goto("/releases/compare?a=person@1.3.0&b=person@1.5.0")
    measured = page.get_by_role("region", name="Measured")
    expect(measured.get_by_role("row", name="agreement")).to_contain_text("98 %")
    expect(measured.get_by_role("row", name="memory")).to_contain_text("MB")
    expect(page.locator("#live")).not_to_contain_text("-0.0 %")


def test_an_address_that_is_none_is_said_on_a_page(page: Page) -> None:
    page.goto("/nonsense")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    page.get_by_role("link", name="Back to the overview").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
