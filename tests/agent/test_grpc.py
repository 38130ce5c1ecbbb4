"""The same model over gRPC: Triton's client unchanged, the same answers, the same gate."""

import asyncio
import io
import math
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException

from digits import digits_data
from edgepack_agent.runner.api import Api
from edgepack_agent.runner.engine import Engine
from edgepack_agent.runner.grpc_api import _Service
from edgepack_agent.runner.model import LoadedModel
from edgepack_agent.runner.setup import Setup
from edgepack_agent.runner.slot import open_slot
from edgepack_agent.runner.statistics import Statistics
from fleet_rig import free_port, wait
from slots import Client, Heard, digits_slot, listen, raw

TEST = digits_data()[1]
TOKEN = "a-token-of-some-length"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


def accepting(heard: Heard, port: int) -> Heard:
    return heard.accepting(token=TOKEN, grpc=f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Heard]:
    home = tmp_path_factory.mktemp("grpc")
    with listen(home / "s") as unix, Heard(digits_slot(home / "slot"), [unix]) as heard:
        heard.unix = unix.getsockname()
        yield accepting(heard, port)


@pytest.fixture
def client(runner: Heard, port: int) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


@pytest.fixture(scope="module")
def channel(runner: Heard, port: int) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: Any) -> Any:
    return rpc.GRPCInferenceServiceStub(channel)


def infer(client: Any, image: np.ndarray) -> Any:
    tensor = triton.InferInput("image", [1, *image.shape], "FP32")
    tensor.set_data_from_numpy(image[None])
    return client.infer("digits", [tensor], headers=BEARER)


def test_tritonclient_gets_the_runtimes_answers(runner: Heard, client: Any) -> None:
    for image in TEST.inputs[:5]:
        answer = infer(client, image)
        expected = raw(runner.runner.slot / "model" / "model.onnx", image)
        assert np.array_equal(answer.as_numpy("logits"), expected)
        said = answer.get_response().parameters["edgepack_bundle"].string_param
        assert said.startswith("sha256:")


def test_tritonclient_learns_what_there_is(client: Any) -> None:
    assert client.is_server_live(headers=BEARER)
    assert client.is_server_ready(headers=BEARER)
    assert client.is_model_ready("digits", headers=BEARER)
    assert not client.is_model_ready("letters", headers=BEARER)
    about = client.get_model_metadata("digits", headers=BEARER)
    assert [(t.name, list(t.shape)) for t in about.inputs] == [("image", [1, 1, 16, 16])]


def test_typed_contents_are_as_good_as_raw_ones(runner: Heard, client: Any, port: int) -> None:
    image = TEST.inputs[0]
    request = pb.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=[1, *image.shape])
    tensor.contents.fp32_contents.extend(image.ravel().tolist())
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, metadata=list(BEARER.items()), timeout=20)
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    assert np.array_equal(found, infer(client, image).as_numpy("logits").ravel())


@pytest.mark.parametrize("headers", [None, {"authorization": "Bearer x"}])
def test_nothing_is_told_without_the_token(client: Any, headers: Any) -> None:
    for ask in (client.is_server_live, client.get_server_metadata):
        with pytest.raises(InferenceServerException, match="token"):
            ask(headers=headers)


def hostile() -> list[pb.ModelInferRequest]:
    found = [pb.ModelInferRequest(model_name="letters")]
    found.append(pb.ModelInferRequest())
    for tensor in (
        {"name": "image", "datatype": "FP32", "shape": [1, 1, 16, 16]},
        {"name": "image", "datatype": "INT8", "shape": [-1, 2**40]},
        {"name": "image", "datatype": "BYTES", "shape": [1]},
        {"name": "image", "datatype": "XX", "shape": [-1]},
        {"name": "x" * 1000, "datatype": "FP32", "shape": [2**62, 2**62]},
    ):
        for raws in ([], [b""], [b"\x00" * 7], [b"a", b"b"]):
            request = pb.ModelInferRequest(model_name="digits", raw_input_contents=raws)
            request.inputs.add(**tensor)
            found.append(request)
    return found


def test_what_is_no_request_is_refused_and_the_next_one_answered(
    runner: Heard, client: Any, port: int
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        for request in hostile():
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(request, metadata=list(BEARER.items()), timeout=20)
            code = refused.value.code()  # type: ignore[attr-defined]
            assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
    infer(client, TEST.inputs[0])


def digit() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 16, 16])
    tensor.contents.fp32_contents.extend([0.0] * 256)
    return request


def test_what_of_tritons_protocol_is_not_supported_is_refused_not_ignored(client: Any) -> None:
    tensor = triton.InferInput("image", [1, 1, 16, 16], "FP32")
    tensor.set_data_from_numpy(TEST.inputs[:1])
    classes = triton.InferRequestedOutput("logits", class_count=3)
    shared = triton.InferRequestedOutput("logits")
    shared.set_shared_memory("region", 40)
    for output in (classes, shared):
        with pytest.raises(InferenceServerException, match="not supported"):
            client.infer("digits", [tensor], outputs=[output], headers=BEARER)
    tensor.set_shared_memory("region", 1024)
    with pytest.raises(InferenceServerException, match="not supported"):
        client.infer("digits", [tensor], headers=BEARER)
    with pytest.raises(
        InferenceServerException, match=r"(?i)not (implemented|found)|UNIMPLEMENTED"
    ):
        client.load_model("digits", headers=BEARER)


def test_a_call_that_may_wait_no_longer_is_not_answered(stub: Any) -> None:
    request = digit()
    request.parameters["timeout"].int64_param = 1
    with pytest.raises(grpc.RpcError) as late:
        stub.ModelInfer(request, metadata=list(BEARER.items()), timeout=20)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]


def test_a_cancelled_call_takes_no_turn(tmp_path: Path) -> None:
    counts, engine, gate = Statistics(), Engine(), threading.Event()
    slot = open_slot(digits_slot(tmp_path / "slot"))
    model = LoadedModel(slot, Setup(threads=1), counts, lambda: None)
    infer = _Service(Api(model, engine, counts), model).handlers()["ModelInfer"].unary_unary

    async def cancel_while_it_waits() -> None:
        call = asyncio.create_task(infer(digit().SerializeToString(), Caller()))
        await asyncio.to_thread(wait, "it waits", lambda: engine.waiting)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    with ThreadPoolExecutor() as threads:
        threads.submit(engine.run, gate.wait, math.inf)
        wait("the model is busy", lambda: engine.stalled_s > 0)
        try:
            asyncio.run(cancel_while_it_waits())
        finally:
            gate.set()
    engine.run(lambda: None, 20)
    assert counts.total().inferences == 0


class Caller:
    """A call without metadata."""

    def invocation_metadata(self) -> tuple[()]:
        return ()


def test_a_picture_comes_as_typed_contents(stub: Any) -> None:
    file = io.BytesIO()
    Image.new("L", (16, 16), 255).save(file, "png")
    request = pb.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(file.getvalue())
    answer = stub.ModelInfer(request, metadata=list(BEARER.items()), timeout=20)
    assert len(answer.raw_output_contents[0]) == 40


def test_numbers_that_json_cannot_say_reach_the_model(stub: Any) -> None:
    request = digit()
    request.inputs[0].contents.fp32_contents[0] = math.nan
    answer = stub.ModelInfer(request, metadata=list(BEARER.items()), timeout=20)
    assert np.isnan(np.frombuffer(answer.raw_output_contents[0], np.float32)).all()


def test_the_index_tells_what_is_served(client: Any) -> None:
    (served,) = client.get_model_repository_index(headers=BEARER).models
    assert (served.name, served.version, served.state) == ("digits", "1.0.0", "READY")


def test_calls_are_counted_by_their_status(runner: Heard, client: Any) -> None:
    infer(client, TEST.inputs[0])
    with pytest.raises(InferenceServerException):
        client.get_model_metadata("letters", headers=BEARER)
    with Client(runner.unix) as asked:
        text = asked.ask("GET", "/metrics")[2].decode()
    for code in ("OK", "NOT_FOUND"):
        assert f'edgepack_grpc_calls_total{{code="{code}"}}' in text


_METHODS = ["ServerLive", "ModelReady", "ModelMetadata", "ModelInfer", "RepositoryIndex"]
_REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
_changes = st.lists(st.tuples(st.integers(0, 1200), st.binary(max_size=6)), max_size=4)


@settings(max_examples=150, deadline=None)
@given(method=st.sampled_from(_METHODS), data=st.binary(max_size=300), changes=_changes)
def test_no_bytes_make_the_service_fail(
    channel: Any, method: str, data: bytes, changes: list[tuple[int, bytes]]
) -> None:
    """Whole messages that are none, and a good one with some bytes replaced."""
    if changes:
        good = bytearray(digit().SerializeToString())
        for place, piece in changes:
            good[place : place + len(piece)] = piece
        data = bytes(good)
    ask = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    call = ask.future(data, metadata=list(BEARER.items()), timeout=20)
    assert call.code() in {grpc.StatusCode.OK, *_REFUSED}, call.details()


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=100))
def test_no_other_metadata_is_the_token(channel: Any, authorization: str) -> None:
    stub = rpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ServerLive(
            pb.ServerLiveRequest(), metadata=[("authorization", authorization)], timeout=20
        )
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_strangers_learn_not_even_whether_their_message_is_one(channel: Any) -> None:
    ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as refused:
        ask(b"\xff" * 1000, timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


TRIES = 7
"""Of a call, each with twice the pause: what a retry policy does."""


def test_whoever_tries_again_loses_no_call_to_a_swap(tmp_path: Path) -> None:
    port, failed, lost, counts = free_port(), [], [], [0]
    stop = threading.Event()
    slots = [digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1")]

    def ask() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not stop.is_set():
                for attempt in range(TRIES):
                    try:
                        infer(client, TEST.inputs[0])
                        counts[0] += 1
                        break
                    except InferenceServerException as error:
                        failed.append(error)
                        time.sleep(0.05 * 2**attempt)
                else:
                    lost.append(failed[-1])

    with (
        listen(tmp_path / "s") as unix,
        Heard(slots[0], [unix]) as old,
        Heard(slots[1], [unix]) as new,
    ):
        accepting(old, port)
        asker = threading.Thread(target=ask)
        asker.start()
        try:
            deadline = time.monotonic() + 20
            while counts[0] < 50 and time.monotonic() < deadline:
                time.sleep(0.02)
            accepting(new, port)
            old.tell("drain")
            old.wait("drained")
            old.runner.stop(5)
            before = counts[0]
            while counts[0] < before + 50 and time.monotonic() < deadline + 20:
                time.sleep(0.02)
        finally:
            stop.set()
            asker.join(20)
    assert counts[0] >= before + 50
    assert not lost
    # What is on its way when the old one says goodbye is refused, not half done. Where the client
    # comes back before the old one has shut its door, its channel waits for a second.
    assert len(failed) < TRIES
    assert all(re.search("UNAVAILABLE|CANCELLED", str(error)) for error in failed)
