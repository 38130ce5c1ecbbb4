"""The pure parts of a simulation, and what its command refuses."""

import random
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UnsupportedError, UsageError
from edgepack.messages import Ack, Event, Histogram, Job, Shadow
from edgepack_fleet.adapters.broker import prepare
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.core.measures import add, baseline, metrics
from edgepack_fleet.simulation.behaviour import measure, steps, traits
from edgepack_fleet.simulation.driver import allow_files
from edgepack_fleet.simulation.enrolment import read_token
from edgepack_fleet.simulation.outbox import Outbox
from edgepack_fleet.simulation.scenario import Faults, Model, Scenario, load, with_rollout
from fleet_rig import ANYWHERE, EDGEPACK, environment, latencies

NUMBERS = st.lists(st.integers(0, 30), unique=True, max_size=20)


def event(seq: int, boot: str = "b") -> Event:
    return Event(boot=boot, seq=seq, ts=0.0, type="x")


@given(made=NUMBERS, upto=st.integers(-1, 30), gaps=st.lists(st.tuples(st.integers(0, 30),
       st.integers(0, 5)), max_size=4))  # fmt: skip
def test_only_what_is_acknowledged_goes(
    made: list[int], upto: int, gaps: list[tuple[int, int]]
) -> None:
    box = Outbox()
    for seq in made:
        box.add("evt", event(seq))
        box.add("evt", event(seq, "other"))
    missing = tuple((first, first + length) for first, length in gaps)
    gone = {row.seq for row in box.release(Ack(boot="b", upto=upto, missing=missing))}
    acknowledged = {s for s in range(upto + 1) if not any(a <= s <= b for a, b in missing)}
    assert gone == acknowledged & set(made)
    left = [key for key in box.rows if key[0] == "b"]
    assert {seq for _, seq in left} == set(made) - acknowledged
    assert len(box.rows) == len(left) + len(made), "the other boot's rows stay"


def test_a_report_is_said_again_when_nobody_answers_and_on_a_new_connection() -> None:
    box = Outbox(patience_s=5)
    box.add("evt", event(0))
    assert [len(batch) for _, batch in box.due(0.0)] == [1]
    assert list(box.due(box.patience_s - 1)) == []
    assert [len(batch) for _, batch in box.due(box.patience_s + 1)] == [1]
    box.connected()
    assert [len(batch) for _, batch in box.due(box.patience_s + 2)] == [1]
    assert box.again == 2


@given(seconds=st.floats(0, 600), errors=st.floats(0, 1), seed=st.integers())
def test_the_histogram_holds_every_inference_once(seconds: float, errors: float, seed: int) -> None:
    found = measure(Scenario(), Model(errors=errors), seconds, random.Random(seed))
    assert sum(found.latency_ms.counts) == found.inferences
    asked = found.inferences + sum(found.errors.values())
    assert abs(asked - 5 * seconds) <= 1


def test_a_worse_release_is_worse_in_the_words_the_gates_read() -> None:
    models = {"a@2.0.0": Model(agreement=0.6, latency=2.0, exam=0.97)}
    scenario = Scenario(models=models)
    told = {}
    for release in ("a@1.0.0", "a@2.0.0"):
        job = Job(job="j", version=0, status="QUEUED", release=release, target="t",
                  shadow=Shadow(seconds=10))  # fmt: skip
        *_, last = steps(job, scenario, traits(scenario, 1), random.Random(1))
        assert last.status == "SUCCEEDED"
        told[release] = metrics({}, last.detail or {})
    good, bad = told["a@1.0.0"], told["a@2.0.0"]
    assert good["agreement"] > 0.95 > 0.7 > bad["agreement"]
    assert bad["p95_ratio"] > 1.8
    assert abs(good["exam"] - bad["exam"]) < 0.1, "the exam does not show it"
    slow, fast = (measure(scenario, m, 600, random.Random(2)) for m in (models["a@2.0.0"], Model()))
    assert 1.6 < compared(fast.latency_ms, slow.latency_ms) < 2.5


def compared(before: Histogram, after: Histogram) -> float:
    """Return the ratio of p95 that a gate reads from telemetry of the model BEFORE and AFTER."""
    told = [{"inferences": sum(h.counts), "latency_ms": msgspec.to_builtins(h)}
            for h in (before, after)]  # fmt: skip
    return metrics(add(baseline(told[:1]), told[1]), {})["p95_ratio"]


@given(st.floats(0.5, 2000), st.floats(0.8, 2), st.floats(0.1, 0.5), st.integers(0, 99))
def test_a_gate_reads_the_ratio_of_two_models_from_their_telemetry(
    usual_ms: float, slower: float, spread: float, seed: int
) -> None:
    draw = random.Random(seed)
    drawn = [usual_ms * draw.lognormvariate(0.0, spread) for _ in range(500)]
    found = compared(
        latencies(dict.fromkeys(drawn, 1)),
        latencies(dict.fromkeys([slower * ms for ms in drawn], 1)),
    )
    assert found == pytest.approx(slower, rel=0.15)


def test_the_same_seed_makes_the_same_devices() -> None:
    scenario = Scenario(faults=Faults(slow=0.5, silent=0.5, offline=0.5), checks=0.5)
    first, again = ([traits(scenario, n) for n in range(50)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 1
    affected = Scenario(models={"a@1": Model(affected=0.5, agreement=0.1)})
    bad = sum(traits(affected, n).model(affected, "a@1").agreement == 0.1 for n in range(1000))
    assert 400 < bad < 600


@pytest.mark.parametrize("text", ["devices: 0", "devices: 20000", "models: {x: {agrement: 1}}",
                                  "- 1", "{", "faults: {loss: 2}"])  # fmt: skip
def test_a_scenario_that_cannot_be_read_says_why(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert caught.value.reason == "bad_scenario"
    assert caught.value.why


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text("devices: 5\nrollout: {release: a@2.0.0, soak_s: 3}\n")
    found = load(path, devices=7, seed=None)
    assert (found.devices, found.seed) == (7, 1)
    found = with_rollout(found, rollout=None, waves="1,100%", gates=(), on_breach="revert")
    assert found.rollout == {
        "release": "a@2.0.0", "soak_s": 3, "waves": "1,100%", "on_breach": "revert",
    }  # fmt: skip
    with pytest.raises(UsageError):
        with_rollout(load(None), rollout=None, waves="1", gates=(), on_breach=None)


def test_a_real_brokers_configuration_has_no_listener_without_certificates(tmp_path: Path) -> None:
    files = prepare(tmp_path, Pki(tmp_path / "pki"), ANYWHERE)
    config = files.config.read_text()
    assert "allow_anonymous true" not in config
    assert "listener 0" not in config
    assert config.count("listener ") == 1


def test_what_is_no_token_and_too_many_files_are_said() -> None:
    with pytest.raises(UsageError):
        read_token("nonsense")
    with pytest.raises(UnsupportedError):
        allow_files(10**9)


@pytest.mark.parametrize("words", [
    [], ["--local", "--enroll", "ep1.x"], ["--enroll", "ep1.x"],
    ["--enroll", "ep1.x", "--yes", "--rollout", "a@1.0.0"], ["--local", "--waves", "1"],
])  # fmt: skip
def test_the_command_refuses_what_makes_no_sense(tmp_path: Path, words: list[str]) -> None:
    done = subprocess.run(
        [EDGEPACK, "simulate", *words], env=environment(tmp_path), capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
