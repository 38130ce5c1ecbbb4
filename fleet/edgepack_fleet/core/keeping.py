"""How long what is kept. Pure."""

from dataclasses import dataclass

from edgepack_fleet.core.slots import DAY, FINE, HOUR

__all__ = ["Keeping"]


@dataclass(frozen=True, slots=True)
class Keeping:
    """Days after which something is told less finely, or forgotten."""

    fine_days: float = 7.0
    """Slots of five minutes become hours."""
    hour_days: float = 90.0
    """Hours become days."""
    day_days: float = 800.0
    """Days are forgotten; what was counted over all time stays."""
    raw_days: float = 0.0
    """Rows of telemetry, if they are kept at all."""
    event_days: float = 400.0
    """What happened on devices: as long as the audit log."""
    stream_days: float = 800.0
    """Which rows of a boot have arrived: of a device that is away longer, rows may count twice."""
    change_days: float = 30.0
    """Changes that streams can be told of again."""

    def horizon(self, span: int, now: float) -> float:
        """Return the Unix time before which slots of SPAN seconds are not kept."""
        days = {FINE: self.fine_days, HOUR: self.hour_days, DAY: self.day_days}[span]
        return now - days * DAY
