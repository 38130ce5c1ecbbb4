"""What happened to a device, one sentence each; and in one, where it stands. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgepack_fleet.core.model import FAILURES

__all__ = [
    "Entry",
    "Key",
    "Kind",
    "Standing",
    "connected",
    "done",
    "happened",
    "job_begun",
    "job_ended",
    "job_given",
]

Kind = Literal["connection", "event", "job", "audit"]
Facts = Mapping[str, Any]
Key = tuple[float, int, str, int]
"""Time, rank of the source, and what tells a row from others of its source."""

EVENTS: dict[str, str] = {
    "activated": "It runs {bundle} now",
    "rolled_back": "It went back to {bundle}",
    "recovered": "It recovered and runs {bundle}",
    "rejected": "It did not take {tried}",
    "inventory": "It told what it is made of",
    "drift": "What {bundle} sees has drifted",
    "drift_over": "What {bundle} sees does not drift any more",
    "revoked": "It was revoked",
}
"""What a device may tell; of others the type is shown."""
DEEDS: dict[str, str] = {
    "accept_applicant": "let it in",
    "decommission_device": "took it out of service",
    "describe_device": "described it",
    "revoke_device": "revoked it",
    "take_reports": "carried its reports here",
}
"""What people may do, by the name of the route; of others the name is shown."""
ENDS = {"CANCELED": "was cancelled", "TIMED_OUT": "ended in silence", "REJECTED": "was refused"}


def connected(*, online: bool) -> str:
    """Return what is said of a connection that began or ended."""
    return "It connected." if online else "It is not connected any more."


def happened(kind: str, body: Facts) -> str:
    """Return what is said of an event of KIND that a device told, with the BODY it gave."""
    known = EVENTS.get(kind)
    told = body.get("detail")
    detail: Facts = told if isinstance(told, Mapping) else {}
    runs = body.get("bundle") or "no model"
    # What a device names is the model it runs; which one it was to run is in the detail.
    tried = detail.get("release") or runs
    said = known.format(bundle=runs, tried=tried) if known else f"It told {kind!r}"
    by = detail.get("by")
    who = f" by {by}" if by else ""
    reason = body.get("reason")
    return f"{said}{who}: {reason}." if reason and reason != kind else f"{said}{who}."


def job_given(job: Facts) -> str:
    """Return what is said when a device was given a job."""
    again = f", try {job['attempt']}" if job["attempt"] > 1 else ""
    back = "to go back to" if job["kind"] == "revert" else "to install"
    where = f"{job['rollout_id']}, wave {job['wave'] + 1}{again}"
    return f"It was asked {back} {job['release']} ({where})."


def job_begun(job: Facts) -> str:
    """Return what is said when a device took its job up."""
    return f"It began with {job['release']}."


def job_ended(job: Facts) -> str:
    """Return what is said when a job was over."""
    status, release, reason = job["status"], job["release"], job["reason"]
    why = f": {reason}" if reason else ""
    if status == "SUCCEEDED":
        return f"It has installed {release}."
    return f"The update to {release} {ENDS.get(status, 'failed')}{why}."


def done(action: str, name: str) -> str:
    """Return what is said of an ACTION that NAME did."""
    return f"{name} {DEEDS.get(action, action.replace('_', ' '))}."


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened to a device."""

    key: Key
    kind: Kind
    sentence: str
    facts: Facts
    """What the sentence is made of."""

    @property
    def time(self) -> float:
        """Unix seconds of the fleet's clock."""
        return self.key[0]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a device shall run and what it says it runs."""

    desired: str | None
    reported: str | None
    online: bool
    revoked: bool
    job: Facts | None = None
    """Its newest job."""

    def sentence(self) -> str:
        """Return where the device stands, and why it does not run what it shall."""
        if self.revoked:
            return "It is revoked."
        if self.desired is None:
            runs = f"it runs {self.reported}" if self.reported else "it runs no model"
            return f"Nothing is wanted of it; {runs}."
        if self.desired == self.reported:
            return f"It runs {self.desired}, as it shall."
        runs = self.reported or "no model"
        return f"It shall run {self.desired} and runs {runs}: {self._why()}."

    def _why(self) -> str:
        job = self.job if self.job and self.job["release"] == self.desired else None
        if job is None:
            return "its turn has not come" if self.online else "it is offline"
        if job["status"] in FAILURES:
            return f"the update failed ({job['reason'] or job['status'].lower()})"
        if not self.online:
            return "it is offline"
        if job["status"] == "IN_PROGRESS":
            state = job["state"] or "begun"
            return f"the update is {state}, {job['progress']:.0%} done"
        return "it has been asked" if job["status"] == "QUEUED" else "it has not said so yet"
