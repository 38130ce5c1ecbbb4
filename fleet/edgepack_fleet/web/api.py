"""The REST interface to devices, groups, releases and rollouts. Routes only."""

from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request

from edgepack_fleet.access import Role
from edgepack_fleet.core.gates import parse_gate
from edgepack_fleet.core.model import Policy
from edgepack_fleet.enrolment import Offer, token_text
from edgepack_fleet.replaying import made_of
from edgepack_fleet.rollouts import Plan, unknown_rollout
from edgepack_fleet.service import Service
from edgepack_fleet.web import lists, queries, rollout_views, schemas, views
from edgepack_fleet.web.guard import PREFIX, Admin, Operator, Viewer, Who, service_of

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX)


@router.get("/health")
def health(fleet: Fleet) -> schemas.Health:
    """Say whether the fleet can do its work; needs no token."""
    up = fleet.link.connected
    refused = dict(fleet.uplink.refused + fleet.transfer.refused)
    return schemas.Health(
        status="ok" if up else "degraded",
        broker=up,
        version=version("edgepack"),
        refused=refused,
    )


@router.get("/session")
def session(role: Annotated[Role, Viewer]) -> schemas.Session:
    """Say what the token may do."""
    return schemas.Session(role=role)


@router.get("/devices", dependencies=[Viewer])
def list_devices(fleet: Fleet, asked: Annotated[queries.DeviceQuery, Query()]) -> schemas.Devices:
    """List devices."""
    with fleet.database.read() as db:
        return lists.devices(db, asked)


@router.get("/devices/{device}", dependencies=[Viewer])
def show_device(fleet: Fleet, device: str) -> schemas.Device:
    """Show one device."""
    with fleet.database.read() as db:
        return views.known_device(db, device)


@router.post("/devices/{device}/revoke", dependencies=[Operator])
def revoke_device(fleet: Fleet, device: str, who: Who) -> schemas.RevokedDevice:
    """Revoke a device for good: it is refused at once, and its open session is ended."""
    done = fleet.revocation.revoke(device, by=who)
    fleet.poke()
    return schemas.RevokedDevice(device=done.device, revoked=done.at, session=done.session)


@router.post("/devices/{device}/reports", dependencies=[Operator])
def take_reports(
    fleet: Fleet, device: str, carried: schemas.CarriedReports
) -> schemas.TakenReports:
    """Take reports that a person carried here; what has arrived before does not count again."""
    show_device(fleet, device)
    refused = fleet.uplink.carried(device, carried.kind, carried.payload)
    return schemas.TakenReports(taken=not refused, refused=refused)


@router.get("/events", dependencies=[Viewer])
def list_events(fleet: Fleet, asked: Annotated[queries.EventQuery, Query()]) -> schemas.Events:
    """List what happened on devices, newest first."""
    with fleet.database.read() as db:
        return lists.events(db, asked)


@router.get("/groups", dependencies=[Viewer])
def list_groups(fleet: Fleet, asked: Annotated[queries.GroupQuery, Query()]) -> schemas.Groups:
    """List groups."""
    with fleet.database.read() as db:
        return lists.groups(db, asked)


@router.post("/groups", status_code=201, dependencies=[Operator])
def create_group(fleet: Fleet, new: schemas.NewGroup) -> schemas.Group:
    """Create a group: of the devices put into it, or of those that fit a filter."""
    fleet.roster.organiser.create_group(new.id, new.filter)
    return show_group(fleet, new.id)


@router.get("/groups/{group}", dependencies=[Viewer])
def show_group(fleet: Fleet, group: str) -> schemas.Group:
    """Show one group."""
    with fleet.database.read() as db:
        return views.known_group(db, group)


@router.get("/releases", dependencies=[Viewer])
def list_releases(
    fleet: Fleet, asked: Annotated[queries.ReleaseQuery, Query()]
) -> schemas.Releases:
    """List published releases; those of one model in the order in which they were published."""
    return lists.releases(fleet.releases(), asked)


@router.get("/releases/{release}", dependencies=[Viewer])
def show_release(fleet: Fleet, release: str) -> schemas.Release:
    """Show one release, `name@version`."""
    return views.release(fleet.rollouts.release(release))


@router.get("/rollouts", dependencies=[Viewer])
def list_rollouts(
    fleet: Fleet, asked: Annotated[queries.RolloutQuery, Query()]
) -> schemas.Rollouts:
    """List rollouts, newest first."""
    with fleet.database.read() as db:
        rows, after = lists.rollouts(db, asked)
        found = rollout_views.rollouts(db, rows, fleet.now())
    return schemas.Rollouts(items=found, next=after)


@router.post("/rollouts", status_code=201, dependencies=[Operator])
def create_rollout(fleet: Fleet, new: schemas.NewRollout, who: Who) -> schemas.Rollout:
    """Start a rollout, or make a draft of one."""
    rollout = fleet.rollouts.plan(_plan(new), by=who)
    fleet.poke()
    return show_rollout(fleet, rollout)


@router.post("/rollouts/rehearse", dependencies=[Operator])
def rehearse_rollout(fleet: Fleet, new: schemas.NewRollout) -> schemas.Rehearsal:
    """Say which device would get what in which wave, and why others would not; change nothing."""
    parts = fleet.rollouts.rehearse(_plan(new))
    return schemas.Rehearsal(devices=[schemas.Part(**asdict(part)) for part in parts])


@router.get("/rollouts/{rollout}", dependencies=[Viewer])
def show_rollout(fleet: Fleet, rollout: str) -> schemas.Rollout:
    """Show one rollout."""
    with fleet.database.read() as db:
        found = rollout_views.rollout(db, rollout, fleet.now())
    if found is None:
        raise unknown_rollout(rollout)
    return found


@router.get("/rollouts/{rollout}/decisions", dependencies=[Viewer])
def show_decisions(fleet: Fleet, rollout: str) -> schemas.Decisions:
    """Show the newest decisions about a rollout, each made once more from its inputs."""
    show_rollout(fleet, rollout)
    with fleet.database.read() as db:
        made = made_of(db, rollout)
    return schemas.Decisions(decisions=[schemas.Decision(**asdict(one)) for one in made])


@router.post("/rollouts/{rollout}/start", dependencies=[Operator])
def start_rollout(fleet: Fleet, rollout: str, who: Who) -> schemas.Rollout:
    """Start a draft."""
    fleet.rollouts.start(rollout, by=who)
    fleet.poke()
    return show_rollout(fleet, rollout)


@router.post("/rollouts/{rollout}/approve", dependencies=[Operator])
def approve_rollout(fleet: Fleet, rollout: str, who: Who) -> schemas.Rollout:
    """Let a rollout begin that waits for approval."""
    fleet.rollouts.approve(rollout, by=who)
    fleet.poke()
    return show_rollout(fleet, rollout)


@router.post("/rollouts/{rollout}/pause", dependencies=[Operator])
def pause_rollout(fleet: Fleet, rollout: str, who: Who) -> schemas.Rollout:
    """Assign nothing more until somebody resumes."""
    fleet.rollouts.pause(rollout, by=who)
    fleet.poke()
    return show_rollout(fleet, rollout)


@router.post("/rollouts/{rollout}/resume", dependencies=[Operator])
def resume_rollout(fleet: Fleet, rollout: str, who: Who) -> schemas.Rollout:
    """Go on; the failures and breaches so far are accepted."""
    fleet.rollouts.resume(rollout, by=who)
    fleet.poke()
    return show_rollout(fleet, rollout)


@router.post("/rollouts/{rollout}/cancel", dependencies=[Operator])
def cancel_rollout(fleet: Fleet, rollout: str, who: Who) -> schemas.Rollout:
    """End it; devices that have not finished are told to stop."""
    fleet.rollouts.cancel(rollout, by=who)
    fleet.poke()
    return show_rollout(fleet, rollout)


@router.post("/rollouts/{rollout}/revert", dependencies=[Operator])
def revert_rollout(fleet: Fleet, rollout: str, who: Who) -> schemas.Rollout:
    """Give every device that has the release what it had before."""
    fleet.rollouts.revert(rollout, by=who)
    fleet.poke()
    return show_rollout(fleet, rollout)


@router.get("/ca", dependencies=[Viewer])
def show_authorities(fleet: Fleet) -> schemas.Authorities:
    """Say which certificate authorities are trusted, and which devices are behind."""
    return schemas.Authorities(**asdict(fleet.authorities.standing()))


@router.post("/ca/rotate", dependencies=[Admin])
def rotate_authority(fleet: Fleet, step: schemas.Step) -> schemas.Authorities:
    """Announce the next certificate authority; called again, let it issue."""
    return schemas.Authorities(**asdict(fleet.authorities.rotate(force=step.force)))


@router.post("/ca/retire", dependencies=[Admin])
def retire_authority(fleet: Fleet, step: schemas.Step) -> schemas.Authorities:
    """Believe the old certificate authority no more."""
    return schemas.Authorities(**asdict(fleet.authorities.retire(force=step.force)))


@router.get("/tokens", dependencies=[Operator])
def list_tokens(fleet: Fleet, asked: Annotated[queries.TokenQuery, Query()]) -> schemas.EnrolTokens:
    """List enrolment tokens, newest first, without their secrets."""
    with fleet.database.read() as db:
        return lists.enrol_tokens(db, asked)


@router.post("/tokens", status_code=201, dependencies=[Operator])
def create_token(
    request: Request, fleet: Fleet, new: schemas.NewEnrolToken
) -> schemas.EnrolTokenCreated:
    """Create an enrolment token; it is shown this once."""
    token = fleet.enrolment.offer(Offer(**new.model_dump()))
    text = token_text(token, request.app.state.device_url, fleet.pki.ca_sha256)
    return schemas.EnrolTokenCreated(
        id=token.id, token=text, group=token.group, expires=token.expires, uses=token.uses
    )


def _plan(new: schemas.NewRollout) -> Plan:
    about = {"release", "group", "waves", "priority", "draft"}
    limits = new.model_dump(exclude=about, by_alias=True)
    limits["gates"] = [asdict(parse_gate(text)) for text in new.gates]
    policy = msgspec.convert(limits, Policy)
    return Plan(new.release, new.group, new.waves, policy, new.priority, new.draft)
