"""When a process that ended is started again, and when that is given up. Starts nothing."""

from dataclasses import dataclass

__all__ = ["HEALTHY_S", "TRIES", "Standing"]

FIRST_S, LONGEST_S = 1.0, 30.0
HEALTHY_S = 60.0
"""Seconds after which a process counts as one that ran."""
TRIES = 8
"""Ends in a row, each before HEALTHY_S, after which the next start would help nobody."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How it went with one process.

    Attributes:
        failures: Ends in a row that came before the process was healthy.
        pause_s: Seconds to wait before it is started again; None: it is given up.
    """

    failures: int = 0
    pause_s: float | None = 0.0

    def ended(self, ran_s: float) -> "Standing":
        """Return what holds after the process has ended, having run for RAN_S seconds."""
        failures = 1 if ran_s >= HEALTHY_S else self.failures + 1
        if failures > TRIES:
            return Standing(failures, None)
        return Standing(failures, min(LONGEST_S, FIRST_S * 2.0 ** (failures - 1)))
