"""The overview: how the fleet is, what needs somebody, what has happened. Server-rendered.

No request leaves here. Pages show what the REST interface shows, from the same views.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from edgepack_fleet.admission import waiting
from edgepack_fleet.service import Service
from edgepack_fleet.web import alert_story, figures, rollout_counts
from edgepack_fleet.web.browser import Viewer
from edgepack_fleet.web.guard import service_of
from edgepack_fleet.web.rendering import page

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(include_in_schema=False)
HELD = frozenset({"paused", "awaiting_approval"})
"""States in which a rollout waits for somebody."""


@router.get("/")
def overview(request: Request, fleet: Fleet, role: Viewer) -> Response:
    """Show how the fleet is and what needs attention."""
    with fleet.database.read() as db:
        busy = figures.busy(db)
        held = [row for row in busy if row.state in HELD]
        return page(
            request,
            "overview",
            role=role,
            figures=figures.count(db),
            rollouts=rollout_counts.briefs(db, figures.rollouts(db, busy)),
            busy=len(busy),
            running=sum(row.state == "running" for row in busy),
            held=held[: figures.SHOWN],
            on_hold=len(held),
            failing=figures.failing(db),
            offline=figures.offline(db),
            recent=figures.recent(db),
            alerts=alert_story.open_alerts(db, fleet.alerts.config.rules),
            told=alert_story.history(db),
            waiting=len(waiting(db, fleet.now())),
            published=bool(fleet.releases()),
        )
