"""What a device may say about its job."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.messages import JobUpdate
from edgepack_fleet.core.jobs import JobState, Refusal, advance, end
from edgepack_fleet.core.model import TERMINAL

ALL = ["QUEUED", "IN_PROGRESS", *sorted(TERMINAL)]


def update(status: str, version: int, **facts: object) -> JobUpdate:
    return JobUpdate(token="t", job="j", version=version, status=status, **facts)  # type: ignore[arg-type]


def test_a_job_goes_from_queued_over_progress_to_its_end() -> None:
    job = JobState()
    job = _accepted(advance(job, update("IN_PROGRESS", 0, state="downloading", progress=0.5)))
    assert (job.version, job.status, job.state, job.progress) == (
        1,
        "IN_PROGRESS",
        "downloading",
        0.5,
    )
    job = _accepted(advance(job, update("FAILED", 1, reason="acceptance_below_limit")))
    assert (job.version, job.status, job.reason) == (2, "FAILED", "acceptance_below_limit")


def test_a_lost_answer_may_be_asked_for_again() -> None:
    said = update("SUCCEEDED", 1)
    job = _accepted(advance(JobState(1, "IN_PROGRESS"), said))
    assert advance(job, said) == job


@pytest.mark.parametrize("status", ["QUEUED", "TIMED_OUT", "CANCELED"])
def test_what_the_fleet_alone_may_say(status: str) -> None:
    refusal = advance(JobState(), update(status, 0))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "bad_message"


def test_an_old_version_and_an_ended_job_are_refused() -> None:
    old = advance(JobState(3, "IN_PROGRESS"), update("SUCCEEDED", 1))
    assert isinstance(old, Refusal)
    assert old.code == "version_mismatch"
    ended = advance(JobState(3, "CANCELED", reason="cancelled"), update("SUCCEEDED", 3))
    assert isinstance(ended, Refusal)
    assert ended.code == "terminal"


JOBS = st.builds(
    JobState, st.integers(0, 5), st.sampled_from(ALL), st.text(max_size=3), st.text(max_size=3)
)
UPDATES = st.builds(
    lambda status, version, state, reason, progress: update(
        status, version, state=state, reason=reason, progress=progress
    ),
    st.sampled_from(ALL), st.integers(0, 6), st.text(max_size=3), st.text(max_size=3),
    st.floats(allow_nan=False),
)  # fmt: skip


@given(JOBS, UPDATES)
def test_an_end_is_an_end_and_versions_go_up_by_one(job: JobState, said: JobUpdate) -> None:
    result = advance(job, said)
    if isinstance(result, Refusal):
        return
    if result != job:
        assert job.status not in TERMINAL
        assert said.version == job.version
        assert result.version == job.version + 1
        assert 0 <= result.progress <= 1
    assert advance(result, said) == result, "a repeat changes nothing"


def test_the_fleet_ends_a_job() -> None:
    assert end(JobState(4, "IN_PROGRESS"), "TIMED_OUT", "timed_out") == replace(
        JobState(), version=5, status="TIMED_OUT", reason="timed_out"
    )


def _accepted(result: JobState | Refusal) -> JobState:
    assert isinstance(result, JobState), result
    return result
