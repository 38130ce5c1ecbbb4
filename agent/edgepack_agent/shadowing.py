"""While the candidate answers beside the current model: begins it, hears of it, judges it.

No input passes through here: the two runners have a socket between them, this process only made it.
"""

import math
from collections.abc import Callable
from typing import Any

from edgepack.messages import Shadow
from edgepack_agent.core import health
from edgepack_agent.core.effects import Mirror
from edgepack_agent.core.events import Event, Failed
from edgepack_agent.core.shadow import Seen, judge, missing, read_seen
from edgepack_agent.engine import Engine
from edgepack_agent.serving import Serving

__all__ = ["Shadowing"]

JUDGE_S = 0.5


class Shadowing:
    """Compares the runners of one device.

    Args:
        serving: Has them.
        post: Takes a verdict that is there at once.
        engine: Takes the verdict else.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        serving: Serving,
        post: Callable[[Event], None],
        engine: Engine,
        clock: Callable[[], float],
    ) -> None:
        self._serving, self._post, self._engine, self._clock = serving, post, engine, clock
        self._rule = Shadow()
        self._vitals = health.Vitals(0.0, 0.0)
        self._limits = health.Rule(math.inf)
        self._seen = Seen()

    def begin(self, effect: Mirror, max_rss_mb: float | None) -> None:
        """Let the candidate answer what the current model answers, and judge it.

        Args:
            effect: What is asked of it.
            max_rss_mb: What it may take; None: any.
        """
        now = self._clock()
        self._rule, self._seen = effect.shadow, Seen()
        self._vitals = health.Vitals(now, now)
        self._limits = health.Rule(math.inf, max_rss_mb=max_rss_mb)
        why_not = self._serving.mirror(effect.shadow.per_s)
        if why_not:
            self._post(missing(effect.shadow, Seen(reason=why_not)))
        else:
            self._engine.while_here(JUDGE_S, self._judge)

    def again(self) -> None:
        """Go on with another runner of the current model: the one before has ended."""
        self._serving.mirror(self._rule.per_s)

    def beat(self, said: dict[str, Any]) -> None:
        """Take a heartbeat of the candidate."""
        self._vitals = health.beat(self._vitals, self._clock(), said)
        self._seen = read_seen(said.get("shadow") or {})

    def _judge(self) -> None:
        now = self._clock()
        ill = health.judge(self._vitals, self._limits, now)
        if ill is not None:
            self._engine.on(Failed("FAILED", ill.reason, {"shadow": self._seen.plain()}))
            return
        verdict = judge(self._rule, self._seen, now - self._vitals.since)
        if verdict is None:
            self._engine.while_here(JUDGE_S, self._judge)
        else:
            self._engine.on(verdict)
