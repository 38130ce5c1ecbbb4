"""Slows the cameras of a hot device down, and lets them go again. Decides nothing: see `core.heat`.

Folders are not slowed down: a picture in one is a question.
"""

import logging
import time
from collections.abc import Callable

from edgepack_agent.core.heat import HeatRule, deepest, halvings
from edgepack_agent.runner import kernel
from edgepack_agent.runner.sources import Feed

__all__ = ["EVERY_S", "Cooling"]

log = logging.getLogger(__name__)

EVERY_S = 10.0
"""Seconds between two steps: heat follows work slowly."""


class Cooling:
    """The governor of one runner's cameras.

    Args:
        feed: Has the cameras.
        rule: What is hot; None: they are left alone.
        temperature_c: Says how hot it is; None: unknown.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        feed: Feed,
        rule: HeatRule | None,
        temperature_c: Callable[[], float | None] = kernel.temperature_c,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed, self._rule = feed, rule
        self._temperature_c, self._clock = temperature_c, clock
        self._due = clock()
        self._throttled = False

    def tick(self, throttled: bool | None = None) -> None:
        """Look at the temperature, if it is time to; to be called about once a second.

        Args:
            throttled: Whether the machine has slowed itself down since the last call; None: it
                does not say.
        """
        self._throttled |= bool(throttled)
        now, feed = self._clock(), self._feed
        if self._rule is None or now < self._due or not feed.cameras:
            return
        self._due = now + EVERY_S
        before, hot = feed.halvings, self._temperature_c()
        most = deepest(camera.source.fps for camera in feed.cameras)
        # Without a temperature there would be no way back.
        slowed, self._throttled = self._throttled and hot is not None, False
        steps = halvings(before, most, self._rule, hot, throttled=slowed)
        if steps != before:
            if 0 in {steps, before}:
                how = "look at fewer frames" if steps else "look at all frames again"
                log.warning("cameras %s: %s degrees", how, "no" if hot is None else f"{hot:.0f}")
            feed.slow_down(steps)
