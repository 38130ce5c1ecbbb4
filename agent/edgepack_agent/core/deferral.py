"""Is now a bad moment for an update? A pure rule over what the device says of itself.

What a person or a program asked for comes first, then power, then the maintenance windows; the
first that holds is the reason. A metered link is noticed by the transfer itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgepack.messages import Window
from edgepack_agent.core.age import elapsed
from edgepack_agent.core.state import Hold, Stamp
from edgepack_agent.core.window import opening

__all__ = ["MAX_LOCK_S", "Lock", "Moment", "Power", "Rules", "hold", "recheck_s"]

MAX_LOCK_S = 7 * 86400.0
"""Nobody keeps a device from being updated for longer with one word."""
_LONGEST_S: dict[str, float] = {"metered": 300.0, "clock": 300.0, "window": 60.0, "lock": 60.0}
_USUAL_S = 30.0


@dataclass(frozen=True, slots=True)
class Lock:
    """Somebody at the device said "not now", at SINCE, for a number of seconds."""

    since: Stamp
    for_s: float
    text: str = ""

    def left(self, now: Stamp) -> float:
        """Return the seconds it still holds at NOW; negative: it is over."""
        return min(self.for_s, MAX_LOCK_S) - elapsed(self.since, now)


@dataclass(frozen=True, slots=True)
class Power:
    """What feeds the device; `percent` is that of the fullest battery, None: it has none."""

    on_battery: bool
    percent: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What the device's owner has set."""

    windows: tuple[Window, ...] = ()
    min_battery: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """The device as it is at NOW."""

    now: Stamp
    lock: Lock | None = None
    inhibitors: tuple[str, ...] = ()
    power: Power = Power(False)


def hold(moment: Moment, rules: Rules, windows: Sequence[Window] = ()) -> Hold | None:
    """Return why an update has to wait at MOMENT; None: it need not.

    Args:
        moment: The device.
        rules: Of its owner.
        windows: Of the job; one of the job's and one of the owner's must be open.

    Raises:
        UsageError: a window's time zone is not known here (reason `no_time_zone`).
    """
    return _locked(moment) or _on_battery(moment, rules) or _outside(moment, rules, windows)


def recheck_s(hold: Hold, wall: float) -> float:
    """Return the seconds after which to look again whether HOLD still holds."""
    longest = _LONGEST_S.get(hold.reason, _USUAL_S)
    if hold.until is None:
        return longest
    return min(max(hold.until - wall, 1.0), longest)


def _locked(moment: Moment) -> Hold | None:
    if moment.lock and (left := moment.lock.left(moment.now)) > 0:
        return Hold("lock", round(moment.now.wall + left), moment.lock.text)
    if moment.inhibitors:
        return Hold("lock", None, f"inhibited by {', '.join(moment.inhibitors)}")
    return None


def _on_battery(moment: Moment, rules: Rules) -> Hold | None:
    power = moment.power
    if not power.on_battery or power.percent is None or power.percent >= rules.min_battery:
        return None
    return Hold("power", None, f"on battery, below {rules.min_battery:g} %")


def _outside(moment: Moment, rules: Rules, windows: Sequence[Window]) -> Hold | None:
    wall = moment.now.wall
    opens = [opening(each, wall) for each in (rules.windows, windows)]
    if all(at == wall for at in opens):
        return None
    known = [at for at in opens if at is not None]
    return Hold("window", max(known) if len(known) == len(opens) else None)
