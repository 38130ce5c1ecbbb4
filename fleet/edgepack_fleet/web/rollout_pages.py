"""The pages of rollouts: the list, one on its way, its decisions, and what people may do."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import func, select
from starlette.responses import RedirectResponse, Response

from edgepack.errors import EdgepackError
from edgepack_fleet import store
from edgepack_fleet.access import Role
from edgepack_fleet.adapters.tables import RolloutRow
from edgepack_fleet.core.overtaking import OFFERED, Line, offered, overtaken_said
from edgepack_fleet.replaying import made_of
from edgepack_fleet.service import Service
from edgepack_fleet.web import rollout_counts, rollout_story
from edgepack_fleet.web.browser import Operator, Viewer, may
from edgepack_fleet.web.guard import service_of
from edgepack_fleet.web.rendering import PageError, page

__all__ = ["router"]

PAGE = 20
MEMBERS = 50
DECISIONS = 25
ACTIONS = frozenset(action for every in OFFERED.values() for action in every)

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(include_in_schema=False)


@router.get("/rollouts")
def rollouts(
    request: Request,
    fleet: Fleet,
    role: Viewer,
    number: Annotated[int, Query(ge=1, le=10**6, alias="page")] = 1,
) -> Response:
    """Show all rollouts, the newest first."""
    newest = select(RolloutRow).order_by(RolloutRow.number.desc())
    with fleet.database.read() as db:
        total = db.scalar(select(func.count()).select_from(RolloutRow)) or 0
        rows = db.scalars(newest.offset((number - 1) * PAGE).limit(PAGE)).all()
        found = rollout_counts.briefs(db, rows)
    pages = max(1, -(-total // PAGE))
    return page(
        request, "rollouts", role=role, rollouts=found, total=total, number=number, pages=pages
    )


@router.get("/rollouts/{rollout_id}")
def rollout(
    request: Request,
    fleet: Fleet,
    role: Viewer,
    rollout_id: str,
    status: Annotated[str, Query(max_length=20)] = "",
    number: Annotated[int, Query(ge=1, le=10**6, alias="page")] = 1,
) -> Response:
    """Show one rollout on its way."""
    return _rollout_page(request, fleet, role, rollout_id, status=status, number=number)


@router.get("/rollouts/{rollout_id}/decisions")
def decisions(request: Request, fleet: Fleet, role: Viewer, rollout_id: str) -> Response:
    """Show who decided what, each decision made once more from its inputs."""
    with fleet.database.read() as db:
        row = _row(db.get(RolloutRow, rollout_id), rollout_id)
        made = made_of(db, rollout_id, DECISIONS)
    counts = [(one, Counter(action["do"] for action in one.actions)) for one in made]
    return page(request, "decisions", role=role, rollout=row, made=counts)


@router.get("/rollouts/{rollout_id}/{action}")
def ask(request: Request, fleet: Fleet, role: Operator, rollout_id: str, action: str) -> Response:
    """Say what an action would do, and ask whether it shall be done."""
    if action not in ACTIONS:
        raise PageError(404, "There is no such action")
    with fleet.database.read() as db:
        row = _row(db.get(RolloutRow, rollout_id), rollout_id)
        found = rollout_story.track(db, row, fleet.now())
        first = store.overtakers(db, [row]).get(rollout_id)
    overtaken = first is not None
    text = rollout_story.consequence(action, found, overtaken=overtaken)
    allowed = action in offered(row.state, overtaken=overtaken)
    return page(
        request, "confirm_rollout", role=role, rollout=row, action=action, text=text,
        allowed=allowed,
    )  # fmt: skip


@router.post("/rollouts/{rollout_id}/{action}")
def change_rollout(
    request: Request, fleet: Fleet, role: Operator, rollout_id: str, action: str
) -> Response:
    """Start, approve, pause, resume, cancel or revert a rollout."""
    if action not in ACTIONS:
        raise PageError(404, "There is no such action")
    try:
        getattr(fleet.rollouts, action)(rollout_id, by=request.state.caller.known_as)
    except EdgepackError as error:
        return _rollout_page(request, fleet, role, rollout_id, error=error)
    fleet.poke()
    return RedirectResponse(f"/rollouts/{rollout_id}", 303)


def _rollout_page(
    request: Request,
    fleet: Service,
    role: Role,
    rollout_id: str,
    *,
    status: str = "",
    number: int = 1,
    error: EdgepackError | None = None,
) -> Response:
    with fleet.database.read() as db:
        row = _row(db.get(RolloutRow, rollout_id), rollout_id)
        track = rollout_story.track(db, row, fleet.now())
        first = store.overtakers(db, [row]).get(rollout_id)
    chosen = [part for part in track.parts if status in {"", part.status}]
    return page(
        request,
        "rollout",
        409 if error else 200,
        role=role,
        rollout=row,
        policy=track.rollout.policy,
        track=track,
        actions=offered(row.state, overtaken=first is not None) if may(role) else (),
        overtaken=_overtaken(row, first),
        members=_members(chosen, number),
        statuses=Counter(part.status for part in track.parts),
        status=status,
        number=number,
        pages=max(1, -(-len(chosen) // MEMBERS)),
        error=error,
    )


def _overtaken(row: RolloutRow, first: Line | None) -> str:
    """Return what is said of a paused rollout that FIRST goes before; else nothing."""
    return overtaken_said(first) if first and row.state == "paused" else ""


def _members(chosen: Sequence[rollout_story.Part], number: int) -> Sequence[rollout_story.Part]:
    """Return one page: those that failed first, then those under way, those without it last."""
    order = {"FAILED": 0, "REJECTED": 0, "TIMED_OUT": 0, "IN_PROGRESS": 1, "SUCCEEDED": 3}
    ranked = sorted(chosen, key=lambda m: (m.wave is None, order.get(m.status, 2), m.id))
    return ranked[(number - 1) * MEMBERS : number * MEMBERS]


def _row(row: RolloutRow | None, rollout_id: str) -> RolloutRow:
    if row is None:
        raise PageError(404, f"There is no rollout {rollout_id}")
    return row
