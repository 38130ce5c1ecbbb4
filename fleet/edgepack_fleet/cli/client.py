"""The command line's way to a running fleet: finds it, asks it, and turns problems into errors."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from edgepack import errors
from edgepack.errors import EdgepackError, UnreachableError, UsageError

__all__ = ["Client", "connection_options"]

TIMEOUT_S = 30.0
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

    def get(self, *path: str) -> Any:
        """Return the JSON at PATH, one name a level, below `/api/v1`."""
        return self._ask("GET", path)

    def post(self, *path: str, body: Any = None) -> Any:
        """Post BODY to PATH below `/api/v1` and return the answer's JSON."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: Sequence[str], body: Any = None) -> Any:
        import httpx

        try:
            answer = httpx.request(
                method,
                "/".join((self._url, "api/v1", *map(_level, path))),
                content=_packed(body),
                headers={
                    "Authorization": f"Bearer {self._token}",
                    "Content-Type": "application/json",
                },
                timeout=TIMEOUT_S,
            )
            document = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _silent(self._url, str(error)) from error
        except ValueError as error:
            raise _silent(self._url, NO_FLEET) from error
        if answer.is_error:
            raise _error(answer.status_code, document)
        if not answer.is_success or not isinstance(document, dict):
            raise _silent(self._url, NO_FLEET)
        return document


def _local(data: Path) -> tuple[str, str]:
    from edgepack_fleet.access import bootstrap_token, fleet_secret

    token = bootstrap_token(fleet_secret(data, create=False), "admin")
    try:
        endpoints = json.loads((data / "endpoints.json").read_text())
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
