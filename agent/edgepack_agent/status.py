"""What the agent says about itself, schema `edgepack.agent.status/v1`. Changes nothing."""

from typing import Any

from edgepack_agent.adapters.identity import Identity
from edgepack_agent.adapters.inventory import rss_mb
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.config import Config
from edgepack_agent.core.deferral import Lock
from edgepack_agent.core.state import Hold, Outcome, Slot, Stamp, State
from edgepack_agent.serving import Seat, Serving

__all__ = ["describe", "failure"]

SCHEMA = "edgepack.agent.status/v1"
_CODES = {
    "no_release": 2,
    "bad_block": 3,
    "blob_missing": 3,
    "digest_mismatch": 3,
    "metadata_expired": 3,
    "metadata_missing": 3,
    "acceptance_below_limit": 4,
    "golden_mismatch": 4,
    "wrong_hardware": 5,
    "wrong_runtime": 5,
    "ram": 6,
    "unreachable": 7,
}


def describe(
    state: State,
    serving: Serving,
    outbox: Outbox,
    identity: Identity,
    config: Config,
    *,
    connected: bool,
    lock: Lock | None,
    now: Stamp,
) -> dict[str, Any]:
    """Return everything a person at the device may want to know."""
    seat, current = serving.answering(), serving.current
    return {
        "schema": SCHEMA,
        "device": identity.device,
        "group": identity.group,
        "connected": connected,
        "phase": state.phase,
        "bundle": state.current.model.release if state.current else None,
        "digest": state.current.model.digest if state.current else None,
        "slot": _slot(state.current),
        "previous": _slot(state.previous),
        "candidate": _slot(state.candidate),
        "serving": seat.slot.model.release if seat else None,
        "runner": _runner(seat),
        "cameras": seat.cameras if seat else {},
        "folders": seat.folders if seat else {},
        "trouble": current.trouble if current else "",
        "job": {"id": state.job.id, "release": state.job.release} if state.job else None,
        "deferred": _hold(state.hold) if state.phase == "deferred" else None,
        "lock": _lock(lock, now),
        "pinned": state.pinned or None,
        "unreported": _outcome(state.outcome),
        "outbox": {"boot": outbox.boot, "rows": len(outbox)},
        "api": {"socket": str(config.api_socket), "listen": config.listen},
        "rss_mb": round(rss_mb(), 1),
    }


def failure(result: Outcome) -> dict[str, Any]:
    """Return how an update failed, in the form of an error."""
    status = 3 if result.status == "REJECTED" else 1
    return {
        "code": _CODES.get(result.reason, status),
        "reason": result.reason,
        "message": f"the model was not kept: {result.reason}",
        "why": str(result.detail.get("message") or _score(result)),
        "fix": "the model that ran before still runs",
    }


def _score(result: Outcome) -> str:
    score, limit = result.detail.get("score"), result.detail.get("min_score")
    return f"it scored {score}, at least {limit} is wanted" if score is not None else ""


def _runner(seat: Seat | None) -> dict[str, Any]:
    pid = seat.runner.pid if seat and seat.runner else None
    facts = dict(seat.facts) if seat else {}
    return {"pid": pid, "landlock": facts.pop("confined", None)} | facts


def _slot(slot: Slot | None) -> dict[str, str] | None:
    return {"slot": slot.name, "bundle": slot.model.release} if slot else None


def _hold(hold: Hold | None) -> dict[str, Any] | None:
    return {"reason": hold.reason, "until": hold.until, "message": hold.text} if hold else None


def _lock(lock: Lock | None, now: Stamp) -> dict[str, Any] | None:
    left = lock.left(now) if lock else 0.0
    return {"until": round(now.wall + left), "reason": lock.text} if lock and left > 0 else None


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {"job": outcome.job, "status": outcome.status, "reason": outcome.reason}
