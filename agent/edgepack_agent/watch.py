"""What runners say, and what it means for the update. Starts and ends no runner itself.

Every word of a runner passes here: it is counted, it keeps the runner's seat up to date, and a
candidate's word becomes an event of the machine. On probation the words become a verdict.
"""

from collections.abc import Callable
from typing import Any

from edgepack.errors import EdgepackError
from edgepack_agent.core import health
from edgepack_agent.core.effects import Drain, Mirror, Publish
from edgepack_agent.core.events import (
    Accepting,
    Checked,
    Died,
    Failed,
    Judged,
    Loaded,
    RollbackAsked,
    Troubled,
)
from edgepack_agent.core.reasons import kind_of
from edgepack_agent.engine import Engine, local_job
from edgepack_agent.parts import Parts
from edgepack_agent.serving import Seat, Spoke
from edgepack_agent.shadowing import Shadowing

__all__ = ["Watch"]

JUDGE_S = 0.5
HUNG_S = 60.0
"""Without a beat for this long, the model that answers is held to hang."""
_BROKEN = frozenset(
    {
        "digest_mismatch", "file_missing", "unlisted_file",
        "bad_manifest", "bad_json", "not_canonical",
    }
)  # fmt: skip
"""What a runner says of a slot that is no longer what was staged."""


class Watch:
    """Listens to the runners of one device.

    Args:
        parts: For the runners and the reports.
        engine: Takes what it means for the update.
        clock: Monotonic seconds.
    """

    def __init__(self, parts: Parts, engine: Engine, clock: Callable[[], float]) -> None:
        self._parts, self._engine, self._clock = parts, engine, clock
        self._shadowing = Shadowing(parts.serving, parts.queue.put, engine, clock)
        self._vitals = health.Vitals(0.0, 0.0)
        self._rule = health.Rule(0.0)
        self._before: tuple[str, health.Latencies] = "", health.Latencies()
        """Digest and latencies of the current model."""
        self._watched: Seat | None = None
        self._current = health.Vitals(0.0, 0.0)
        """Of the current model's runner, on the seat that is watched."""
        self._limits: dict[str, float | None] = {}
        self._fell_back = False

    def spoke(self, spoke: Spoke) -> None:
        """Take a word of a runner."""
        serving, event = self._parts.serving, spoke.event
        slot = serving.slot_of(spoke.runner, event)
        if event["evt"] == "loaded" and slot and event.get("digest") != slot.model.digest:
            spoke.runner.kill()
            event = {"evt": "failed", "reason": "digest_mismatch"}
        if event["evt"] == "beat" and slot:
            self._parts.reports.beat(slot, event)
        if event["evt"] == "exited":
            self._fill()
        seat = serving.seat_of(spoke.runner)
        if seat is None:
            return
        restart_s = serving.note(seat, event, self._clock())
        if restart_s is not None:
            self._engine.later(restart_s, lambda: serving.restart(self._clock()))
        if seat is serving.candidate:
            self._candidate_spoke(event)
        elif event["evt"] in {"beat", "accepting"}:
            self._current_beats(seat, event)
        elif event["evt"] == "failed" and event.get("reason") in _BROKEN:
            self._current_is_broken(seat)

    def begin(self, drain: Drain) -> None:
        """Watch the candidate from now on, and give the verdict."""
        now, seat = self._clock(), self._parts.serving.candidate
        self._vitals = health.Vitals(now, now)
        self._rule = health.Rule(
            drain.probation_s,
            max_rss_mb=self._limit(seat) if seat else None,
            max_p95_ratio=drain.max_p95_ratio or self._parts.config.update.max_p95_ratio,
            before=self._before[1],
        )
        self._engine.while_here(JUDGE_S, self._judge)

    def compare(self, mirror: Mirror) -> None:
        """Compare the candidate with the current model from now on, and give the verdict."""
        seat = self._parts.serving.candidate
        self._shadowing.begin(mirror, self._limit(seat) if seat else None)

    def tick(self) -> None:
        """End the current model's runner if it hangs or takes too much: it is started anew."""
        self._fill()
        seat = self._parts.serving.current
        if seat is None or seat.runner is None or not seat.accepting:
            return
        if seat is not self._watched:
            # It has just taken over, and was watched as the candidate until now.
            self._watch_anew(seat)
            return
        limit, rss_mb = self._limit(seat), min(self._current.rss_mb)
        if self._clock() - self._current.last_beat > HUNG_S:
            seat.trouble = "no_heartbeat"
        elif limit is not None and rss_mb > limit:
            seat.trouble = "memory_above_limit"
        else:
            return
        active = seat.slot.model
        ended = Publish("restarted", active.release, active.digest, seat.trouble)
        self._parts.reports.event(ended)
        seat.runner.kill()

    def _fill(self) -> None:
        """Start the runner that has waited for room."""
        try:
            self._parts.serving.fill(self._clock())
        except EdgepackError as error:
            self._engine.on(Troubled(error.reason, {"message": error.why}))

    def _current_beats(self, seat: Seat, event: dict[str, Any]) -> None:
        if seat is not self._watched or event["evt"] == "accepting":
            self._watch_anew(seat)
        if event["evt"] == "accepting":
            if self._engine.state.phase == "shadow":
                self._shadowing.again()
            return
        self._parts.drifting.beat(seat.slot, event)
        digest = seat.slot.model.digest
        self._current = health.beat(self._current, self._clock(), event)
        known = self._before[1] if self._before[0] == digest else health.Latencies()
        self._before = digest, known.add(event.get("stats", {}).get("latency_ms"))

    def _watch_anew(self, seat: Seat) -> None:
        now = self._clock()
        self._watched, self._current = seat, health.Vitals(now, now)

    def _limit(self, seat: Seat) -> float | None:
        """Return the MiB that the model of SEAT may take by its manifest; None: it does not say."""
        digest = seat.slot.model.digest
        if digest not in self._limits:
            self._limits = {digest: self._parts.slots.ram_mb(seat.slot) or None}
        return self._limits[digest]

    def _judge(self) -> None:
        verdict = health.judge(self._vitals, self._rule, self._clock())
        if verdict is None:
            self._engine.while_here(JUDGE_S, self._judge)
            return
        seen = {"inferences": self._vitals.inferences, "errors": self._vitals.errors}
        self._engine.on(Judged(verdict.good, verdict.reason, seen | verdict.detail))

    def _candidate_spoke(self, event: dict[str, Any]) -> None:
        on = self._engine.on
        match event["evt"]:
            case "beat" if self._engine.state.phase == "probation":
                self._vitals = health.beat(self._vitals, self._clock(), event)
            case "beat" if self._engine.state.phase == "shadow":
                self._shadowing.beat(event)
            case "loaded":
                on(Loaded())
            case "checked":
                on(_checked(event))
            case "accepting":
                on(Accepting())
            case "failed":
                detail = {"message": str(event.get("message", ""))}
                reason = str(event.get("reason", "failed"))
                failed = kind_of(reason, integrity=True) == "fail"
                on(Failed("FAILED" if failed else "REJECTED", reason, detail))
            case "exited":
                on(Died({"code": event.get("code")}))

    def _current_is_broken(self, seat: Seat) -> None:
        """Go back to the previous model, once: the current one is not what it was."""
        state = self._engine.state
        if state.phase == "idle" and state.previous and not self._fell_back:
            self._fell_back = True
            self._parts.check_floor(state.previous.model)
            active = seat.slot.model
            damaged = Publish("damaged", active.release, active.digest, seat.trouble)
            self._parts.reports.event(damaged)
            self._engine.on(RollbackAsked(local_job(state.previous.model)))


def _checked(event: dict[str, Any]) -> Checked:
    golden, exam = event.get("golden", {}), event.get("exam")
    return Checked(
        bool(golden.get("passed")),
        exam.get("score") if exam else None,
        exam.get("min_score", 0.0) if exam else 0.0,
        {"golden": golden} | (exam or {}),
    )
