"""A real browser for tests of pages: Debian's Chromium, steered by Playwright. One a session."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
AXE = Path(__file__).parent / "fleet" / "vendor" / "axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
expect.set_options(timeout=15_000)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def looking(
    browser: Browser,
    url: str,
    token: str = "",
    theme: Any = "light",
    width: int = 1280,
    height: int = 860,
) -> Iterator[Page]:
    """Yield a page of the fleet at URL, logged in with TOKEN.

    At the end nothing may have gone wrong in it: no script failed, nothing was refused by the
    policy, and nobody else was asked for anything.
    """
    viewport: Any = {"width": width, "height": height}
    context = browser.new_context(viewport=viewport, color_scheme=theme, base_url=url)
    wrong: list[str] = []
    watch(context, url, wrong)
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if _is_bad(said) else None)
    page.on("response", lambda one: wrong.append(one.url) if _is_missing(one) else None)
    try:
        if token:
            log_in(page, token)
        yield page
    finally:
        context.close()
    assert not wrong, wrong


def _is_bad(said: Any) -> bool:
    """Return whether a browser complains of more than a page that says 403, 404 or 409."""
    return said.type == "error" and "responded with a status of 4" not in said.text


def _is_missing(answer: Any) -> bool:
    return answer.status >= 500 or (answer.status >= 400 and "/static/" in answer.url)


def watch(context: BrowserContext, url: str, wrong: list[str]) -> None:
    """Let requests to anybody but the fleet at URL fail, and write them down in WRONG."""
    ours = urlsplit(url).netloc

    def route(route: Any) -> None:
        if urlsplit(route.request.url).netloc == ours:
            route.continue_()
        else:
            wrong.append(f"asked of somebody else: {route.request.url}")
            route.abort()

    context.route("**/*", route)


def log_in(page: Page, token: str, path: str = "/") -> None:
    page.goto(path)
    page.get_by_label("Access token").fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()
    page.wait_for_load_state()


def findings(page: Page) -> list[str]:
    """Return what axe finds that is serious or critical."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate(
        "tags => axe.run(document, {runOnly: tags, resultTypes: ['violations']})", TAGS
    )
    return [
        f"{one['impact']} {one['id']}: {one['help']}: {node['html'][:160]} {node['any'][:1]}"
        for one in found["violations"]
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"][:3]
    ]
