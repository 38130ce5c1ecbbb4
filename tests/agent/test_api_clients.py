"""Programs of others drive the API unchanged: tritonclient, curl, promtool, OpenAPI readers."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openapi_spec_validator import validate
from tritonclient import http as triton

import edgepack_agent.runner
from digits import digits_data
from edgepack_agent.runner.openapi import REFUSALS
from slots import Heard, digits_slot, listen, raw

TEST = digits_data()[1]
TOKEN = "a-token-of-some-length"
# The client adds its own to the headers it is given.
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Heard]:
    home = tmp_path_factory.mktemp("clients")
    slot = digits_slot(home / "slot")
    with listen() as tcp, listen(home / "api.sock") as unix, Heard(slot, [tcp, unix]) as heard:
        heard.tcp, heard.unix = tcp.getsockname(), unix.getsockname()
        yield heard.accepting(token=TOKEN)


def expected(runner: Heard, image: np.ndarray) -> np.ndarray:
    return raw(runner.runner.slot / "model" / "model.onnx", image)


@pytest.fixture
def client(runner: Heard) -> Iterator[Any]:
    client = triton.InferenceServerClient(f"127.0.0.1:{runner.tcp[1]}")
    yield client
    client.close()


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_runtimes_answers(runner: Heard, client: Any, binary: bool) -> None:
    for image in TEST.inputs[:5]:
        tensor = triton.InferInput("image", [1, *image.shape], "FP32")
        tensor.set_data_from_numpy(image[None], binary_data=binary)
        wanted = triton.InferRequestedOutput("logits", binary_data=binary)
        answer = client.infer("digits", [tensor], outputs=[wanted], headers=dict(BEARER))
        assert np.array_equal(answer.as_numpy("logits"), expected(runner, image))


def test_tritonclient_learns_what_there_is(client: Any) -> None:
    assert client.is_server_live(headers=dict(BEARER))
    assert client.is_server_ready(headers=dict(BEARER))
    assert client.is_model_ready("digits", headers=dict(BEARER))
    assert client.get_server_metadata(headers=dict(BEARER))["name"] == "edgepack"
    about = client.get_model_metadata("digits", headers=dict(BEARER))
    assert [tensor["name"] for tensor in about["inputs"]] == ["image"]
    (served,) = client.get_model_repository_index(headers=dict(BEARER))
    assert (served["name"], served["state"]) == ("digits", "READY")


def test_curl_drives_it_over_the_socket_and_over_tcp(runner: Heard, tmp_path: Path) -> None:
    image = TEST.inputs[0]
    request = tmp_path / "request.json"
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *image.shape]}
    request.write_text(httpx.Request("POST", "http://x", json={
        "inputs": [tensor | {"data": image.ravel().tolist()}]
    }).content.decode())  # fmt: skip
    path = "/v2/models/digits/infer"
    ways = [
        ["--unix-socket", runner.unix, f"http://localhost{path}"],
        ["-H", f"Authorization: Bearer {TOKEN}", f"http://127.0.0.1:{runner.tcp[1]}{path}"],
    ]
    for way in ways:
        words = ["curl", "-sS", "--fail", "-d", f"@{request}", *map(str, way)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        answer = httpx.Response(200, text=done.stdout).json()["outputs"][0]["data"]
        assert np.array_equal(np.array(answer, np.float32), expected(runner, image).ravel())


def get(runner: Heard, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{runner.tcp[1]}{path}", headers=dict(BEARER), timeout=20)


def sample(text: str, name: str) -> float:
    line = next(line for line in text.splitlines() if line.startswith(name))
    return float(line.rpartition(" ")[2])


def test_metrics_count_what_happens_and_never_fall(runner: Heard, client: Any) -> None:
    before = get(runner, "/metrics").text
    image = TEST.inputs[0]
    tensor = triton.InferInput("image", [1, *image.shape], "FP32")
    tensor.set_data_from_numpy(image[None])
    for _ in range(3):
        client.infer("digits", [tensor], headers=dict(BEARER))
    assert get(runner, "/nowhere").status_code == 404
    after = get(runner, "/metrics").text
    name = "edgepack_inference_duration_seconds_count"
    assert sample(after, name) - sample(before, name) == 3
    assert sample(after, 'edgepack_http_requests_total{code="404"}') >= 1
    assert sample(after, 'edgepack_errors_total{reason="not_found"}') >= 1
    assert sample(after, "process_resident_memory_bytes") > 2**20
    assert 'edgepack_bundle_info{digest="sha256:' in after


@pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)"
)
def test_promtool_finds_nothing_to_say(runner: Heard) -> None:
    text = get(runner, "/metrics").text
    words = [str(PROMTOOL), "check", "metrics"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_openapi_document_is_valid_and_names_what_is_there(runner: Heard) -> None:
    document = get(runner, "/openapi.json").json()
    validate(document)
    for path, operations in document["paths"].items():
        for method in operations:
            answer = httpx.request(
                method, f"http://127.0.0.1:{runner.tcp[1]}{path}", headers=dict(BEARER), timeout=20
            )
            assert answer.status_code in {200, 400}
            assert str(answer.status_code) in operations[method]["responses"]


def test_what_is_nowhere_is_told_where_to_look(runner: Heard) -> None:
    for path in ("/", "/v3/models", "/v2/models/other"):
        answer = get(runner, path)
        assert answer.status_code == 404
        said = f"there is no {path} here; /openapi.json says what there is"
        assert answer.json() == {"error": said}


def test_every_refusal_that_the_api_knows_is_documented() -> None:
    runner = Path(edgepack_agent.runner.__file__).parent
    text = "".join(path.read_text() for path in runner.glob("*.py"))
    raised = {int(status) for status in re.findall(r"RequestError\(\s*(\d{3})", text)}
    assert len(raised) > 8
    assert raised <= REFUSALS.keys()
