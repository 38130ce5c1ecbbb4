"""Values as people read them."""

import pytest

from edgepack_fleet.core.alert_rules import METRICS
from edgepack_fleet.core.units import SAID, measured, moved


@pytest.mark.parametrize(
    ("value", "metric", "said"),
    [
        (92.6, "memory", "92.6 MB"),
        (1540.0, "memory", "1,540 MB"),
        (1.8349, "p95_ratio", "1.83 times"),
        (0.9853, "agreement", "98.5 %"),
        (0.0, "error_rate", "0 %"),
        (0.000241, "error_rate", "0.0241 %"),
        (13.66, "certificate_days", "13.7 days"),
        (1.0, "drift_features", "1 feature"),
        (3.0, "drift_features", "3 features"),
        (0.0, "broker_up", "no link"),
        (0.9412, "exam", "0.941"),
    ],
)
def test_a_value_has_its_unit(value: float, metric: str, said: str) -> None:
    assert measured(value, metric) == said


def test_what_alerts_watch_has_a_unit() -> None:
    assert set(METRICS) <= set(SAID)


@pytest.mark.parametrize(
    ("share", "said"),
    [(-0.0004, "0.0 %"), (0.0, "0.0 %"), (0.0004, "0.0 %"), (-0.0123, "-1.2 %"), (0.5, "+50.0 %")],
)
def test_what_has_not_moved_has_no_sign(share: float, said: str) -> None:
    assert moved(share) == said
