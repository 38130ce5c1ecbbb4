"""The page of the cameras in a real browser: whom it lets in, and what it says to others."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from browser_rig import chromium, needs_chromium
from slots import Heard, digits_slot, listen

pytestmark = [needs_chromium, pytest.mark.system]
TOKEN = "the token of this device"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    with listen() as tcp, Heard(digits_slot(tmp_path / "slot"), [tcp]) as heard:
        heard.accepting(token=TOKEN)
        heard.tell("sources", sources=[{"name": "door", "source": "test:pattern"}])
        yield f"http://127.0.0.1:{tcp.getsockname()[1]}/preview"


def test_a_wrong_token_is_told_and_the_right_one_lets_in(browser: Browser, place: str) -> None:
    page = browser.new_page()
    page.goto(place)
    field, button = page.get_by_label("Token of this device"), page.get_by_role("button")
    expect(field).to_be_focused()
    expect(page.get_by_role("alert")).to_have_count(0)
    for wrong in ("of another device", "of-another-device", "“pasted from a letter” €"):
        field.fill(wrong)
        button.click()
        expect(page.get_by_role("alert")).to_contain_text("This is not the token of this device")
        expect(field).to_have_accessible_description(re.compile("This is not the token"))
        expect(field).to_be_focused()
    field.fill(TOKEN)
    button.click()
    expect(page.get_by_role("heading", name="door")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.close()
