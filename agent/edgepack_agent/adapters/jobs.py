"""The device's side of the job protocol: pull, tell, try again. Decides nothing about updates.

The fleet's copy of a job is the truth and carries a version; every word about it names the
version last seen. One word at a time is on its way; a newer one replaces what still waits.
A reply counts only if it carries the token of what was asked last.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgepack import messages
from edgepack.errors import IntegrityError
from edgepack_agent.core.events import Event, JobGone, JobSeen, JobTaken, OutcomeTaken
from edgepack_agent.core.machine import PHASES
from edgepack_agent.core.state import Job, Outcome, Phase

__all__ = ["Desk"]

log = logging.getLogger(__name__)
PATIENCE_S = 10.0
MAX_NOTES = 20
LONGEST_PROBATION_S = 7 * 86400
"""What a fleet asks for beyond this is not waited for: the next job would never begin."""


@dataclass(frozen=True, slots=True)
class _Word:
    """What is to be said about a job."""

    outcome: Outcome
    phase: Phase

    @property
    def final(self) -> bool:
        return self.outcome.status != "IN_PROGRESS"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that waits for its reply."""

    token: str
    at: float
    word: _Word | None = None


class Desk:
    """What this device and the fleet have to say about jobs.

    Args:
        say: Sends a payload about a kind; False: the link is down.
        post: Takes what the fleet says, as events of the machine.
        link: Takes the link to the files of the job's model.
        clock: Monotonic seconds.
        shadow: How models are compared where the job does not say.
    """

    def __init__(
        self,
        say: Callable[[str, bytes], bool],
        post: Callable[[Event], None],
        link: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        shadow: messages.Shadow | None = None,
    ) -> None:
        self._shadow = shadow
        self._say, self._post, self._link, self._clock = say, post, link, clock
        self._seen: messages.Job | None = None
        self._word: _Word | None = None
        self._notes: dict[str, Any] = {}
        self._get: _Asked | None = None
        self._update: _Asked | None = None

    def ask(self) -> None:
        """Ask for the job of this device."""
        if self._get is None:
            asked = _Asked(secrets.token_hex(8), self._clock())
            if self._say("job/get", messages.encode(messages.JobGet(token=asked.token))):
                self._get = asked

    def tell(self, outcome: Outcome, phase: Phase) -> None:
        """Say how it goes with a job: now, or as soon as the fleet can hear it."""
        self._word = _Word(outcome, phase)
        self._speak()

    def note(self, name: str, fact: Mapping[str, Any]) -> None:
        """Keep FACT for the detail of the job under way, in the list NAME."""
        kept = self._notes.setdefault(name, [])
        if len(kept) < MAX_NOTES:
            kept.append(dict(fact))

    def link_changed(self, *, up: bool) -> None:
        """Forget what was on its way; ask anew when the link is up."""
        self._get = self._update = None
        if up:
            self.ask()

    def tick(self) -> None:
        """Repeat what was not answered."""
        now = self._clock()
        if self._get and now - self._get.at > PATIENCE_S:
            self._get = None
            self.ask()
        if self._update and now - self._update.at > PATIENCE_S:
            self._update = None
        if self._update is None and self._word is not None:
            self._speak()

    def heard(self, kind: str, payload: bytes) -> None:
        """Take a message whose kind begins with `job/`."""
        handler = {
            "job/notify": lambda _: self.ask(),
            "job/get/accepted": self._got,
            "job/get/rejected": self._get_refused,
            "job/update/accepted": self._updated,
            "job/update/rejected": self._update_refused,
        }.get(kind)
        try:
            if handler:
                handler(payload)
        except IntegrityError as error:
            log.warning("%s: %s", kind, error.why or error)

    def _speak(self) -> None:
        word, seen = self._word, self._seen
        if word is None or self._update is not None:
            return
        if seen is None or seen.job != word.outcome.job:
            self.ask()
            return
        asked = _Asked(secrets.token_hex(8), self._clock(), word)
        update = messages.JobUpdate(
            token=asked.token,
            job=seen.job,
            version=seen.version,
            status=word.outcome.status,
            state=word.phase,
            reason=word.outcome.reason,
            detail=self._notes | word.outcome.detail,
            progress=1.0 if word.final else PHASES.index(word.phase) / (len(PHASES) - 1),
        )
        if self._say("job/update", messages.encode(update)):
            self._update = asked

    def _got(self, payload: bytes) -> None:
        reply = messages.decode(payload, messages.JobReply)
        if self._get is None or reply.token != self._get.token:
            return
        if reply.job is None or self._seen is None or reply.job.job != self._seen.job:
            self._notes = {}
        self._get, self._seen = None, reply.job
        open_job = reply.job.job if reply.job else ""
        if self._word and self._word.outcome.job != open_job:
            # The fleet has closed it: by our word whose answer was lost, or by its own.
            self._heard_out(self._word)
        if reply.job is None:
            self._post(JobGone())
            return
        self._link(reply.job.link)
        self._post(JobSeen(_job(reply.job, self._shadow)))
        self._speak()

    def _get_refused(self, payload: bytes) -> None:
        log.warning("the fleet refuses to name a job: %s", payload[:200])
        self._get = None

    def _updated(self, payload: bytes) -> None:
        reply = messages.decode(payload, messages.JobReply)
        asked = self._answered(reply.token)
        if asked is None:
            return
        self._seen = reply.job
        if self._word == asked:
            self._word = None
        if asked.final:
            self._post(OutcomeTaken(asked.outcome.job))
        else:
            self._post(JobTaken(asked.outcome.job))
        self._speak()

    def _update_refused(self, payload: bytes) -> None:
        refusal = messages.decode(payload, messages.Rejected)
        asked = self._answered(refusal.token)
        if asked is None:
            return
        if refusal.code == "version_mismatch" and refusal.job is not None:
            self._seen = refusal.job
            self._speak()
            return
        log.warning("job %s: %s %s", asked.outcome.job, refusal.code, refusal.message)
        self._heard_out(asked)

    def _answered(self, token: str) -> _Word | None:
        """Return the word that the reply with TOKEN answers; it is no longer on its way."""
        if self._update is None or self._update.token != token:
            return None
        word, self._update = self._update.word, None
        return word

    def _heard_out(self, word: _Word) -> None:
        """Stop saying WORD: the fleet does not want to know."""
        if self._word and self._word.outcome.job == word.outcome.job:
            self._word = None
        job = word.outcome.job
        self._post(OutcomeTaken(job) if word.final else JobGone(job))


def _job(job: messages.Job, shadow: messages.Shadow | None) -> Job:
    return Job(
        job.job,
        job.release,
        job.target,
        probation_s=float(min(job.probation_s, LONGEST_PROBATION_S)),
        timeout_s=float(job.timeout_s),
        total_s=float(job.total_s),
        max_defer_s=float(job.max_defer_s),
        windows=job.windows,
        max_p95_ratio=job.max_p95_ratio,
        shadow=job.shadow or shadow,
    )
