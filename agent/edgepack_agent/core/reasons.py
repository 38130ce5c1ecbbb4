"""Why an update waits or ends: every reason code a device reports, in one table. Decides little.

defer   the update waits until it no longer holds, then goes on
retry   the step is repeated after growing pauses, a few times; then the job has FAILED
fail    the job has FAILED; another job for the same model may succeed
reject  the job is REJECTED: the same model will not do here; not to be tried again
cancel  somebody ended the job: it is CANCELED
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["REASONS", "Kind", "Reason", "kind_of"]

Kind = Literal["defer", "retry", "fail", "reject", "cancel"]


@dataclass(frozen=True, slots=True)
class Reason:
    """What becomes of a job that meets it, what it means, and what to do about it."""

    kind: Kind
    meaning: str
    fix: str = ""


def _all(kind: Kind, reasons: dict[str, str]) -> dict[str, Reason]:
    found = {name: text.partition("; ") for name, text in reasons.items()}
    return {name: Reason(kind, meaning, fix) for name, (meaning, _, fix) in found.items()}


REASONS: dict[str, Reason] = (
    _all("defer", {
        "window": "outside the maintenance window; wait, or change `update.windows`",
        "lock": "a person or a program at the device said not now; `edgepack-agent unlock`",
        "metered": "the link costs money by the byte; connect another one, or allow it",
        "power": "on battery, and low; connect it to power",
        "clock": "the clock is behind what was signed; set it",
    })
    | _all("retry", {
        "storage": "the disk fails; look at the disk",
        "digest_mismatch": "what arrived is not what was signed; look at fleet and link",
        "bad_block": "a block arrived with a wrong length; look at fleet and link",
        "blob_missing": "the fleet does not have a file of the model; publish it again",
        "damaged_blob": "a file was damaged on disk; it is fetched again, look at the disk",
        "metadata_missing": "the fleet does not have metadata; publish again",
        "internal_error": "a fault of the agent; report it with the log",
        "runner_start": "no process could be started; look at memory and limits",
    })
    | _all("fail", {
        "unreachable": "nothing arrived for `timeout_s`; look at the link",
        "deferred_too_long": "it had to wait for longer than `max_defer_s`; see the reason before",
        "job_timeout": "the work took longer than `total_s` in all; look at the link",
        "staging_timeout": "building the slot took too long; look at the disk",
        "switch_timeout": "the new model did not begin to answer in time",
        "no_verdict": "the comparison or the probation did not come to an end",
        "restart_loop": "the device or the model went round in circles; see its log",
        "runner_exited": "the new model's process died twice; see the device's log",
        "error_rate": "the new model failed too often on probation",
        "no_device": "`device` names what this machine does not have; see `status`, change it",
        "no_heartbeat": "the new model hung on probation",
        "memory_above_limit": "the new model took more memory than its manifest says",
        "latency_above_limit": "the new model is too slow beside the one before",
        "shadow_disagrees": "the new model answers too little like the one before",
        "shadow_slower": "on the same inputs, the new model is too slow beside the one before",
        "shadow_missing": "the models could not be compared, or not often enough; see the detail",
        "disk_full": "no room for the model; free some space",
        "delta_failed": "no patch worked, and a whole file is not allowed; publish patches again",
        "byte_budget": "the update cost more bytes than it may; look at the link",
        "metadata_expired": "the signatures have expired; sign again",
        "unknown_state": "the journal held a state that this agent does not know",
        "cancelled_locally": "a person at the device stopped it",
    })
    | _all("reject", {
        "pinned": "the device is pinned to its model; `edgepack-agent unpin`",
        "golden_mismatch": "the model does not answer as on the host; see the detail",
        "acceptance_below_limit": "the model fails the exam of its line on this device",
        "load_timeout": "the model did not load in time",
        "self_test_timeout": "the proof did not end in time",
        "ram": "the model needs more memory than there is",
        "model_unreadable": "the runtime cannot load the model",
        "revoked": "the model line has revoked it",
        "no_time_zone": "the device does not know the window's time zone; install tzdata",
        "wrong_hardware": "the model is for other hardware",
        "wrong_runtime": "the model needs another, or a newer, runtime",
        "wrong_device": "the director's word is for another device",
        "mismatch": "the two repositories do not say the same",
        "not_in_image_repo": "the publisher has not approved it",
        "epoch_below_floor": "the model is older than what may still run",
        "rollback": "metadata went back to an older version",
        "bad_signature": "metadata is not signed by who must",
        "bad_metadata": "metadata cannot be used",
        "bad_custom": "a target says nothing of what it needs",
        "bad_root": "the root of trust is not valid",
        "bad_path": "a target has a path that nobody may sign",
        "endless_data": "metadata is longer than it may be",
        "floors_unreadable": "the record of what was seen is damaged; enrol again",
        "unsigned": "the bundle is not signed",
    })
    | _all("cancel", {
        "cancelled": "the fleet ended it",
        "replaced": "the fleet has a newer job",
    })
)  # fmt: skip
"""Reason code to what it means. What is not here and breaks integrity is rejected, else failed."""


def kind_of(reason: str, *, integrity: bool) -> Kind:
    """Return what becomes of a job that meets REASON; INTEGRITY: something signed does not hold."""
    found = REASONS.get(reason)
    if found is not None:
        return found.kind
    return "reject" if integrity else "fail"
