"""From facts to a page: templates, what they may say of times and sizes, and the policy."""

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from edgepack_fleet.core.changes import TYPES
from edgepack_fleet.core.units import measured, moved

__all__ = ["STATIC", "PageError", "absolute", "ago", "page", "size", "span"]

HERE = Path(__file__).parent
STATIC = HERE / "static"
THEME = "edgepack_theme"
THEMES = frozenset({"light", "dark"})
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DASH = "\N{EN DASH}"
UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


class PageError(Exception):
    """What was asked for cannot be shown; a person reads why, as a page."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def span(seconds: float) -> str:
    """Return how long SECONDS are, in the largest unit that is not 0."""
    for length, unit in UNITS:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def ago(moment: float | None) -> str:
    """Return how long ago MOMENT (Unix seconds) was, or how far ahead it is, in words."""
    if moment is None:
        return "never"
    seconds = time.time() - moment
    if abs(seconds) < 5:
        return "just now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def absolute(moment: float | None) -> str:
    """Return MOMENT (Unix seconds) as a date and time, UTC."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: float) -> str:
    """Return COUNT bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def figure(value: float | None, digits: int = 3) -> str:
    """Return VALUE with at most DIGITS significant ones; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, int) or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a SHARE of 1 in percent."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def plural(count: int, word: str) -> str:
    """Return COUNT and WORD: `1 device`, `2 devices`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        ago=ago, absolute=absolute, size=size, span=span, figure=figure, percent=percent,
        plural=plural, measured=measured, moved=moved,
    )  # fmt: skip
    environment.globals["now"] = time.time
    return environment


templates = _environment()


def page(request: Request, name: str, code: int = 200, **context: Any) -> HTMLResponse:
    """Return the page of the template NAME.

    Args:
        request: What it answers; the theme is in its cookie.
        name: Of the template, without its ending.
        code: Status of the answer.
        context: What the template wants to know; `role` None: nobody has logged in.
    """
    theme = request.cookies.get(THEME, "")
    service = request.app.state.service
    facts = {
        "path": request.url.path,
        "code": code,
        "role": None,
        "broker": service is None or service.link.connected,
        "theme": theme if theme in THEMES else "auto",
        "types": " ".join(TYPES),
        "heard": getattr(request.state, "change", 0),
    }
    text = templates.get_template(f"{name}.html").render(facts | context)
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        # With `no-referrer` a browser would hide the origin of our own forms from us, too.
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(text, code, headers)
