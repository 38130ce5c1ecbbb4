"""Who may ask the inference API: over TCP who has the token, over the socket who may open it."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_agent.adapters.api_token import api_token
from edgepack_agent.runner.gate import Gate
from edgepack_agent.runner.protocol import RequestError
from slots import Client, Heard, digits_slot, listen

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Heard]:
    home = tmp_path_factory.mktemp("gate")
    slot = digits_slot(home / "slot")
    with listen() as tcp, listen(home / "api.sock") as unix, Heard(slot, [tcp, unix]) as heard:
        heard.tcp, heard.unix = tcp.getsockname(), unix.getsockname()
        yield heard.accepting(token=TOKEN)


def status(heard: Heard, path: str, authorization: str | None = None) -> int:
    headers = {"Authorization": authorization} if authorization is not None else {}
    asked = http.client.HTTPConnection(*heard.tcp, timeout=20)
    try:
        asked.request("GET", path, headers=headers)
        return asked.getresponse().status
    finally:
        asked.close()


@pytest.mark.parametrize("path", ["/v2", "/v2/models/digits", "/metrics", "/openapi.json", "/no"])
def test_over_tcp_nothing_is_told_without_the_token(guarded: Heard, path: str) -> None:
    for wrong in (None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        assert status(guarded, path, wrong) == 401
    assert status(guarded, path, f"Bearer {TOKEN}") == (404 if path == "/no" else 200)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_told_to_everybody_on_the_machine(guarded: Heard, path: str) -> None:
    assert status(guarded, path) == 200


def test_whoever_may_open_the_socket_needs_no_token(guarded: Heard) -> None:
    with Client(guarded.unix) as client:
        assert client.ask("GET", "/v2/models/digits")[0] == 200


def test_a_refusal_says_how_to_ask(guarded: Heard) -> None:
    asked = http.client.HTTPConnection(*guarded.tcp, timeout=20)
    asked.request("GET", "/v2")
    refused = asked.getresponse()
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "token" in json.loads(refused.read())["error"]
    asked.close()


@given(st.text(max_size=200))
def test_no_other_header_is_the_token(authorization: str) -> None:
    with pytest.raises(RequestError) as refused:
        Gate(TOKEN).admit(authorization, over_tcp=True)
    assert refused.value.status == 401


def admitted(gate: Gate) -> RequestError | None:
    """Return why a request is not let through."""
    try:
        gate.admit("", over_tcp=True)
    except RequestError as error:
        return error
    return None


@given(st.lists(st.floats(0, 3), max_size=60), st.floats(0.5, 50))
def test_no_more_than_the_rate_gets_through(pauses: list[float], rate: float) -> None:
    now = 0.0
    gate = Gate(None, rate, lambda: now)
    answers = []
    for pause in pauses:
        now += pause
        answers.append(admitted(gate))
    refused = [error for error in answers if error]
    assert all(error.status == 429 and error.retry_after_s for error in refused)
    assert all(0 < (error.retry_after_s or 0) <= 1 / rate for error in refused)
    assert len(answers) - len(refused) <= max(1.0, rate) + rate * now + 1e-6


def test_each_kind_of_socket_has_a_rate_of_its_own() -> None:
    gate = Gate(None, 1.0, lambda: 0.0)
    gate.admit("", over_tcp=True)
    gate.admit("", over_tcp=False)
    with pytest.raises(RequestError):
        gate.admit("", over_tcp=True)


def test_strangers_use_up_nobodys_rate_but_their_own() -> None:
    gate = Gate(TOKEN, 1.0, lambda: 0.0)
    statuses = []
    for _ in range(3):
        with pytest.raises(RequestError) as refused:
            gate.admit("Bearer guess", over_tcp=True)
        statuses.append(refused.value.status)
    assert statuses == [401, 429, 429]
    gate.admit(f"Bearer {TOKEN}", over_tcp=True)


def test_a_token_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "api-token"
    token = api_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert api_token(path) == token


@pytest.mark.parametrize(
    "content", [b"", b"short", b"two words that are long enough", b"\xff" * 40]
)
def test_a_file_that_holds_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "api-token"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        api_token(path)
    assert refused.value.reason == "bad_token"


def test_the_token_is_on_no_command_line_and_in_no_environment(guarded: Heard) -> None:
    process = Path(f"/proc/{guarded.runner.pid}")
    for name in ("cmdline", "environ"):
        assert TOKEN.encode() not in (process / name).read_bytes()
