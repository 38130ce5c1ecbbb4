"""The HTTP API of a real runner, asked by plain HTTP: answers equal onnxruntime's own."""

import base64
import http.client
import io
import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digits import digits_data
from edgepack.bundle import open_bundle
from edgepack_agent.runner.api import Api
from edgepack_agent.runner.connection import Call, Reply
from edgepack_agent.runner.engine import Engine
from edgepack_agent.runner.model import LoadedModel
from edgepack_agent.runner.server import MAX_CONNECTIONS
from edgepack_agent.runner.setup import Setup
from edgepack_agent.runner.slot import open_slot
from edgepack_agent.runner.statistics import Statistics
from slots import Client, Heard, counting_slot, digits_bundle, digits_slot, listen, raw

INFER = "/v2/models/digits/infer"
TEST = digits_data()[1]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Heard]:
    home = tmp_path_factory.mktemp("api")
    slot = digits_slot(home / "slot")
    with listen() as tcp, listen(home / "api.sock") as unix, Heard(slot, [tcp, unix]) as heard:
        heard.tcp, heard.unix = tcp.getsockname(), unix.getsockname()
        yield heard.accepting()


@pytest.fixture
def client(runner: Heard) -> Iterator[Client]:
    with Client(runner.tcp) as client:
        yield client


@pytest.fixture
def model(runner: Heard) -> Path:
    return runner.runner.slot / "model" / "model.onnx"


def binary_request(image: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Return body and headers as tritonclient sends them by default."""
    parameters = {"binary_data_size": image.nbytes}
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape]}
    document = {"inputs": [tensor | {"parameters": parameters}]}
    head = json.dumps(document | {"parameters": {"binary_data_output": True}}).encode()
    return head + image.tobytes(), {"inference_header_content_length": str(len(head))}


def test_json_answers_are_the_runtimes_own(client: Client, model: Path) -> None:
    for image in TEST.inputs[:8]:
        answer, _ = client.infer(image)
        assert np.array_equal(answer, raw(model, image))


def test_binary_answers_are_the_runtimes_own(client: Client, model: Path) -> None:
    for image in TEST.inputs[:8]:
        body, more = binary_request(image)
        status, headers, answer = client.ask("POST", INFER, body, **more)
        size = int(headers["inference-header-content-length"])
        [output] = json.loads(answer[:size])["outputs"]
        assert (status, output["shape"], output["datatype"]) == (200, [1, 10], "FP32")
        assert answer[size:] == raw(model, image).tobytes()


def test_the_unix_socket_says_the_same(runner: Heard, model: Path) -> None:
    with Client(runner.unix) as client:
        answer, _ = client.infer(TEST.inputs[0])
    assert np.array_equal(answer, raw(model, TEST.inputs[0]))


def test_an_image_is_preprocessed_as_the_manifest_says(client: Client, model: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(TEST.images[3]).save(file, "PNG")
    named = {"name": "image", "datatype": "BYTES", "shape": [1]}
    document = {"inputs": [named | {"data": [base64.b64encode(file.getvalue()).decode()]}]}
    as_json = client.ask("POST", INFER, json.dumps(document).encode())
    as_body = client.ask("POST", INFER, file.getvalue(), content_type="image/png")
    for status, _, answer in (as_json, as_body):
        assert status == 200
        [output] = json.loads(answer)["outputs"]
        assert np.allclose(output["data"], raw(model, TEST.inputs[3])[0], atol=1e-4)


def test_every_answer_names_the_bundle(client: Client) -> None:
    with open_bundle(digits_bundle()) as bundle:
        digest = bundle.digest
    asked = [("GET", "/v2"), ("GET", "/nowhere"), ("POST", INFER), ("GET", "/v2/models/digits")]
    for method, path in asked:
        assert client.ask(method, path)[1]["edgepack-bundle"] == digest
    image = TEST.inputs[0]
    body, more = binary_request(image)
    _, headers, answer = client.ask("POST", INFER, body, **more)
    head = json.loads(answer[: int(headers["inference-header-content-length"])])
    assert head["parameters"]["edgepack_bundle"] == digest
    assert (head["model_name"], head["model_version"]) == ("digits", "1.0.0")


def test_the_model_describes_itself(client: Client) -> None:
    for path in ("/v2/models/digits", "/v2/models/digits/versions/1.0.0"):
        status, _, body = client.ask("GET", path)
        about = json.loads(body)
        assert (status, about["name"], about["versions"]) == (200, "digits", ["1.0.0"])
        assert about["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, 1, 16, 16]}]
        assert about["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [1, 10]}]
        assert json.loads(client.ask("GET", f"{path}/ready")[2])["ready"] is True
    server = json.loads(client.ask("GET", "/v2")[2])
    assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("edgepack", True)


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/healthz", "/readyz"])
def test_it_is_alive_and_ready(client: Client, path: str) -> None:
    assert client.ask("GET", path)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", INFER, b"{", 400),
        ("POST", INFER, b'{"inputs":[]}', 400),
        ("POST", "/v2/models/other/infer", b"{}", 404),
        ("POST", "/v2/models/digits/versions/9.9.9/infer", b"{}", 404),
        ("GET", "/v2/models/digits/versions/9.9.9", b"", 404),
        ("GET", INFER, b"", 405),
        ("POST", "/v2", b"{}", 405),
        ("GET", "/", b"", 404),
    ],
)
def test_a_wrong_request_gets_a_reason(
    client: Client, method: str, path: str, body: bytes, status: int
) -> None:
    answered, headers, answer = client.ask(method, path, body)
    assert (answered, headers["content-type"]) == (status, "application/json")
    assert json.loads(answer)["error"]
    assert client.ask("GET", "/readyz")[0] == 200, "the connection is still good"


def test_pixels_are_preprocessed_as_a_file_of_them_is(client: Client) -> None:
    """A picture as UINT8 gets the very answer of the same picture as PNG."""
    pixels = np.random.default_rng(3).integers(0, 256, (40, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    as_file = client.ask("POST", INFER, file.getvalue(), content_type="image/png")
    for shape in ([40, 24, 3], [1, 40, 24, 3]):
        tensor = {"name": "image", "datatype": "UINT8", "shape": shape}
        head = json.dumps(
            {"inputs": [tensor | {"parameters": {"binary_data_size": pixels.nbytes}}]}
        )
        as_pixels = client.ask(
            "POST", INFER, head.encode() + pixels.tobytes(),
            inference_header_content_length=str(len(head)),
        )  # fmt: skip
        assert as_pixels[0] == as_file[0] == 200
        assert as_pixels[2] == as_file[2]


@pytest.mark.parametrize("shape", [[16, 16], [2, 8, 8, 3], [16, 16, 4], [0, 16, 3], [3, 16, 16]])
def test_pixels_that_are_no_picture_are_refused(client: Client, shape: list[int]) -> None:
    size = int(np.prod(shape))
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "data": [7] * size}
    status, _, answer = client.ask("POST", INFER, json.dumps({"inputs": [tensor]}).encode())
    assert status == 400
    assert b"picture" in answer


def test_a_broken_image_is_the_clients_fault(client: Client) -> None:
    status, _, answer = client.ask("POST", INFER, b"no image", content_type="image/png")
    assert (status, "cannot be read" in json.loads(answer)["error"]) == (400, True)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(runner: Heard) -> None:
    with socket.create_connection(runner.tcp, 10) as raw_socket:
        head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n"
        raw_socket.sendall(head.encode())
        assert raw_socket.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_refused(runner: Heard) -> None:
    with socket.create_connection(runner.tcp, 10) as raw_socket:
        head = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        raw_socket.sendall(head.encode())
        chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        for _ in range(18):
            raw_socket.sendall(chunk)
        assert raw_socket.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_over_tcp_only_local_names_are_served(client: Client, runner: Heard) -> None:
    for host, status in {"localhost:1": 200, "127.0.0.1": 200, "[::1]:1": 200, "a.b": 403}.items():
        assert client.ask("GET", "/v2", host=host)[0] == status
    with Client(runner.unix) as local:
        assert local.ask("GET", "/v2", host="a.b")[0] == 200


def test_connections_that_ask_for_nothing_have_to_go(tmp_path: Path) -> None:
    slot = digits_slot(tmp_path / "slot")
    with listen() as tcp, Heard(slot, [tcp]) as heard, ExitStack() as held:
        heard.accepting()
        place = tcp.getsockname()
        idle = [held.enter_context(socket.create_connection(place)) for _ in range(200)]
        idle[0].settimeout(20)
        with suppress(ConnectionError):
            assert idle[0].recv(1) == b""
        with Client(place) as client:
            assert client.infer(TEST.inputs[0])[0].shape == (1, 10)


def test_one_more_connection_costs_one_that_rests_and_no_other(tmp_path: Path) -> None:
    slot = digits_slot(tmp_path / "slot")
    with listen() as tcp, Heard(slot, [tcp]) as heard, ExitStack() as held:
        heard.accepting()
        place = tcp.getsockname()

        def still_answers(client: Client) -> bool:
            with suppress(ConnectionError, http.client.HTTPException):
                return client.ask("GET", "/readyz")[0] == 200
            return False

        first = [held.enter_context(Client(place)) for _ in range(MAX_CONNECTIONS)]
        assert all(still_answers(client) for client in first)
        assert still_answers(held.enter_context(Client(place)))
        # What it asked before its end has come would still be answered.
        ends = select.poll()
        for client in first:
            ends.register(client.fileno(), select.POLLIN)
        ((gone, _),) = ends.poll(20_000)
        rest = [client for client in first if client.fileno() != gone]
        assert len(rest) == MAX_CONNECTIONS - 1
        assert all(still_answers(client) for client in rest)


def test_half_a_head_holds_no_place(tmp_path: Path) -> None:
    slot = digits_slot(tmp_path / "slot")
    with listen() as tcp, Heard(slot, [tcp]) as heard, ExitStack() as held:
        heard.accepting()
        place = tcp.getsockname()
        for _ in range(MAX_CONNECTIONS):
            held.enter_context(socket.create_connection(place)).sendall(b"GET /readyz HTTP/1.1")
        assert once(place, "GET", "/readyz")[0] == 200


def test_requests_and_refusals_are_counted(client: Client, runner: Heard) -> None:
    def counted(event: dict[str, Any]) -> bool:
        total["inferences"] += event["stats"]["inferences"]
        total["bad_request"] += event["stats"]["errors"].get("bad_request", 0)
        total["latency"] += sum(event["stats"]["latency_ms"]["counts"])
        total["confidence"] += sum(event["stats"]["confidence"]["counts"])
        total["classes"] += sum(event["stats"]["classes"].values())
        return total["inferences"] >= 5 and total["bad_request"] >= 2

    runner.wait("beat", lambda e: e["stats"]["inferences"] == 0)
    total = dict.fromkeys(["inferences", "bad_request", "latency", "confidence", "classes"], 0)
    for image in TEST.inputs[:5]:
        client.infer(image)
    for _ in range(2):
        client.ask("POST", INFER, b"{")
    beat = runner.wait("beat", counted)
    expected = {"inferences": 5, "bad_request": 2, "latency": 5, "confidence": 5, "classes": 5}
    assert total == expected
    assert beat["rss_mb"] > 10


def test_what_a_client_makes_infinite_is_its_own_fault(client: Client) -> None:
    image = np.full((1, *TEST.inputs[0].shape), np.nan, np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape)}
    tensor["parameters"] = {"binary_data_size": image.nbytes}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = str(len(head))
    status, _, said = client.ask(
        "POST", INFER, head + image.tobytes(), inference_header_content_length=length
    )
    assert (status, "an input holds NaN or infinity" in json.loads(said)["error"]) == (400, True)


def test_what_is_counted_may_grow_while_it_is_told(tmp_path: Path) -> None:
    counts = Statistics()
    model = LoadedModel(
        open_slot(digits_slot(tmp_path / "slot")), Setup(threads=1), counts, lambda: None
    )
    api = Api(model, Engine(), counts)

    class Status(int):
        """A status at whose telling another thread's comes."""

        def __str__(self) -> str:
            api.count(Reply(599, {}, b""))
            return "200"

    api.count(Reply(Status(200), {}, b""))
    told = api.routes["/metrics"].answer(Call("GET", "/metrics", {}, over_tcp=False)).body
    assert b'edgepack_http_requests_total{code="200"} 1.0' in told


FOREVER = 2**62


def count_to(n: int, **parameters: int) -> bytes:
    tensor = {"name": "n", "datatype": "INT64", "shape": [1], "data": [n]}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def once(address: Any, *asked: Any) -> tuple[int, dict[str, str], bytes]:
    with Client(address) as client:
        return client.ask(*asked)


def test_a_busy_model_answers_504_then_503_and_stops_beating(tmp_path: Path) -> None:
    path = "/v2/models/counting/infer"
    with listen() as tcp, Heard(counting_slot(tmp_path / "slot"), [tcp]) as heard:
        heard.accepting()
        address = tcp.getsockname()
        status, _, answer = once(address, "POST", path, count_to(1000))
        assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [1000])
        heard.wait("beat")
        status, headers, answer = once(address, "POST", path, count_to(FOREVER, timeout=100_000))
        assert (status, "0.1 s" in json.loads(answer)["error"]) == (504, True)
        assert headers["connection"] == "close", "its thread is with the model"
        assert once(address, "GET", "/v2/health/live")[0] == 200, "the server itself is not stuck"
        waiting = [Client(address) for _ in range(64)]
        for other in waiting:
            other.send("POST", path, count_to(1))
        status, deadline = 504, time.monotonic() + 20
        while status == 504 and time.monotonic() < deadline:
            status, headers, _ = once(address, "POST", path, count_to(1, timeout=100_000))
        assert (status, headers["retry-after"]) == (503, "1")
        for other in waiting:
            other.close()
        while not heard.silent_for(4.0):
            pass
        heard.runner.stop(15)  # it gives who waits 4 s, and cannot know that they have gone
        assert heard.last()["code"] == 0, "a hung model does not keep the process alive"


def test_a_drain_waits_for_no_model_that_hangs(tmp_path: Path) -> None:
    path = "/v2/models/counting/infer"
    with listen() as tcp, Heard(counting_slot(tmp_path / "slot"), [tcp]) as heard:
        heard.accepting()
        assert once(tcp.getsockname(), "POST", path, count_to(FOREVER, timeout=100_000))[0] == 504
        heard.tell("drain")
        heard.wait("drained")
