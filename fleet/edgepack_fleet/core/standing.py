"""How a wave stands, for people: a wave that has failed, or never began, is not done. Pure."""

from typing import Literal

from edgepack_fleet.core.model import LIVE, TURNING_BACK, UNSTARTED

__all__ = ["Standing", "standing"]

Standing = Literal["done", "hurt", "lost", "now", "next", "never", "stopped", "back", "nobody"]
"""`hurt`: it ended with failures; `lost`: every device failed; `never`: it will not begin any more;
`stopped`: the rollout ended in its midst; `back`: its devices go back, or have; `nobody`: there is
no device for it."""


def standing(
    state: str,
    *,
    passed: bool,
    current: bool,
    size: int,
    done: int,
    failed: int,
    begun: int,
    back: bool = False,
) -> Standing:
    """Return how a wave stands.

    Args:
        state: Of its rollout.
        passed: Whether a later wave is the current one.
        current: Whether it is the current one.
        size: Its devices.
        done: Those of them that have the release.
        failed: Those that have failed.
        begun: Devices that were given the release in it.
        back: Whether ways back have begun, however the rollout ended.
    """
    if state in UNSTARTED:
        return "next"
    if state in TURNING_BACK or back:
        return "back" if begun > failed else "lost" if begun else "never"
    if state == "cancelled":
        return (
            _ended(done, failed)
            if begun and (passed or done >= size)
            else "stopped"
            if begun
            else "never"
        )
    ended = state == "completed" or passed
    waits = state == "paused" and not begun
    if not size and (ended or waits or not current):
        return "nobody"
    if ended:
        return _ended(done, failed)
    return "now" if current and state in LIVE and not waits else "next"


def _ended(done: int, failed: int) -> Standing:
    return "lost" if failed and not done else "hurt" if failed else "done"
