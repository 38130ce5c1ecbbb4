"""The pages of releases: what is published, two of them side by side, and drift."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from edgepack_fleet.core.variants import Release
from edgepack_fleet.service import Service
from edgepack_fleet.web import drift_story, release_facts
from edgepack_fleet.web.browser import Viewer
from edgepack_fleet.web.guard import service_of
from edgepack_fleet.web.rendering import PageError, page

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
Named = Annotated[str, Query(max_length=200)]
router = APIRouter(include_in_schema=False)


@router.get("/releases")
def releases(request: Request, fleet: Fleet, role: Viewer) -> Response:
    """Show what has been published, the newest first."""
    found = [release_facts.facts(release, fleet.content.read) for release in fleet.releases()]
    with fleet.database.read() as db:
        runs = release_facts.running(db)
    return page(request, "releases", role=role, releases=found[::-1], runs=runs)


@router.get("/releases/compare")
def compare(request: Request, fleet: Fleet, role: Viewer, a: Named = "", b: Named = "") -> Response:
    """Show two releases side by side; without names, the two newest of a model."""
    published = fleet.releases()
    pair = [_found(published, name) for name in (a, b) if name] if a or b else _newest(published)
    sides = [release_facts.facts(release, fleet.content.read) for release in pair]
    with fleet.database.read() as db:
        runs = release_facts.running(db)
        outcomes = [release_facts.outcome(db, release.id) for release in pair]
    return page(
        request,
        "compare",
        role=role,
        names=[release.id for release in published],
        sides=sides,
        variants=release_facts.by_label(sides),
        outcomes=outcomes,
        runs=runs,
    )


@router.get("/drift")
def drift(request: Request, fleet: Fleet, role: Viewer, release: Named = "") -> Response:
    """Show whether what models see and say has changed."""
    with fleet.database.read() as db:
        runs = release_facts.running(db)
        chosen = release or max(runs, key=lambda name: (runs[name], name), default="")
        found = drift_story.read(db, chosen, fleet.now()) if chosen else None
    return page(request, "drift", role=role, names=sorted(runs), chosen=chosen, found=found)


def _found(published: list[Release], name: str) -> Release:
    for release in published:
        if release.id == name:
            return release
    raise PageError(404, f"There is no release {name}")


def _newest(published: list[Release]) -> list[Release]:
    """Return the two newest releases of the model that was published last; fewer if it has not."""
    if not published:
        return []
    line = [release for release in published if release.name == published[-1].name]
    return line[-2:]
