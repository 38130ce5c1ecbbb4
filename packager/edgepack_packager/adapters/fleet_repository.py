"""A fleet's image repository over its REST API. Signs nothing; the fleet signs its own roles."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self

import httpx
import msgspec

from edgepack.errors import (
    BudgetError,
    EdgepackError,
    IntegrityError,
    UnreachableError,
    UnsupportedError,
    UsageError,
)
from edgepack.offers import Offer, Offers, read_offers
from edgepack_packager.adapters.published import PIECE, pieces, take

__all__ = ["FleetRepository"]

PREFIX = "/api/v1/repo"
TIMEOUT = httpx.Timeout(30.0, connect=5.0)


class FleetRepository:
    """The image repository of the fleet at URL, as someone whose TOKEN is an operator's.

    A context manager, which keeps its connections for as long as it is open.
    """

    def __init__(self, url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self._url + PREFIX, headers=headers, timeout=TIMEOUT, follow_redirects=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def online_keys(self) -> dict[str, Any]:
        """Return the fleet's public snapshot and timestamp keys, as TUF writes them.

        Raises:
            UnreachableError: the fleet does not answer.
            UsageError: it refuses the token.
        """
        return self._document(self._ask("GET", "/online-keys"))

    def metadata(self, name: str) -> bytes | None:
        """Return the metadata file NAME; None if there is none."""
        response = self._ask("GET", f"/metadata/{name}", missing=True)
        return None if response.status_code == httpx.codes.NOT_FOUND else response.content

    def has(self, sha256: str, size: int) -> bool:
        """Return whether the blob SHA256 is there; the fleet knows no blob of another SIZE."""
        response = self._ask("HEAD", f"/blobs/{sha256}", missing=True)
        return response.status_code != httpx.codes.NOT_FOUND

    def put(self, sha256: str, size: int, file: BinaryIO) -> None:
        """Send the blob SHA256 of SIZE bytes from FILE."""
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        self._ask("PUT", f"/blobs/{sha256}", content=pieces(file), headers=headers)

    def fetch(self, sha256: str, size: int, path: Path) -> None:
        """Write the blob SHA256 of SIZE bytes to PATH, checked.

        Raises:
            IntegrityError: what came is not that blob.
            UnreachableError: the fleet does not answer, or does not have it.
        """
        with self._as_our_errors(), self._client.stream("GET", f"/blobs/{sha256}") as response:
            if not response.is_success:
                response.read()
                raise self._refusal(response)
            take(response.iter_bytes(PIECE), sha256, size, path)

    def offers(self, target: str, size: int) -> Offers:
        """Return the patches that are offered to the blob TARGET of SIZE bytes."""
        response = self._ask("GET", f"/patches/{target}", missing=True)
        if response.status_code == httpx.codes.NOT_FOUND:
            return Offers(target=target, target_size=size)
        return read_offers(response.content, target, size)

    def offer(self, target: str, size: int, more: Sequence[Offer]) -> None:
        """Offer MORE patches, which have been sent, to the blob TARGET of SIZE bytes."""
        offers = [msgspec.to_builtins(offer) for offer in more]
        self._ask("POST", f"/patches/{target}", json={"target_size": size, "offers": offers})

    def next_online_keys(self) -> dict[str, Any]:
        """Let the fleet make the keys that shall replace its online keys; return their publics.

        They count from the moment a root that names them is published.

        Raises:
            UnreachableError: the fleet does not answer.
            UsageError: it refuses the token.
        """
        return self._document(self._ask("POST", "/online-keys/next"))

    def commit(self, files: Mapping[str, bytes], roles: Mapping[str, bytes]) -> int:
        """Push FILES; the fleet checks them and signs its own roles around all of ROLES."""
        texts = {name: data.decode() for name, data in files.items()}
        answer = self._document(self._ask("POST", "/publish", json={"metadata": texts}))
        return int(answer.get("snapshot", 0))

    def _ask(self, method: str, path: str, *, missing: bool = False, **more: Any) -> httpx.Response:
        with self._as_our_errors():
            response = self._client.request(method, path, **more)
        if response.is_success or (missing and response.status_code == httpx.codes.NOT_FOUND):
            return response
        raise self._refusal(response)

    def _document(self, response: httpx.Response) -> dict[str, Any]:
        document = _json(response)
        if not document:
            raise self._unreachable("what answers there is not a fleet")
        return document

    @contextmanager
    def _as_our_errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._unreachable(str(error)) from error

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"the fleet at {self._url} does not answer",
            why=why,
            fix="check --repo or --fleet, and that `edgepack fleet serve` runs",
        )

    def _refusal(self, response: httpx.Response) -> EdgepackError:
        """Return the error the fleet speaks of in its problem document."""
        problem = _json(response)
        what = str(problem.get("detail") or response.reason_phrase)
        if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            return UsageError(
                f"the fleet at {self._url} refuses the token",
                why=what,
                fix="give an operator's token: --token, or EDGEPACK_FLEET_TOKEN",
                reason="unauthorized",
            )
        kind = _KINDS.get(problem.get("code", 0))
        if kind is None:
            return self._unreachable(f"{response.status_code}: {what}")
        said = {name: str(problem.get(name, "")) for name in ("why", "fix", "reason")}
        return kind(f"the fleet refuses: {what}", **said)


_KINDS: dict[Any, type[EdgepackError]] = {
    kind.exit_code: kind for kind in (UsageError, IntegrityError, UnsupportedError, BudgetError)
}


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
