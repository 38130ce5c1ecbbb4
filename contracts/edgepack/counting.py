"""How all devices count, so that what they tell can be added up, and what a model is blamed for."""

from collections.abc import Mapping

__all__ = [
    "CONFIDENCE_EDGES",
    "FAULTS",
    "LATENCY_EDGES_MS",
    "MAX_LABEL",
    "OTHER",
    "SCRAPED_EDGES_MS",
    "faults",
]

R10 = ("1", "1.25", "1.6", "2", "2.5", "3.15", "4", "5", "6.3", "8")
"""Preferred numbers (ISO 3): ten equal steps in a decade, with 1, 2 and 5 among them."""
LATENCY_EDGES_MS = (*(float(f"{n}e{power}") for power in range(-1, 4) for n in R10), 10000.0)
"""From 0.1 ms to 10 s. A step is a quarter: a gate has to tell a p95 of 1.2 times from 1.5."""
SCRAPED_EDGES_MS = (*(float(f"{n}e{power}") for power in range(-1, 4) for n in "125"), 10000.0)
"""Those of them that Prometheus is told, where each edge is a series."""
CONFIDENCE_EDGES = tuple(i / 20 for i in range(1, 20))
MAX_LABEL = 128
"""Characters of a name that is counted apart."""
OTHER = "other"
"""Where all is counted that has no name of its own."""
FAULTS = frozenset({"bad_output", "deadline", "non_finite", "runner_error", "runtime_error"})
"""Reasons of errors that are held against the model and what runs it. What a client, a camera or a
full queue did wrong is counted by its reason as well, but says nothing of the release."""


def faults(errors: Mapping[str, int]) -> int:
    """Return how many of ERRORS, counts by reason, are held against the model."""
    return sum(count for reason, count in errors.items() if reason in FAULTS)
