"""The command line's way to a running fleet: finds it, asks it, and turns problems into errors."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from edgepack import errors
from edgepack.errors import EdgepackError, UnreachableError, UsageError

__all__ = ["Client", "connection_options"]

TIMEOUT_S = 30.0
PAGE = 500
TRIES = 3
LONGEST_PAUSE_S = 30.0
Filter = str | int | float | bool | None
NO_FLEET = "what answers there is not a fleet"
F = TypeVar("F", bound=Callable[..., Any])


def connection_options(command: F) -> F:
    """Add the options that say which fleet is meant, and `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option(
            "--data",
            type=click.Path(file_okay=False, path_type=Path),
            help="Directory of a fleet on this machine, instead of --url and --token.",
        ),
        click.option(
            "--token", envvar="EDGEPACK_FLEET_TOKEN", help="Access token [EDGEPACK_FLEET_TOKEN]."
        ),
        click.option(
            "--url", envvar="EDGEPACK_FLEET_URL", help="The fleet's address [EDGEPACK_FLEET_URL]."
        ),
    ):
        command = option(command)
    return command


class Client:
    """One fleet, as seen from the command line.

    Args:
        url: Base URL; None: from DATA.
        token: Bearer token; None: the bootstrap token of DATA.
        data: The fleet's data directory, if it is on this machine.

    Raises:
        UsageError: it is not said which fleet is meant.
        UnreachableError: the fleet of DATA is not running.
    """

    def __init__(self, url: str | None, token: str | None, data: Path | None) -> None:
        # A fleet on this machine may show a certificate of its own authority.
        self._authorities = data and data / "pki" / "bundle.pem"
        if data is not None:
            url, token = _local(data)
        if not url or not token:
            raise UsageError(
                "which fleet?",
                why="neither --data nor --url and --token are given",
                fix="set EDGEPACK_FLEET_URL and EDGEPACK_FLEET_TOKEN, or give --data DIR",
                reason="no_fleet",
            )
        self._url, self._token = url.strip().rstrip("/"), token.strip()
        if not (self._token.isascii() and self._token.isprintable()):
            # Said here: what fails further down would show the token in its message.
            raise UsageError("the access token has characters that no token has", reason="token")

    def get(self, *path: str, **query: Filter) -> Any:
        """Return the JSON at PATH, one name a level, below `/api/v1`.

        Raises:
            EdgepackError: what the fleet answered, as the error that it speaks of.
            UnreachableError: it does not answer.
        """
        return self._ask("GET", path, query=query)

    def post(self, *path: str, body: Any = None) -> Any:
        """Post BODY to PATH below `/api/v1` and return the answer's JSON; raises like `get`.

        What the fleet did is not done twice, even if the answer was lost on its way.
        """
        return self._ask("POST", path, body, key=secrets.token_urlsafe(24))

    def delete(self, *path: str) -> None:
        """Delete what is at PATH below `/api/v1`; raises like `get`."""
        self._ask("DELETE", path)

    def items(self, *path: str, **query: Filter) -> Iterator[dict[str, Any]]:
        """Yield the items of the list at PATH, page by page to its end; raises like `get`."""
        cursor = None
        while True:
            page = self.get(*path, limit=PAGE, cursor=cursor, **query)
            yield from page.get("items", ())
            if (cursor := page.get("next")) is None:
                return

    def list(self, *path: str, **query: Filter) -> dict[str, list[dict[str, Any]]]:
        """Return the whole list at PATH under the name of its last level; raises like `get`."""
        return {path[-1].replace("-", "_"): list(self.items(*path, **query))}

    def _ask(
        self,
        method: str,
        path: Sequence[str],
        body: Any = None,
        *,
        query: Mapping[str, Filter] | None = None,
        key: str = "",
    ) -> Any:
        import httpx

        url = "/".join((self._url, "api/v1", *map(_level, path)))
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        asked = {name: _word(value) for name, value in (query or {}).items() if value is not None}

        def once() -> httpx.Response:
            return httpx.request(
                method,
                url,
                params=asked,
                content=_packed(body),
                headers=headers,
                timeout=TIMEOUT_S,
                verify=_trust(self._authorities),
            )

        try:
            answer = _patiently(once)
            document = None if answer.status_code == 204 else answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _silent(self._url, str(error)) from error
        except ValueError as error:
            raise _silent(self._url, NO_FLEET) from error
        if answer.is_error:
            raise _error(answer.status_code, document)
        if not answer.is_success or not (document is None or isinstance(document, dict)):
            raise _silent(self._url, NO_FLEET)
        return document


def _patiently(ask: Callable[[], Any]) -> Any:
    """Return the answer to ASK; ask again if it broke off, or if we ask too much at once."""
    import httpx

    for _ in range(TRIES - 1):
        try:
            answer = ask()
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            continue
        if answer.status_code != 429:
            return answer
        wait = answer.headers.get("Retry-After", "")
        time.sleep(min(LONGEST_PAUSE_S, float(wait) if wait.isdigit() else 1.0))
    return ask()


def _trust(authorities: Path | None) -> Any:
    """Return whom to believe over https: those of the system, and AUTHORITIES if they are there."""
    if authorities is None or not authorities.is_file():
        return True
    import httpx

    context = httpx.create_ssl_context()
    context.load_verify_locations(authorities)
    return context


def _word(value: Filter) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _local(data: Path) -> tuple[str, str]:
    from edgepack_fleet.access import bootstrap_token, fleet_secret

    token = bootstrap_token(fleet_secret(data, create=False), "admin")
    try:
        path = data / "endpoints.json"
        # Any worker will do, if the first one is not there.
        others = () if path.exists() else sorted(data.glob("endpoints-*.json"))
        endpoints = json.loads(next(iter(others), path).read_text())
        return str(endpoints["http"]), token
    except FileNotFoundError as error:
        raise _silent(str(data), "it is not running") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _silent(str(data), "its endpoints.json cannot be read") from error


def _level(name: str) -> str:
    """Return NAME as one level of a path: what a person typed leads nowhere else."""
    if name in {"", ".", ".."} or "/" in name:
        raise UsageError(f"not a name: {name!r}")
    return quote(name, safe="@")


def _packed(body: Any) -> bytes | None:
    try:
        return None if body is None else json.dumps(body, allow_nan=False).encode()
    except ValueError as error:
        raise UsageError("a number must be finite", why=str(error)) from error


def _silent(where: str, why: str) -> UnreachableError:
    return UnreachableError(
        f"the fleet at {where} does not answer",
        why=why,
        fix="start it: edgepack fleet serve --data DIR",
        reason="fleet_unreachable",
    )


def _error(status: int, document: Any) -> EdgepackError:
    """Return the error a problem DOCUMENT speaks of."""
    facts = document if isinstance(document, dict) else {}
    what = str(facts.get("detail", f"the fleet answered with status {status}"))
    known = {c.exit_code: c for c in map(errors.__dict__.get, errors.__all__) if c}
    kind = UsageError if status in {401, 403} else known.get(facts.get("code", 1), UnreachableError)
    fix = str(facts.get("fix", ""))
    if status == 401:
        fix = "edgepack fleet tokens show --data DIR --role operator"
    return kind(what, why=str(facts.get("why", "")), fix=fix, reason=str(facts.get("reason", "")))
