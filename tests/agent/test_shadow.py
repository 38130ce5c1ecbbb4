"""A candidate beside the current model: the same inputs, agreement, latency, off the answers' way.

Real runners with a socket between them; a real agent and fleet at the end.
"""

import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from agent_rig import Device, Site, site
from digits import INPUT, OUTPUT, digits_data, digits_folder, digits_onnx
from edgepack import messages
from edgepack.bundle import open_bundle, write_bundle
from edgepack.errors import IntegrityError
from edgepack.messages import Shadow
from edgepack_agent.adapters.jobs import Desk
from edgepack_agent.core.events import JobSeen
from edgepack_agent.core.shadow import Seen, judge, read_seen
from edgepack_agent.runner.interface import DecodedImage, EncodedImage
from edgepack_agent.runner.samples import (
    MAX_BODY,
    Hello,
    Shown,
    TooLargeError,
    receive,
    send_hello,
    send_shown,
)
from edgepack_agent.runner.shadow import why_not
from edgepack_fleet.core.gates import parse_gate
from edgepack_fleet.replaying import made_of
from fleet_rig import wait
from fuzz import damaged
from hammer import Beside
from slots import Client, Heard, digits_manifest, digits_slot, listen, raw, rewrite_manifest

TEST = digits_data()[1].head(40)


# -- the rule

SEEN = st.builds(
    Seen,
    samples=st.integers(0, 60),
    agreement=st.floats(0, 1),
    p95_ratio=st.none() | st.floats(0, 10),
    dropped=st.integers(0, 9),
    reason=st.sampled_from(["", "", "stop_first"]),
)
RULES = st.builds(
    Shadow,
    seconds=st.floats(1, 100),
    min_samples=st.integers(1, 50),
    min_agreement=st.none() | st.floats(0, 1),
    max_p95_ratio=st.none() | st.floats(0.1, 5),
    deadline_s=st.floats(1, 200),
    on_missing=st.sampled_from(["pass", "fail"]),
)


@given(RULES, SEEN, st.floats(0, 300))
def test_a_verdict_is_given_in_time_for_a_reason_and_never_on_too_little(
    rule: Shadow, seen: Seen, elapsed_s: float
) -> None:
    verdict = judge(rule, seen, elapsed_s)
    enough = seen.samples >= rule.min_samples and not seen.reason
    if verdict is None:
        assert elapsed_s < max(rule.seconds, rule.deadline_s)
        return
    assert verdict.good == (not verdict.reason)
    assert verdict.seen.keys() >= {"samples", "agreement", "p95_ratio", "dropped"}
    if not enough:
        assert verdict.good == (rule.on_missing == "pass")
        assert verdict.seen["reason"] == (seen.reason or "too_few")
        return
    assert elapsed_s >= rule.seconds
    agrees = rule.min_agreement is None or seen.agreement >= rule.min_agreement
    quick = rule.max_p95_ratio is None or (seen.p95_ratio or 0.0) <= rule.max_p95_ratio
    assert verdict.good == (agrees and quick)


def test_a_beat_without_numbers_is_no_comparison() -> None:
    assert read_seen({}) == Seen()
    assert read_seen({"samples": 2, "before_ms": 0.0, "after_ms": 3.0}).p95_ratio is None
    assert read_seen({"samples": 2, "before_ms": 2.0, "after_ms": 3.0}).p95_ratio == 1.5


def test_a_job_says_how_and_else_the_device_does() -> None:
    heard: list[Any] = []
    own, asked = Shadow(seconds=7), Shadow(min_agreement=0.95)
    for told, shadow in ((None, own), (asked, asked)):
        said: list[bytes] = []
        desk = Desk(lambda _, data, said=said: not said.append(data), heard.append, shadow=own)  # type: ignore[misc]
        desk.ask()
        token = messages.decode(said[0], messages.JobGet).token
        job = messages.Job(
            job="j", version=0, status="QUEUED", release="r@1", target="t", shadow=told
        )
        desk.heard("job/get/accepted", messages.encode(messages.JobReply(token=token, job=job)))
        (event,) = [each for each in heard if isinstance(each, JobSeen)]
        assert event.job.shadow == shadow
        heard.clear()


# -- what goes from one runner to the other


def carried(shown: Shown) -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=send_shown, args=(ours, shown))
        sender.start()
        found = receive(theirs)
        sender.join()
    return found


def test_a_sample_arrives_as_it_was() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    inputs = {
        "tensor": np.array([[1.5, np.nan]], np.float32),
        "picture": DecodedImage(pixels[:, ::-1]),
        "file": EncodedImage(b"\x89PNG"),
        "flag": np.array([True, False]),
    }
    outputs = {"one": np.array(7, np.int64), "none": np.zeros((0, 4), np.float16)}
    found = carried(Shown(inputs, outputs, 2.5, 3))
    assert (found.ms, found.dropped) == (2.5, 3)
    assert np.array_equal(found.inputs["tensor"], inputs["tensor"], equal_nan=True)
    assert np.array_equal(found.inputs["picture"].pixels, pixels[:, ::-1])
    assert found.inputs["file"] == EncodedImage(b"\x89PNG")
    assert found.inputs["flag"].tolist() == [True, False]
    assert found.outputs["one"].shape == ()
    assert found.outputs["none"].shape == (0, 4)


def test_what_is_too_large_is_not_begun() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(TooLargeError):
            send_shown(ours, Shown({"x": np.zeros(MAX_BODY + 1, np.uint8)}, {}, 1.0))
        send_hello(ours, msgspec.convert(manifest_of(), type(digits_manifest())))
        assert isinstance(receive(theirs), Hello)


def manifest_of() -> dict[str, Any]:
    """Return the manifest of a bundle as plain values, with files as a reader wants them."""
    document = msgspec.to_builtins(digits_manifest())
    document["build_id"] = "0" * 12
    document["files"] = [
        {"path": "model/model.onnx", "sha256": "0" * 64, "size": 1, "role": "model"}
    ]
    return dict(document)


def frame() -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_shown(
            ours, Shown({"x": np.zeros((2, 3), np.float32)}, {"y": np.ones(2, np.int8)}, 1.0)
        )
        return theirs.recv(65536)


@given(st.binary(max_size=200) | damaged(frame()))
def test_no_bytes_make_a_runner_read_nonsense(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        try:
            found = receive(theirs)
        except IntegrityError:
            return
        assert found is None or isinstance(found, Shown | Hello)


# -- two runners


class Pair:
    """A current runner that answers, a candidate beside it, and a socket between them."""

    def __init__(self, current: Path, candidate: Path, per_s: float = 200.0) -> None:
        self.listener = listen(candidate.with_suffix(".sock"))
        self.current, self.candidate = Heard(current, [self.listener]), Heard(candidate)
        self.per_s = per_s

    def __enter__(self) -> Self:
        self.digest = self.current.wait("loaded")["digest"]
        self.candidate.wait("loaded")
        self.current.tell("accept")
        self.current.wait("accepting")
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        for heard in (self.current, self.candidate):
            heard.__exit__()
        self.listener.close()

    def begin(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.current.runner.send({"cmd": "mirror", "per_s": self.per_s}, ours)
            self.candidate.runner.send({"cmd": "shadow"}, theirs)

    def ask(self, count: int = 1, start: int = 0) -> None:
        """Ask the current model about COUNT pictures; it must answer, and nobody else."""
        with Client(self.listener.getsockname()) as client:
            for image in TEST.inputs[start : start + count]:
                _, headers = client.infer(image)
                assert headers["edgepack-bundle"] == self.digest

    def compared(self, samples: int, dropped: int = 0) -> Seen:
        """Return what the candidate says once it has compared SAMPLES, and DROPPED were not."""

        def enough(beat: dict[str, Any]) -> bool:
            seen = read_seen(beat.get("shadow", {}))
            return seen.samples >= samples and seen.dropped >= dropped

        return read_seen(self.candidate.wait("beat", enough)["shadow"])

    def ask_until(self, samples: int, dropped: int = 0) -> Seen:
        """Ask until so many have been compared; which of the inputs are, is not ours to say."""
        done = threading.Event()

        def go_on() -> None:
            start = 0
            while not done.wait(0.02):
                self.ask(4, start := (start + 4) % len(TEST.inputs))

        asker = threading.Thread(target=go_on)
        asker.start()
        try:
            return self.compared(samples, dropped)
        finally:
            done.set()
            asker.join()


def wide_slot(directory: Path) -> Path:
    """Build the digits model for pictures of twice the side, under another input name."""
    model = onnx.load(digits_onnx(directory.with_name("narrow.onnx"), batch=1))
    model.graph.input.pop()
    wide = helper.make_tensor_value_info("photo", onnx.TensorProto.FLOAT, [1, 1, 32, 32])
    model.graph.input.append(wide)
    pool = helper.make_node("AveragePool", ["photo"], [INPUT], kernel_shape=[2, 2], strides=[2, 2])
    model.graph.node.insert(0, pool)
    path = directory.with_name("wide.onnx")
    onnx.save(model, path)
    narrow = digits_manifest("2.0.0")
    (spec,), rule = narrow.inputs, narrow.preprocess
    assert rule is not None
    replace = msgspec.structs.replace
    binding = replace(spec.binding, native_name="photo")
    manifest = replace(
        narrow,
        inputs=(replace(spec, name="photo", shape=(1, 1, 32, 32), binding=binding),),
        preprocess=replace(rule, input="photo"),
    )
    images = TEST.head(8).inputs
    home = directory.with_name("wide-golden")
    home.mkdir()
    np.savez(home / "inputs.npz", photo=images.repeat(2, axis=2).repeat(2, axis=3))
    narrow_model = directory.with_name("narrow.onnx")
    np.savez(
        home / "outputs.npz", **{OUTPUT: np.concatenate([raw(narrow_model, i) for i in images])}
    )
    files = {
        "model/model.onnx": path,
        "golden/inputs.npz": home / "inputs.npz",
        "golden/outputs.npz": home / "outputs.npz",
    }
    with open_bundle(write_bundle(home, manifest, files).path) as bundle:
        bundle.extract(directory)
    return directory


def test_the_same_model_agrees_and_another_one_does_not(tmp_path: Path) -> None:
    same = digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1")
    with Pair(*same) as pair:
        found = pair.ask_until(20)
        assert (found.agreement, found.reason) == (1.0, "")
        assert found.p95_ratio is not None
        beat = pair.candidate.wait("beat")
        assert beat["stats"]["inferences"] == 0, "nobody got those answers: they are not counted"
    with Pair(same[0], digits_slot(tmp_path / "c", "1.0.2", 0.42)) as pair:
        agreement = pair.ask_until(40).agreement
        assert agreement is not None
        assert 0 < agreement < 0.95


def test_of_the_same_pictures_each_model_makes_its_own_tensor(tmp_path: Path) -> None:
    folder = digits_folder(tmp_path / "pictures", 12)
    with Pair(digits_slot(tmp_path / "a"), wide_slot(tmp_path / "wide")) as pair:
        source = {"name": "door", "source": f"dir:{folder}", "every_s": 0.05}
        pair.current.tell("sources", sources=[source])
        assert pair.compared(1).agreement == 1.0
        pair.current.tell("sources", sources=[{"name": "hall", "source": "test:pattern"}])
        found = pair.compared(4)
        assert found.reason == ""
        # A tensor that was made for one of them says nothing to the other.
        pair.ask(8)
        wait("it to be counted", lambda: read_seen(
            pair.candidate.wait("beat")["shadow"]).dropped)  # fmt: skip


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    before = digits_manifest()
    replace = msgspec.structs.replace
    (spec,) = before.inputs
    assert why_not(before, digits_manifest("2.0.0")) == ""
    assert why_not(before, replace(before, postprocess=None)) == "other_task"
    bare = replace(before, preprocess=None)
    assert why_not(bare, bare) == ""
    assert why_not(bare, replace(bare, inputs=(replace(spec, name="x"),))) == "other_inputs"
    plain = replace(before, postprocess=None)
    other = replace(plain, outputs=(replace(plain.outputs[0], shape=(1, 11)),))
    assert why_not(plain, other) == "other_outputs"
    slot = digits_slot(tmp_path / "b")
    rewrite_manifest(slot, lambda m: m.update(postprocess=None))
    with Pair(digits_slot(tmp_path / "a"), slot) as pair:
        beat = pair.candidate.wait("beat", lambda e: e.get("shadow", {}).get("reason"))
        assert beat["shadow"]["reason"] == "other_task"
        pair.ask()


def test_a_candidate_that_stands_still_costs_the_current_model_nothing(tmp_path: Path) -> None:
    slots = digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1")
    with Pair(*slots, per_s=1000.0) as pair:
        pair.ask_until(1)
        os.kill(pair.candidate.runner.pid, signal.SIGSTOP)
        for _ in range(20):
            pair.ask(40)
        os.kill(pair.candidate.runner.pid, signal.SIGCONT)
        assert pair.ask_until(3, dropped=1).agreement == 1.0
        os.kill(pair.candidate.runner.pid, signal.SIGKILL)
        pair.ask(40)


def test_another_current_runner_goes_on_where_the_one_before_ended(tmp_path: Path) -> None:
    slots = digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1")
    with Pair(*slots) as pair:
        before = pair.ask_until(3).samples
        pair.current.__exit__()
        pair.current = Heard(slots[0], [pair.listener]).accepting()
        pair.begin()
        assert pair.ask_until(before + 3).agreement == 1.0
        pair.candidate.tell("accept")
        pair.candidate.wait("accepting")
        pair.ask(0)


# -- a device of a fleet

RULE = {"seconds": 1, "min_samples": 10, "min_agreement": 0.9, "per_s": 50}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


class Field(Beside):
    """What a device meets after dark: bright pictures, again and again."""

    def __init__(self, device: Device) -> None:
        super().__init__([self._ask])
        self._address = device.api[0]
        self.digests: set[str] = set()
        self.answers = 0
        self.failures: list[BaseException] = []

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                for image in TEST.inputs[:10]:
                    # Each time anew: a runner that hands over ends its connections.
                    with Client(self._address) as client:
                        self.digests.add(client.infer(1 - image)[1]["edgepack-bundle"])
                    self.answers += 1
                    self._stop.wait(0.01)
        except (OSError, http.client.HTTPException, AssertionError) as error:
            self.failures.append(error)


@pytest.mark.mosquitto
def test_a_model_that_passes_its_exam_and_fails_in_the_field_never_answers(place: Site) -> None:
    device = place.running_1(update={"shadow": RULE})
    digest = device.status()["digest"]
    place.publish("3.0.0", dazzled=True)
    with Field(device) as field:
        rollout = place.roll_out("3.0.0")
        assert place.ended(rollout) == "paused"
        count = field.answers
        wait("more answers", lambda: field.answers > count + 10)
    assert field.failures == []
    assert field.digests == {digest}, "the old model answered all of them"
    job = place.job(rollout)
    assert (job.status, job.reason) == ("FAILED", "shadow_disagrees")
    told = job.detail["shadow"]
    assert told["samples"] >= RULE["min_samples"]
    assert told["agreement"] < RULE["min_agreement"]
    assert told["p95_ratio"] > 0
    assert told.keys() == {"samples", "agreement", "p95_ratio", "dropped"}

    place.publish("3.1.0")
    with Field(device):
        rollout = place.roll_out("3.1.0")
        assert place.ended(rollout) == "completed"
    told = place.job(rollout).detail["shadow"]
    assert told["agreement"] == 1.0
    assert device.serving() == "digits@3.1.0"


@pytest.mark.mosquitto
def test_a_model_that_is_worse_in_the_field_is_taken_back_by_its_rollout(place: Site) -> None:
    """The device lets it pass, the gate of the rollout does not; nobody has to do anything."""
    device = place.running_1()
    place.publish("3.0.0", dazzled=True)
    gates = (parse_gate("agreement>=0.95"),)
    with Field(device) as field:
        rollout = place.roll_out("3.0.0", shadow_s=1, gates=gates, on_breach="revert")
        assert place.ended(rollout, 120) == "reverted"
        device.comes_to_serve("digits@1.0.0")
    assert field.failures == []
    assert len(field.digests) == 2, "it answered for a while"
    with place.service.database.read() as session:
        made = made_of(session, rollout)
    assert [one.sentence for one in made if "agreement is 0" in one.sentence]
    assert {one.same for one in made if not one.by} == {True}, "made once more, each is the same"


@pytest.mark.scale
@pytest.mark.mosquitto
def test_a_runner_that_dies_while_both_are_compared(place: Site) -> None:
    """The current one is started again and shown again; the candidate is loaded once more."""
    device = place.running_1(update={"shadow": RULE | {"seconds": 4, "deadline_s": 60}})
    place.publish("3.0.0")
    rollout = place.roll_out("3.0.0")
    with Field(device):
        wait("the comparison", lambda: device.status().get("phase") == "shadow")
        old = device.status()["runner"]["pid"]
        os.kill(old, signal.SIGKILL)
        wait("another runner", lambda: device.status()["runner"]["pid"] not in {None, old})
    with Field(device):
        assert place.ended(rollout) == "completed"
    assert place.job(rollout).detail["shadow"]["samples"] >= RULE["min_samples"]
    place.publish("3.1.0")
    rollout = place.roll_out("3.1.0")
    wait("the comparison", lambda: device.status().get("phase") == "shadow")
    device.kill()
    device.start()
    wait("the comparison again", lambda: device.status().get("phase") == "shadow")
    place.service.rollouts.cancel(rollout)
    wait("the end of it", lambda: device.status().get("phase") == "idle")
    wait("the model that ran before", lambda: device.serving() == "digits@3.0.0")
