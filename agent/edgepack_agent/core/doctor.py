"""What a check has found, and what a person is to do about it. Looks at nothing itself.

`ok` needs nothing, `warn` works now or is not known, `fail` keeps the device from doing its work.
The exit code is that of the first failure, from the table every command has.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

__all__ = [
    "Finding",
    "Status",
    "certificate",
    "clock",
    "confinement",
    "exit_code",
    "space",
    "worst",
]

Status = Literal["ok", "warn", "fail"]
_ORDER: tuple[Status, ...] = ("ok", "warn", "fail")
DAY = timedelta(days=1)
LATE = 0.15
"""Share of a certificate's life at which renewal, due at a third, has been failing for a while."""
LITTLE_MB = 200
"""An update of a small model needs about this much beside the models that are there."""
USAGE, INTEGRITY, UNSUPPORTED, BUDGET, UNREACHABLE = 2, 3, 5, 6, 7


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of one check.

    Attributes:
        check: Its name, stable.
        what: What was found.
        why: Why that is so.
        fix: What to do about it.
        code: Exit code that a failure stands for.
    """

    check: str
    status: Status
    what: str
    why: str = ""
    fix: str = ""
    code: int = 0


def worst(findings: Sequence[Finding]) -> Status:
    """Return the worst status of FINDINGS."""
    return max((found.status for found in findings), key=_ORDER.index, default="ok")


def exit_code(findings: Sequence[Finding]) -> int:
    """Return the code of the first failure; 0 if there is none."""
    return next((found.code or 1 for found in findings if found.status == "fail"), 0)


def certificate(begin: datetime, end: datetime, now: datetime, *, held: bool) -> Finding:
    """Judge a certificate that holds from BEGIN to END.

    Args:
        begin: Its first moment.
        end: Its last.
        now: What time it is here.
        held: Whether the private key on disk belongs to it.
    """
    check = "certificate"
    if not held:
        return Finding(
            check, "fail", "the certificate is not for the key of this device",
            "a file of the identity was replaced", "enrol this device anew", INTEGRITY,
        )  # fmt: skip
    if now < begin - DAY:
        return Finding(
            check, "fail", f"the certificate holds from {begin:%Y-%m-%d %H:%M} UTC",
            f"it is {now:%Y-%m-%d %H:%M} here", "set the clock", INTEGRITY,
        )  # fmt: skip
    left = end - now
    if left <= timedelta():
        return Finding(
            check, "fail", f"the certificate ended on {end:%Y-%m-%d}",
            "it was not renewed in time: the fleet could not be reached, or the clock is wrong",
            "check clock and network; the agent renews it, or ask for a new enrolment token",
            INTEGRITY,
        )  # fmt: skip
    told = f"the certificate holds for {max(left.days, 0)} days more"
    if left < LATE * (end - begin):
        return Finding(
            check, "warn", told, "it should have been renewed by now", "check the fleet's link"
        )
    return Finding(check, "ok", told)


def clock(now: datetime, floor: datetime, *, synchronised: bool | None) -> list[Finding]:
    """Judge the clock: NOW against what is known to be past, and whether anybody sets it.

    Args:
        now: What it says.
        floor: The latest moment that somebody trusted has signed.
        synchronised: What the kernel says; None if it does not.
    """
    found = Finding("clock", "ok", f"it is {now:%Y-%m-%d %H:%M} UTC here")
    if now + DAY / 24 < floor:
        found = Finding(
            "clock", "fail", f"the clock says {now:%Y-%m-%d %H:%M} UTC",
            f"it is at least {floor:%Y-%m-%d %H:%M}", "set it; updates wait, inference goes on",
            INTEGRITY,
        )  # fmt: skip
    if synchronised is None:
        sync = Finding("time_sync", "warn", "whether the clock is kept right is not known")
    elif synchronised:
        sync = Finding("time_sync", "ok", "the clock is kept right")
    else:
        sync = Finding(
            "time_sync", "warn", "nobody keeps the clock right",
            "the kernel says that it is not synchronised",
            "timedatectl set-ntp true; on a site without internet, name its own server",
        )  # fmt: skip
    return [found, sync]


def space(free_mb: int, *, total_mb: int) -> Finding:
    """Judge how much of a disk is free."""
    told = f"{free_mb} of {total_mb} MB are free"
    if free_mb < LITTLE_MB:
        return Finding(
            "disk_space", "fail" if free_mb < LITTLE_MB // 4 else "warn", told,
            "an update keeps the old model until the new one has proven itself",
            "free some space on the disk of data_dir", BUDGET,
        )  # fmt: skip
    return Finding("disk_space", "ok", told)


def confinement(confined: bool) -> Finding:
    """Judge whether the process of a model is kept away from keys and journal."""
    check = "landlock"
    if confined:
        return Finding(check, "ok", "the kernel lets a model open nothing but its own files")
    return Finding(
        check, "warn", "a model could open every file of the agent",
        "this kernel has no Landlock, or it is switched off: it came with Linux 5.13",
        "a newer kernel, or lsm=landlock,... on its command line",
    )  # fmt: skip
