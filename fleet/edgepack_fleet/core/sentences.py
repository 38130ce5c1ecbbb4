"""Where a rollout stands and why it waits: one sentence, from the same facts as the decision."""

from collections import Counter
from collections.abc import Sequence

from edgepack_fleet.core import members as of
from edgepack_fleet.core.model import Member, Rollout

__all__ = ["reasons", "turning_back", "why"]


def why(rollout: Rollout, group: Sequence[Member], current: int, waits: str, now: float) -> str:
    """Return one sentence on where a ROLLOUT that serves stands, and what it waits for.

    Args:
        rollout: The rollout.
        group: All its members.
        current: Index of the wave that runs.
        waits: What that wave waits for; empty: nothing but its devices.
        now: Unix seconds.
    """
    members = of.eligible(group, rollout, now)
    if not members:
        return _nobody(rollout, group, now)
    done = sum(m.status == "SUCCEEDED" and m.kind == "install" for m in members)
    head = f"{done} of {len(members)} devices run {rollout.release}"
    wave = f"Wave {current + 1} of {len(rollout.waves)}"
    if busy := of.open_jobs(members):
        return f"{wave}: {head}, {busy} under way."
    if again := sum(of.retries(m, rollout.policy) for m in members):
        return f"{wave}: {head}, {again} {'is' if again == 1 else 'are'} tried again later."
    if waits and waits != "soaks":
        return f"{wave} waits: {waits}."
    waiting = [m for m in members if m.wave is None]
    if not waiting:
        return f"{head}."
    if not any(m.device.online for m in waiting):
        return f"{head}; {_returning(len(waiting))}."
    return f"{wave}{' ' + waits if waits else ''}: {head}."


def turning_back(rollout: Rollout, members: Sequence[Member], *, over: bool) -> str:
    """Return why a ROLLOUT turns back and where it stands; OVER: all that can be are back."""
    sent = [m for m in members if m.kind == "revert" and not m.left]
    back = sum(m.status == "SUCCEEDED" for m in sent)
    stuck = [m for m in sent if of.failed(m, rollout.policy)]
    lost = sum(m.has_it and m.wave is not None and m.before is None for m in members)
    away = sum(m.has_it and not m.device.online and m.before is not None for m in members)
    why = rollout.stopped.replace("Reverting", "Reverted", 1) if over else rollout.stopped
    text = f"{why} {_devices(back)} back on the release before".lstrip()
    text += f", {of.open_jobs(sent)} under way" if of.open_jobs(sent) else ""
    text += f", {len(stuck)} could not go back ({reasons(stuck)})" if stuck else ""
    text += f", {lost} had nothing to go back to" if lost else ""
    return f"{text}; {_back_later(away)}." if away else f"{text}."


def reasons(failed: Sequence[Member]) -> str:
    """Return why FAILED have failed, the most frequent reason first."""
    counts = Counter(m.reason or m.status.lower() for m in failed)
    return ", ".join(
        f"{count} x {reason}" if len(counts) > 1 else reason
        for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _nobody(rollout: Rollout, group: Sequence[Member], now: float) -> str:
    able = [m for m in group if m.target is not None and not m.left]
    if taken := sorted({m.taken_by for m in able if m.taken_by}):
        return f"Waiting: {' and '.join(taken)} goes before {rollout.release} on these devices."
    if any(m.boxed_until > now for m in able):
        return f"Waiting: every device that could run {rollout.release} has failed too often."
    if able:
        return f"Waiting: people at the devices do not want {rollout.release}."
    return f"Waiting: no device of group {rollout.group} can run {rollout.release} yet."


def _returning(count: int) -> str:
    if count == 1:
        return "1 has not been reached yet and gets it when it returns"
    return f"{count} have not been reached yet and get it when they return"


def _back_later(count: int) -> str:
    if count == 1:
        return "1 is out of reach and goes back when it returns"
    return f"{count} are out of reach and go back when they return"


def _devices(count: int) -> str:
    return "1 device is" if count == 1 else f"{count} devices are"
