"""The same model over gRPC: Triton's client unchanged, the same answers, the same gate."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc
from tritonclient.utils import InferenceServerException

from digits import digits_data
from fleet_rig import free_port
from slots import Heard, digits_slot, listen, raw

TEST = digits_data()[1]
TOKEN = "a-token-of-some-length"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


def accepting(heard: Heard, port: int) -> Heard:
    heard.wait("loaded")
    heard.tell("admit", token=TOKEN, grpc=f"127.0.0.1:{port}")
    heard.tell("accept")
    heard.wait("accepting")
    return heard


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Heard]:
    home = tmp_path_factory.mktemp("grpc")
    with listen(home / "s") as unix, Heard(digits_slot(home / "slot"), [unix]) as heard:
        yield accepting(heard, port)


@pytest.fixture
def client(runner: Heard, port: int) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


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
    for tensor in (
        {"name": "image", "datatype": "FP32", "shape": [1, 1, 16, 16]},
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


def test_a_swap_loses_no_call(tmp_path: Path) -> None:
    port, failed, counts = free_port(), [], [0]
    stop = threading.Event()
    slots = [digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1")]

    def ask() -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            while not stop.is_set():
                try:
                    infer(client, TEST.inputs[0])
                    counts[0] += 1
                except InferenceServerException as error:
                    failed.append(error)

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
    assert failed == []
