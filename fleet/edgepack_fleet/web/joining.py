"""The REST interface to who may join: applicants, and devices known beforehand. Routes only."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from edgepack_fleet.adapters.device_tables import ApplicantRow, ExpectedRow
from edgepack_fleet.admission import Expected, state_of
from edgepack_fleet.service import Service
from edgepack_fleet.web import organise_schemas as schemas
from edgepack_fleet.web import paging, queries
from edgepack_fleet.web.guard import PREFIX, Operator, Who, service_of

__all__ = ["router"]

APPLICANTS: paging.Order = {"created": (ApplicantRow.created, ApplicantRow.id)}
EXPECTED: paging.Order = {"created": (ExpectedRow.created, ExpectedRow.id)}

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX, dependencies=[Operator])


@router.get("/applicants")
def list_applicants(
    fleet: Fleet, asked: Annotated[queries.ApplicantQuery, Query()]
) -> schemas.Applicants:
    """List devices that ask to join, or have asked, newest first."""
    now = fleet.now()
    over = ApplicantRow.state.in_(("pending", "accepted")) & (ApplicantRow.deadline <= now)
    filters = [
        (asked.group is not None, ApplicantRow.group_id == asked.group),
        (asked.state == "expired", over),
        (asked.state not in {None, "expired"}, (ApplicantRow.state == asked.state) & ~over),
    ]
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, ApplicantRow, filters, APPLICANTS, asked)
    return schemas.Applicants(items=[_applicant(row, now) for row in rows], next=after)


@router.post("/applicants/{applicant}/accept")
def accept_applicant(fleet: Fleet, applicant: str, who: Who) -> schemas.Applicant:
    """Let a device in when it asks the next time."""
    fleet.roster.admission.accept(applicant, who)
    return _shown(fleet, applicant)


@router.post("/applicants/{applicant}/reject")
def reject_applicant(fleet: Fleet, applicant: str, who: Who) -> schemas.Applicant:
    """Refuse a device."""
    fleet.roster.admission.reject(applicant, who)
    return _shown(fleet, applicant)


@router.get("/preauthorised")
def list_expected(
    fleet: Fleet, asked: Annotated[queries.ExpectedQuery, Query()]
) -> schemas.ExpectedDevices:
    """List devices that are let in without asking."""
    filters = [
        (asked.group is not None, ExpectedRow.group_id == asked.group),
        (asked.used is True, ExpectedRow.used_by != ""),
        (asked.used is False, ExpectedRow.used_by == ""),
    ]
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, ExpectedRow, filters, EXPECTED, asked)
    return schemas.ExpectedDevices(items=[_expected(row) for row in rows], next=after)


@router.post("/preauthorised", status_code=201)
def expect_devices(fleet: Fleet, new: schemas.NewExpectedDevices, who: Who) -> schemas.Added:
    """Let devices in without asking, once each, when they come with a token of approval."""
    devices = [
        Expected(group=d.group, device=d.id, fingerprint=d.fingerprint, tags=d.tags)
        for d in new.devices
    ]
    return schemas.Added(added=fleet.roster.admission.expect(devices, who))


@router.delete("/preauthorised/{entry}", status_code=204)
def forget_expected(fleet: Fleet, entry: str) -> None:
    """Do not expect a device any more."""
    fleet.roster.admission.forget(entry)


def _shown(fleet: Service, applicant: str) -> schemas.Applicant:
    with fleet.database.read() as db:
        return _applicant(db.get_one(ApplicantRow, applicant), fleet.now())


def _applicant(row: ApplicantRow, now: float) -> schemas.Applicant:
    return schemas.Applicant(
        id=row.id,
        name=row.name,
        fingerprint=row.fingerprint,
        group=row.group_id,
        token=row.token_id,
        inventory=row.inventory,
        created=row.created,
        deadline=row.deadline,
        state=state_of(row, now),
        by=row.by,
        decided=row.decided,
    )


def _expected(row: ExpectedRow) -> schemas.Expected:
    return schemas.Expected(
        id=row.id,
        device=row.device,
        fingerprint=row.fingerprint,
        group=row.group_id,
        tags=row.tags,
        created=row.created,
        by=row.by,
        used_by=row.used_by,
    )
