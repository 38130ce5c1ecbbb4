"""The page about the REST interface, from the description that it gives of itself."""

from collections.abc import Iterator
from typing import Any

from edgepack_fleet.core.changes import TYPES
from edgepack_fleet.web.app import main_app
from edgepack_fleet.web.problems import BY_REASON

__all__ = ["api_document", "api_page"]

INTRO = """# REST interface of the fleet

Written by `scripts/docs.py` from the description that the fleet gives of itself:
[openapi.json](openapi.json), also `edgepack fleet openapi` and `GET /api/v1/openapi.json`.

**Who may.** `Authorization: Bearer TOKEN` with an [access token](../how-to/access-and-audit.md).
The roles are `viewer`, `operator` and `admin`; each may do what the ones before it may. Only
`/health` is open. A token may ask 100 times a second (`fleet serve --max-per-s`), after a pause
1000 times at once; then the answer is 429 with `Retry-After`, in seconds.

**Lists** are `{"items": [...], "next": CURSOR}`. Ask again with `cursor=CURSOR`, and the same
filters and `sort`, until `next` is null. `limit` is 100 unless said, 1000 at most. `-` before a
sort turns it round. What is added or removed meanwhile shifts nothing. A filter that does not
exist is refused.

**Once.** A POST with an `Idempotency-Key` that is sent again, with the same body and token, is
not done again: it gets the answer it got, with `Idempotent-Replayed: true`, for a day. With
another body it is refused (422); if the first is not finished, or the fleet was killed in its
middle, too (409).

**Refusals** are problem documents (RFC 9457, `application/problem+json`): `detail` says what
happened, `why` and `fix` the cause and what to do, `reason` is a code that stays, `code` the exit
code of the command line, `errors` every field that is wrong.
"""
CHANGES = """## Changes

`GET /api/v1/events/stream` tells them as server-sent events, [webhooks](../how-to/webhooks.md)
are posted them. Each is a [CloudEvent](https://cloudevents.io) 1.0 (JSON, structured mode). Who
reconnects with `Last-Event-ID` hears what it missed, as far back as the newest 20,000; if that is
not far enough it hears `edgepack.stream.gap` first and should read the lists again. A stream ends
with its token, and when the fleet ends. When the fleet, or its link to the broker, starts anew,
every device is first offline and then online again.
"""


def api_document() -> dict[str, Any]:
    """Return the OpenAPI description."""
    return main_app(None).openapi()


def api_page() -> str:
    """Return the reference of the REST interface."""
    document = api_document()
    parts = [INTRO, "## Routes\n", "| route | what it does | answers |\n|---|---|---|"]
    parts += routes(document)
    parts += ["\n## Filters\n", "| list | `sort` | filters |\n|---|---|---|", *lists(document)]
    parts += ["", CHANGES, "| type | told when |\n|---|---|"]
    parts += [f"| `{kind}` | {told} |" for kind, told in TYPES.items()]
    parts += ["\n## Reasons with a status of their own\n", "| reason | status |\n|---|---|"]
    parts += [f"| `{reason}` | {status} |" for reason, status in sorted(BY_REASON.items())]
    parts += ["\nAny other reason has 400 if the request is wrong and 422 if what it holds is.\n"]
    return "\n".join(parts)


def routes(document: dict[str, Any]) -> Iterator[str]:
    """Yield a row of a table for every route."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            told = operation["description"].partition("\n\n")[0].replace("\n", " ")
            good = [status for status in operation["responses"] if status < "400"]
            bad = [status for status in operation["responses"] if status >= "400"]
            answers = ", ".join(good + sorted(bad))
            yield f"| `{method.upper()} {path}` | {told} | {answers} |"


def lists(document: dict[str, Any]) -> Iterator[str]:
    """Yield a row of a table for every list."""
    for path, item in document["paths"].items():
        asked = {p["name"]: p for p in item.get("get", {}).get("parameters", ())}
        if "sort" not in asked:
            continue
        sorts = ", ".join(f"`{value}`" for value in choices(asked["sort"]["schema"]))
        names = [name for name in asked if name not in {"limit", "cursor", "sort"}]
        names = [name for name in names if asked[name]["in"] == "query"]
        yield f"| `{path}` | {sorts} | {', '.join(f'`{name}`' for name in names) or '-'} |"


def choices(schema: dict[str, Any]) -> list[str]:
    """Return what SCHEMA lets one choose from, its default first."""
    return sorted(schema["enum"], key=lambda value: value != schema.get("default"))
