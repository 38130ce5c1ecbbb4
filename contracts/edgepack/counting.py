"""Between which edges all devices count, so that what they tell can be added up."""

__all__ = ["CONFIDENCE_EDGES", "LATENCY_EDGES_MS", "MAX_LABEL", "OTHER"]

LATENCY_EDGES_MS = (
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0,
    1000.0, 2000.0, 5000.0, 10000.0,
)  # fmt: skip
CONFIDENCE_EDGES = tuple(i / 20 for i in range(1, 20))
MAX_LABEL = 128
"""Characters of a name that is counted apart."""
OTHER = "other"
"""Where all is counted that has no name of its own."""
