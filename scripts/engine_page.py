"""The page about the update engine: its diagram and tables, found by running the table itself."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import get_args

from edgepack.messages import Shadow
from edgepack_agent.core import events as ev
from edgepack_agent.core import state as s
from edgepack_agent.core.asking import REASONS as REQUEST_REASONS
from edgepack_agent.core.deadlines import MAX_TRIES, TOO_LATE, deadline
from edgepack_agent.core.machine import (
    MAX_BOOTS,
    MAX_DEATHS,
    MAX_REPAIRS,
    PHASES,
    TABLE,
    transition,
)
from edgepack_agent.core.phases import MAX_STEPS
from edgepack_agent.core.reasons import REASONS

__all__ = ["engine_page", "reasons_page"]

TOLD: dict[s.Phase, str] = {
    "idle": "nothing is under way; the current model serves",
    "offered": "the fleet has a job and is told that we take it",
    "deferred": "now is a bad moment: window, lock, metered link, power, clock",
    "checking": "both repositories and the manifest: trust, hardware, runtime, memory, disk",
    "downloading": "missing chunks are fetched; each is verified and durable before it counts",
    "verifying": "every blob is read again, the slot is built beside its place, then renamed",
    "staged": "a second runner loads the model; the current one answers alone",
    "self_test": "the candidate answers golden vectors and the exam of its model line",
    "shadow": "if the job asks for it: the candidate answers what the current model answers, for "
    "nobody, and both are compared",
    "switching": "the candidate takes requests too",
    "probation": "the old model takes no more but stays loaded; health gates watch the new one",
    "committed": "judged good: floors rise, the old runner ends",
    "rolling_back": "the one way out: the current model answers alone, the candidate goes",
}
KINDS = {
    "defer": "The update waits and goes on when the reason is gone; `deferred_too_long` ends that.",
    "retry": f"The step is tried again, {MAX_TRIES} times a job, after growing pauses with jitter; "
    "then the job has FAILED.",
    "fail": "The job has FAILED. Another job for the same model may succeed.",
    "reject": "The job is REJECTED: the same model will not do on this device. Not tried again.",
    "cancel": "The job is CANCELED.",
}
OF_REQUESTS = """Why a [request](../how-to/ask-a-device.md) of the fleet is not answered.
Fetching a model to measure may also fail as above."""
INTRO = """# The update engine

How a device gets from one model to the next, and what can end that. Written by `scripts/docs.py`
from the code: the arrows were found by running the table.

The story is one pure table: a state and an event give the next state and what is to be done. The
state is on disk before anything is done about it, and everything may be done twice, so a power cut
is only one more event. Whatever goes wrong takes the same way out, and at its end the model that
ran before answers alone. What each reason code means: [reason codes](reason-codes.md).
"""
REASONS_INTRO = """# Reason codes

Why an update waits or ends, as jobs, events and `edgepack-agent status` say it. Written by
`scripts/docs.py` from `core/reasons.py`. With a reason that is not here a job is REJECTED if
something signed does not hold, else it has FAILED.
"""
RULES = f"""## What holds in every phase

- **Cancelling wins at once**, by the fleet, by a newer job or by a person (`edgepack-agent
  rollback`), until the candidate is committed; then it is too late to roll back.
- **Every wait has an end.** A phase has a deadline; downloading may last longer while bytes arrive,
  for the job's `total_s` in all. Deferral ends after the job's `max_defer_s`. Both are told by the
  clock since boot; across boots the wall clock may add six hours at most, so a clock that jumps
  neither ends a job nor keeps it for ever.
- **No circles.** A candidate sees {MAX_BOOTS} restarts of the agent and {MAX_DEATHS} death of its
  runner, a job {MAX_REPAIRS} repairs of what was damaged on disk and {MAX_STEPS} phases with a
  candidate; then it has FAILED (`restart_loop`, `runner_exited`, `digest_mismatch`).
- **Control before bytes.** Both repositories and the small manifest are read first: a model that
  needs another runtime, more memory or more disk than there is costs no download.
- **A state that is not known** (the journal of a newer agent) keeps the current and the previous
  model and rolls back the rest. An unreadable journal: the slot that proves to be whole serves, a
  new boot id begins, the fleet is told.

## Not now

An update of the fleet waits, in `deferred`, and the fleet sees why and until when:

| reason | holds | goes on |
|---|---|---|
| `lock` | after `edgepack-agent lock --for 2h` | after the time (7 days at most), or `unlock` |
| `lock` | while a file is in `run_dir/inhibit/` | when it is gone, after a day at most |
| `power` | on battery below `update.min_battery` percent | on mains, or charged |
| `window` | outside all of `update.windows`, or all of the job's | when one of each is open |
| `metered` | on a link that costs by the byte, see `transfer.metered` | it is tried again |
| `clock` | while the clock is behind what was signed | it is tried again |

```sh
edgepack-agent lock --for 2h --reason "exhibition"
edgepack-agent unlock
edgepack-agent pin --reason "validated for line 3"
edgepack-agent unpin
```

A moment that turns bad stops a download, which later goes on where it was. From `staged` on an
update goes through: it takes seconds, and giving it up would cost more. `pin` is for longer: jobs
are REJECTED (`pinned`) until `unpin`. What a person installs at the device does not wait for
windows, power or links, but is refused while the device is locked or pinned.

## Beside the old one: shadow

If the job says so (`shadow`), or else the device (`update.shadow`), the candidate answers what the
current model answers, for nobody: requests and camera frames, `per_s` a second at most, one at a
time. Each model prepares the same picture in its own way. After `seconds` and `min_samples` the
mean agreement of the answers by the rule of their task (same label; F1 at an IoU of 0.5; mean IoU;
cosine) is held against `min_agreement` (`shadow_disagrees`) and the ratio of the 95 % latencies on
the same inputs against `max_p95_ratio` (`shadow_slower`). The fleet finds in the job's detail

    shadow: {{samples, agreement, p95_ratio, dropped}}

and a `reason` where something was missing: `too_few` after `deadline_s`, `no_current`,
`stop_first`, `other_task`, `other_inputs`, `other_outputs`. Then `on_missing` decides: `pass` goes
on, `fail` ends it (`shadow_missing`). `error_rate` aside, what ends a probation ends a comparison:
a candidate that hangs, or takes too much memory. It is loaded anew after one death, and compared
anew; a current runner that dies is started again and shown again. What a person installs at the
device is not compared. How the inputs get there: [ADR 24](../decisions/0024-shadow.md).

## One model at a time

With `update.swap: stop_first` the current runner ends before the candidate is loaded, and the
candidate's before the current model is loaded again: there is one runner process at a time. The
sockets stay open, so requests wait in their queue while a model loads and proves itself. A
candidate that fails costs the time of two loads. There is no shadow then (`stop_first`).

## Probation

The new model answers, the old one stays loaded. It is taken back for

- `error_rate`: three or more errors of its own, and more than 10 % of its answers;
- `no_heartbeat`: ten seconds without progress of its inference thread;
- `memory_above_limit`: more memory than `ram_mb` of its manifest, in two beats in a row;
- `latency_above_limit`: its 95 % latency is more than `max_p95_ratio` times that of the model
  before, over 50 answers or more of each (the job's value, else `update.max_p95_ratio`; off unless
  set);
- `runner_exited`: its process died twice.

The way back takes no loading: the old model is still there. Measured with
`python benchmarks/rollback.py --times 20` on two busy cores (load 7), a digits model, eight clients
on TCP and the unix socket: from the command to the first answer of the old model 23 ms in the
median, 91 ms at most; 25,024 requests, none lost. A process that is killed takes with it what it
had begun to answer; nothing else is lost then.

After the commit a model that hangs for a minute or takes too much memory is started anew, and the
fleet is told (`restarted`). A runner that ended is started again after half a second, in a crash
loop after 1, 2, 4 ... 60 s; one that has lived for ten of its pauses (60 s at most) is in none, so
whatever kills it costs a tenth of the time at most. Meanwhile clients wait in the queue of the
socket. Measured with `scripts/test -m soak -k killed_runner` on two busy cores, two clients
without a pause: killed 20 times, 115,271 answers, 37 requests lost, each under way in a runner
that was killed; from a kill to fifty answers of the next runner 0.87 s at most.

## What is kept on disk

The slots and blobs of the current and the previous model, and of the candidate while there is one;
so the blobs that a patch is made against are there. What has arrived of
the model that was tried last stays too, unless the disk was full: the next job may want it. All
else goes when an update has ended.

## A model that its publisher revokes

The device asks what the publisher of its model line says, every five minutes or `poll_s`, and on
`edgepack-agent sync`; what was said last holds without a network. A revoked model is not installed
and not gone back to. One that serves goes on if the publisher says `keep`; on `stop` it ends at
once and the previous one takes over if it may, else nothing serves. The fleet is told (`revoked`).

## Without a network

```sh
edgepack-agent install person-1.4.0-onnx-int8.edgepack
edgepack-agent install /media/stick --release person@1.4.0
```

Needs `allow_local_install: true`. From a mirror (`edgepack repo export`) the device picks the
variant that fits: its first runtime, then the smaller precision. The mirror's own timestamp counts;
trust, hardware, epoch, exam and golden checks are the same. The fleet is told with
`override: true` and replaces the model with its next job.

What waits for the fleet can be carried, too:

```sh
edgepack-agent export /media/stick/cam-1.json
edgepack fleet devices import /media/stick/cam-1.json
```

The device has signed its reports; the fleet refuses what was changed on the way, and what arrives
twice counts once.
"""


def engine_page() -> str:
    """Return the page `update-engine.md`."""
    return "\n".join([INTRO, *_diagram(), "", *_phases(), "", RULES])


def reasons_page() -> str:
    """Return the page `reason-codes.md`."""
    parts = [REASONS_INTRO]
    for kind, text in KINDS.items():
        parts += [f"## {kind}\n", f"{text}\n", "| reason | meaning | what to do |", "|---|---|---|"]
        parts += [
            f"| `{name}` | {_sentence(r.meaning)} | {_sentence(r.fix)} |"
            for name, r in REASONS.items()
            if r.kind == kind
        ]
        parts.append("")
    parts += ["## requests\n", f"{OF_REQUESTS}\n", "| reason | meaning |", "|---|---|"]
    parts += [f"| `{name}` | {_sentence(text)} |" for name, text in REQUEST_REASONS.items()]
    return "\n".join(parts).rstrip() + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> idle"
    both = defaultdict(set)
    for phase, event, after in _arrows():
        both[phase, after].add(event)
    ends = _giving_up(both)
    for (phase, after), events in both.items():
        shown = sorted(events - ends if after == "rolling_back" else events)
        if shown:
            yield f"    {phase} --> {after}: {', '.join(shown)}"
    yield "    note right of rolling_back"
    yield f"        from every phase with a candidate: {', '.join(sorted(ends))}"
    yield "    end note"
    yield "```"


def _giving_up(both: dict[tuple[str, str], set[str]]) -> set[str]:
    """Return the events that lead to rolling back from every phase of an update."""
    each = [events for (_, after), events in both.items() if after == "rolling_back"]
    return set.intersection(*[events for events in each if len(events) > 2])


def _arrows() -> list[tuple[str, str, str]]:
    """Return (phase, event, next phase) for every way the table can go, in its own order."""
    found: dict[tuple[str, str, str], None] = {}
    for phase in PHASES:
        for event in _events(phase):
            if (phase, type(event)) not in TABLE:
                continue
            for state in _states(phase):
                after, _ = transition(state, event)
                if after.phase != phase:
                    found[phase, _name(event), after.phase] = None
    return list(found)


def _name(event: ev.Event) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(event).__name__).lower()


MODEL = s.Model("digits@2", "models/2", "2" * 64, 10)
OLD = s.Model("digits@1", "models/1", "1" * 64, 10)
JOB = s.Job("job-2", "digits@2", "models/2")


def _states(phase: s.Phase) -> Iterator[s.State]:
    """Yield states of PHASE that differ in everything a rule looks at."""
    idle = s.State(current=s.Slot("a", OLD), previous=s.Slot("b", OLD))
    if phase == "idle":
        yield idle
        return
    begun = replace(idle, phase=phase, job=JOB, candidate=s.Slot("b", MODEL))
    for boots, deaths, repairs in product((0, MAX_BOOTS), (0, MAX_DEATHS), (0, MAX_REPAIRS)):
        for tries in (0, MAX_TRIES):
            yield replace(begun, boots=boots, deaths=deaths, repairs=repairs, tries=tries)
    yield replace(begun, job=replace(JOB, shadow=Shadow()))


def _events(phase: s.Phase) -> Iterator[ev.Event]:
    """Yield every event, in each form that a rule tells apart."""
    made: dict[type, list[ev.Event]] = {
        ev.JobSeen: [ev.JobSeen(JOB), ev.JobSeen(replace(JOB, id="job-3", target="models/3"))],
        ev.JobTaken: [ev.JobTaken("job-2")],
        ev.JobGone: [ev.JobGone("job-2")],
        ev.OutcomeTaken: [ev.OutcomeTaken("job-2")],
        ev.InstallAsked: [ev.InstallAsked(replace(JOB, local=True), MODEL)],
        ev.RollbackAsked: [ev.RollbackAsked(replace(JOB, local=True))],
        ev.Approved: [ev.Approved(MODEL)],
        ev.Failed: [ev.Failed("FAILED", "disk_full")],
        ev.Checked: [ev.Checked(golden=True), ev.Checked(golden=False)],
        ev.Shadowed: [ev.Shadowed(good=True), ev.Shadowed(good=False)],
        ev.Judged: [ev.Judged(good=True), ev.Judged(good=False)],
        ev.TimerFired: [ev.TimerFired(phase)],
        ev.Troubled: [ev.Troubled("storage")],
        ev.Held: [ev.Held(s.Hold("lock"))],
        ev.PinAsked: [ev.PinAsked("why")],
    }
    for kind in get_args(ev.Event):
        if kind.__name__ == "Stood":
            yield from (kind(OLD.digest, True, stop=True, back=b) for b in (True, False))
        else:
            yield from made.get(kind) or [kind()]


def _phases() -> Iterator[str]:
    yield "## Phases\n"
    yield "| phase | what happens | lasts at most | then |"
    yield "|---|---|---|---|"
    job = s.Job("j", "r", "t")
    for phase in PHASES:
        seconds = deadline(s.State(phase=phase, job=job))
        status, reason = TOO_LATE.get(phase, ("", ""))
        then = f"{status} `{reason}`" if reason else _else(phase)
        yield f"| `{phase}` | {TOLD[phase]} | {_lasts(phase, seconds)} | {then} |"


def _lasts(phase: s.Phase, seconds: float | None) -> str:
    own = {
        "deferred": "`max_defer_s` of the job",
        "checking": "`timeout_s` of the job",
        "downloading": "`timeout_s` of the job without a byte",
        "shadow": "`shadow.deadline_s` of the job and a minute",
        "probation": "`probation_s` of the job and a minute",
    }
    return own.get(phase) or ("" if seconds is None else f"{seconds:.0f} s")


def _else(phase: s.Phase) -> str:
    return {"offered": "back to idle; the fleet offers it again"}.get(
        phase, "" if phase == "idle" else "done again until it is done"
    )
