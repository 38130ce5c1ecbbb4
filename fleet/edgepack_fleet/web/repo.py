"""The REST interface of publishers: signed metadata, blobs, patches. Routes only."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from starlette.exceptions import HTTPException

from edgepack.offers import Offer, offers_name
from edgepack_fleet.service import Service
from edgepack_fleet.web import schemas
from edgepack_fleet.web.blobs import blob_response
from edgepack_fleet.web.guard import PREFIX, Operator, service_of

__all__ = ["router"]

MAX_BLOB = 8 * 1024**3
"""Bytes of one file of a model."""

Fleet = Annotated[Service, Depends(service_of)]
JSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}}}}
BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

router = APIRouter(prefix=f"{PREFIX}/repo")


@router.get("/online-keys", dependencies=[Operator])
def online_keys(fleet: Fleet) -> dict[str, Any]:
    """Return the public keys a publisher's root must name for snapshot and timestamp."""
    return fleet.images.online_keys()


@router.post("/online-keys/next", dependencies=[Operator])
def next_online_keys(fleet: Fleet) -> dict[str, Any]:
    """Make the keys that shall replace the online keys; they count once a root names them."""
    return fleet.images.next_online_keys()


@router.get("/metadata/{name}", dependencies=[Operator], response_class=Response, responses=JSON)
def repo_metadata(fleet: Fleet, name: str) -> Response:
    """Return a metadata file of the image repository."""
    data = fleet.images.metadata(name)
    if data is None:
        raise HTTPException(404, f"no metadata file {name!r}")
    return Response(data, media_type="application/json")


@router.head("/blobs/{sha256}", dependencies=[Operator], response_class=Response)
def has_blob(fleet: Fleet, sha256: str) -> Response:
    """Say whether a blob is here: 200 with its size, or 404."""
    size = fleet.content.size(sha256)
    if size is None:
        return Response(status_code=404)
    return Response(headers={"content-length": str(size)})


@router.put(
    "/blobs/{sha256}",
    status_code=201,
    dependencies=[Operator],
    openapi_extra={"requestBody": {"required": True, "content": BINARY}},
)
async def put_blob(request: Request, fleet: Fleet, sha256: str) -> dict[str, int]:
    """Store a blob; the body must have the digest it is named by."""
    pieces = _pieces(request.stream())
    size = await anyio.to_thread.run_sync(lambda: fleet.content.put(sha256, pieces, limit=MAX_BLOB))
    return {"size": size}


@router.get(
    "/blobs/{sha256}",
    dependencies=[Operator],
    response_class=Response,
    responses={200: {"content": BINARY}},
)
async def get_blob(request: Request, fleet: Fleet, sha256: str) -> Response:
    """Return a blob, or a range of it."""
    return await blob_response(fleet.content, sha256, request.headers.get("range"))


@router.get("/patches/{target}", dependencies=[Operator], response_class=Response, responses=JSON)
def get_patches(fleet: Fleet, target: str) -> Response:
    """Return the patches that are offered to a blob."""
    data = fleet.patches.file(offers_name(target))
    if data is None:
        raise HTTPException(404, f"no patches to {target}")
    return Response(data, media_type="application/json")


@router.post("/patches/{target}", status_code=204, dependencies=[Operator])
def offer_patches(fleet: Fleet, target: str, offered: schemas.OfferedPatches) -> None:
    """Offer patches, which were put as blobs, in place of a blob."""
    offers = [Offer(**offer.model_dump()) for offer in offered.offers]
    fleet.patches.add(target, offered.target_size, offers)


@router.post("/publish", dependencies=[Operator])
def publish(fleet: Fleet, push: schemas.Push) -> schemas.Published:
    """Make metadata that the publisher has signed the current state of the repository."""
    files = {name: text.encode() for name, text in push.metadata.items()}
    result = fleet.images.publish(files)
    return schemas.Published(releases=list(result.releases), snapshot=result.snapshot)


def _pieces(stream: AsyncIterator[bytes]) -> Iterator[bytes]:
    """Yield the body in a worker thread as it arrives, so that no file is held in memory."""

    async def following() -> bytes | None:
        return await anext(stream, None)

    while (piece := anyio.from_thread.run(following)) is not None:
        yield piece
