"""Who asks to join: shown among the devices, let in or refused from there."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from edgepack.errors import EdgepackError
from edgepack_fleet.adapters.device_tables import ApplicantRow
from edgepack_fleet.admission import state_of
from edgepack_fleet.service import Service
from edgepack_fleet.web.browser import Operator
from edgepack_fleet.web.guard import service_of
from edgepack_fleet.web.rendering import PageError, page

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(include_in_schema=False)


@router.get("/applicants/{applicant}/{action}")
def ask_about_applicant(
    request: Request,
    fleet: Fleet,
    role: Operator,
    applicant: str,
    action: Literal["accept", "reject"],
) -> Response:
    """Say who asks, and ask whether it shall be let in or refused."""
    with fleet.database.read() as db:
        row = db.get(ApplicantRow, applicant)
        if row is None:
            raise PageError(404, "Nobody asks to join by that name")
        state = state_of(row, fleet.now())
        return page(
            request, "confirm_applicant", role=role, applicant=row, action=action, state=state
        )


@router.post("/applicants/{applicant}/{action}")
def decide_on_applicant(
    request: Request,
    fleet: Fleet,
    _role: Operator,
    applicant: str,
    action: Literal["accept", "reject"],
) -> Response:
    """Let somebody in when they ask the next time, or refuse them."""
    decide = getattr(fleet.roster.admission, action)
    try:
        decide(applicant, request.state.caller.known_as)
    except EdgepackError as error:
        raise PageError(409, f"{error}".partition("\n")[0]) from error
    return RedirectResponse("/devices", 303)
