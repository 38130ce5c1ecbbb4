"""`edgepack fleet rollouts wait`: for scripts, which go by its exit code."""

import time
from pathlib import Path
from typing import Any

import click

from edgepack.cli import FiniteRange
from edgepack.errors import AccuracyError, PartialError, UnreachableError
from edgepack_fleet.cli import show
from edgepack_fleet.cli.client import Client, connection_options

__all__ = ["wait_for_rollout"]

LONGEST_PAUSE_S = 5.0


@click.command("wait")
@click.argument("rollout")
@click.option("--timeout", type=FiniteRange(min=0), default=3600.0, show_default=True,
              metavar="SECONDS", help="How long it may take.")  # fmt: skip
@connection_options
def wait_for_rollout(
    rollout: str,
    timeout: float,
    url: str | None,
    token: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Wait until ROLLOUT has ended, or paused; the exit code says how.

    \b
    0  completed, no device failed
    4  its gates or a person stopped it: paused, reverted or cancelled
    7  out of time with no device done, or the fleet does not answer
    8  completed with failures, or out of time with some devices done
    """
    found = _ended(Client(url, token, data), rollout, timeout)
    if as_json:
        show.document("rollout", found)
    else:
        show.facts([(k, found[k]) for k in ("id", "release", "group", "state", "reason")])
    _judge(found, timeout)


def _ended(client: Client, rollout: str, timeout: float) -> dict[str, Any]:
    """Return ROLLOUT once it waits for nothing any more, or as it stands after TIMEOUT seconds.

    What is wrong from the start is said at once; a fleet that answered is given the time.
    """
    from edgepack_fleet.core.outcome import outcome

    deadline, pause, last_error = time.monotonic() + timeout, 0.25, None
    found: dict[str, Any] = client.get("rollouts", rollout)
    while outcome(found["state"], ()) == "waits" and time.monotonic() < deadline:
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(LONGEST_PAUSE_S, pause * 1.5)
        try:
            found, last_error = client.get("rollouts", rollout), None
        except UnreachableError as error:
            last_error = error
    if last_error is not None:
        raise last_error
    return found


def _judge(found: dict[str, Any], timeout: float) -> None:
    """Raise what the state of the rollout FOUND is to a script, if it is not done."""
    from edgepack_fleet.core.outcome import outcome

    name, statuses = f"rollout {found['id']}", [d["status"] for d in found["devices"]]
    look = f"edgepack fleet rollouts show {found['id']}"
    verdict = outcome(found["state"], statuses)
    if verdict == "stopped":
        reason = f"rollout_{found['state']}"
        raise AccuracyError(
            f"{name} is {found['state']}", why=found["reason"], fix=look, reason=reason
        )
    if verdict == "partly":
        failed = "; ".join(f"{f['reason']}: {', '.join(f['devices'])}" for f in found["failures"])
        raise PartialError(
            f"{name} is completed, and some devices failed",
            why=failed or found["reason"], fix=look, reason="rollout_failures",
        )  # fmt: skip
    if verdict == "waits":
        kind = PartialError if "SUCCEEDED" in statuses else UnreachableError
        raise kind(
            f"{name} is still {found['state']} after {timeout:g} s",
            why=found["reason"], fix=look, reason="rollout_deadline",
        )  # fmt: skip
