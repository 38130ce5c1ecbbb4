"""The pages of releases: what is published, two of them side by side, and drift."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import select
from starlette.responses import Response

from edgepack_fleet.adapters.tables import GroupRow
from edgepack_fleet.core.drifting import Rule
from edgepack_fleet.core.variants import Release
from edgepack_fleet.service import Service
from edgepack_fleet.web import drift_story, release_facts, release_health
from edgepack_fleet.web.browser import Viewer
from edgepack_fleet.web.guard import service_of
from edgepack_fleet.web.rendering import PageError, page
from edgepack_fleet.windows import Window

__all__ = ["router"]

DAY_S = 86_400.0
GROUPS = select(GroupRow.id).order_by(GroupRow.id)

Fleet = Annotated[Service, Depends(service_of)]
Named = Annotated[str, Query(max_length=200)]
Days = Literal["1", "7", "30"]
router = APIRouter(include_in_schema=False)


@router.get("/releases")
def releases(request: Request, fleet: Fleet, role: Viewer) -> Response:
    """Show what has been published, the newest first."""
    found = [release_facts.facts(release, fleet.content.read) for release in fleet.releases()]
    with fleet.database.read() as db:
        runs = release_facts.running(db)
    return page(request, "releases", role=role, releases=found[::-1], runs=runs)


@router.get("/releases/compare")
def compare(
    request: Request,
    fleet: Fleet,
    role: Viewer,
    a: Named = "",
    b: Named = "",
    group: Named = "",
    days: Days = "7",
) -> Response:
    """Show two releases side by side; without names, the two newest of a model."""
    published = fleet.releases()
    pair = [_found(published, name) for name in (a, b) if name] if a or b else _newest(published)
    sides = [release_facts.facts(release, fleet.content.read) for release in pair]
    with fleet.database.read() as db:
        windows = [_window(fleet, release.id, days, group) for release in pair]
        return page(
            request,
            "compare",
            role=role,
            names=[release.id for release in published],
            groups=db.scalars(GROUPS).all(),
            group=group,
            days=days,
            sides=sides,
            variants=release_facts.by_label(sides),
            outcomes=[release_facts.outcome(db, release.id) for release in pair],
            runs=release_facts.running(db),
            field=release_health.field(db, *windows) if len(windows) == 2 else None,
        )


@router.get("/drift")
def drift(
    request: Request,
    fleet: Fleet,
    role: Viewer,
    release: Named = "",
    group: Named = "",
    days: Days = "1",
) -> Response:
    """Show whether what models see and say has changed."""
    with fleet.database.read() as db:
        runs = release_facts.running(db)
        chosen = release or max(runs, key=lambda name: (runs[name], name), default="")
        window = _window(fleet, chosen, days, group)
        rule = Rule()
        variants = drift_story.of_fleet(db, window, fleet.baselines.of, rule)
        return page(
            request,
            "drift",
            role=role,
            names=sorted(runs),
            groups=db.scalars(GROUPS).all(),
            chosen=chosen,
            group=group,
            days=days,
            rule=rule,
            variants=variants,
            together=drift_story.together(variants),
            seen=drift_story.of_devices(db, chosen, group, fleet.now()),
            labels=_labels(fleet.releases()),
            beside=release_health.beside,
        )


def _window(fleet: Service, release: str, days: Days, group: str) -> Window:
    now = fleet.now()
    return Window(release, now - int(days) * DAY_S, now, group or None)


def _labels(published: list[Release]) -> dict[str, str]:
    """Return what variants are called, by digest."""
    return {
        f"sha256:{variant.sha256}": f"{variant.model.runtime} {variant.model.precision}"
        for release in published
        for variant in release.variants
    }


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
