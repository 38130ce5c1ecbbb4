"""Watches over drift of the model that answers, and tells when it begins and ends. Needs no link.

Keeps its windows in memory: a restart begins a new one, which is honest and costs an hour.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from edgepack_agent.core.drift import Alarm, Drift, Rule
from edgepack_agent.core.effects import Publish
from edgepack_agent.core.state import Slot
from edgepack_targets.pipeline.baseline import Baseline

__all__ = ["Drifting"]

log = logging.getLogger(__name__)


class Drifting:
    """The watch over one device.

    Args:
        baseline: Returns what the manifest in a slot says; None: nothing that can be used.
        rule: What counts as drift; None: nothing is watched.
        tell: Takes what the fleet should know.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        baseline: Callable[[Slot], Baseline | None],
        rule: Rule | None,
        tell: Callable[[Publish], None],
        clock: Callable[[], float],
    ) -> None:
        self._baseline, self._rule, self._tell, self._clock = baseline, rule, tell, clock
        self._digest = ""
        self._drift: Drift | None = None

    def beat(self, slot: Slot, beat: Mapping[str, Any]) -> None:
        """Take a heartbeat of the runner of SLOT, whose model answers."""
        if slot.model.digest != self._digest:
            self._begin(slot)
        if self._drift is not None:
            for alarm in self._drift.add(beat.get("stats", {}), self._clock()):
                self._say(slot, alarm)

    def describe(self) -> dict[str, Any] | None:
        """Return what drifts, for `status`; None: nothing is watched."""
        drift = self._drift
        if drift is None:
            return None
        features = {
            name: {"psi": round(found.psi, 4), "p": found.p, "n": found.n, "far": drift.far[name]}
            for name, found in drift.last.items()
        }
        rule = drift.rule
        filling = {
            "values": drift.filled,
            "of_values": rule.min_count,
            "seconds": int(self._clock() - drift.since),
            "of_seconds": rule.min_s,
        }
        told = {"alarms": drift.alarms, "features": features, "windows": rule.windows}
        return told | {"filling": filling}

    def histograms(self) -> dict[str, Any]:
        """Return baseline and last window of every feature, for a picture."""
        drift = self._drift
        return {} if drift is None else {name: _pair(drift, name) for name in drift.shown}

    def _begin(self, slot: Slot) -> None:
        self._digest, self._drift = slot.model.digest, None
        if self._rule is not None and (baseline := self._baseline(slot)):
            self._drift = Drift(baseline, self._rule, self._clock())

    def _say(self, slot: Slot, alarm: Alarm) -> None:
        found, model = alarm.finding, slot.model
        detail = {"psi": round(found.psi, 4), "p": found.p, "n": found.n}
        kind = "drift_over" if alarm.over else "drift"
        log.warning("%s: %s of %s: %s", kind, alarm.feature, model.release, detail)
        self._tell(Publish(kind, model.release, model.digest, alarm.feature, detail))


def _pair(drift: Drift, feature: str) -> dict[str, Any]:
    counts = drift.shown[feature]
    if feature == "classes":
        before = drift.baseline.classes
        names = sorted(before.keys() | counts.keys(), key=lambda name: -before.get(name, 0))
        return {
            "names": names,
            "baseline": [before.get(name, 0) for name in names],
            "window": [counts[name] for name in names],
        }
    histogram = drift.baseline.histogram(feature)
    edges, known = (histogram.edges, histogram.counts) if histogram else ((), (0,))
    return {
        "names": [f"<{edges[0]:g}" if edges else "all", *(f"{edge:g}" for edge in edges)],
        "baseline": list(known),
        "window": [counts[place] for place in range(len(known))],
    }
