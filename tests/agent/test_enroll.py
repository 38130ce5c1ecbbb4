"""Enrolment against a real TLS server with a CA of its own, honest and not."""

import base64
import hashlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edgepack.errors import EdgepackError, IntegrityError, UnreachableError, UsageError
from edgepack.messages import EnrollReply, EnrollRequest, Inventory, decode, encode
from edgepack_agent.adapters.enroll import Token, enroll, read_root, read_token
from edgepack_agent.adapters.identity import load_identity
from edgepack_fleet.adapters.pki import Pki

ROOT = json.dumps({"signed": {"_type": "root", "version": 1}, "signatures": []}).encode()


@dataclass
class Listener:
    """A fleet's device listener: what it serves can be changed by a test."""

    pki: Pki
    secret: str = "open sesame"
    image_root: bytes = ROOT
    uses: int = 1
    reply: dict[str, Any] = field(default_factory=dict)
    requests: list[EnrollRequest] = field(default_factory=list)
    url: str = ""

    def token(self, **changes: str) -> Token:
        der = ssl.PEM_cert_to_DER_cert(self.pki.ca_pem)
        facts = {"url": self.url, "secret": self.secret, "ca": hashlib.sha256(der).hexdigest()}
        return Token(**(facts | changes))

    def get(self, path: str) -> tuple[int, bytes]:
        found = {"/enroll/ca": self.pki.ca_pem.encode(), "/enroll/image-root": self.image_root}
        return (200, found[path]) if path in found else (404, b"")

    def post(self, body: bytes) -> tuple[int, bytes]:
        request = decode(body, EnrollRequest)
        self.requests.append(request)
        if len(self.requests) > self.uses or request.secret != self.secret:
            problem = {"detail": "the token has been used already", "reason": "token_used"}
            return 403, json.dumps(problem).encode()
        issued = self.pki.issue(request.csr, "cam-1", datetime.now(UTC))
        facts = {
            "device": "cam-1", "group": "lab", "certificate": issued.pem, "ca": self.pki.ca_pem,
            "broker_host": "127.0.0.1", "broker_port": 8883, "director_root": "{}",
        }  # fmt: skip
        return 200, encode(EnrollReply(**(facts | self.reply)))


def handler(listener: Listener) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(*listener.get(self.path))

        def do_POST(self) -> None:
            self.answer(*listener.post(self.rfile.read(int(self.headers["content-length"]))))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Listener]:
    pki = Pki(tmp_path / "pki")
    listener = Listener(pki)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(listener))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.pair("server"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    listener.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield listener
    server.shutdown()
    server.server_close()
    thread.join()


def join(fleet: Listener, directory: Path, **changes: Any) -> str:
    words: dict[str, Any] = {"name": "cam", "inventory": Inventory(), "root": ROOT}
    token = changes.pop("token", None) or fleet.token()
    return enroll(token, directory, **({"root_sha256": None} | words | changes))


def test_an_enrolled_device_has_an_identity_that_only_it_can_read(
    fleet: Listener, tmp_path: Path
) -> None:
    home = tmp_path / "identity"
    assert join(fleet, home) == "cam-1"
    identity = load_identity(home)
    assert identity is not None
    assert (identity.device, identity.group) == ("cam-1", "lab")
    assert (identity.broker_host, identity.broker_port) == ("127.0.0.1", 8883)
    assert identity.image_root == ROOT
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o600}
    assert home.stat().st_mode & 0o777 == 0o700
    identity.tls()


def test_the_private_key_stays_here(fleet: Listener, tmp_path: Path) -> None:
    join(fleet, tmp_path / "identity")
    (request,) = fleet.requests
    key = serialization.load_pem_private_key((tmp_path / "identity/key.pem").read_bytes(), None)
    assert x509.load_pem_x509_csr(request.csr.encode()).public_key() == key.public_key()
    assert "PRIVATE" not in request.csr


def fails(fleet: Listener, tmp_path: Path, kind: type[EdgepackError], **changes: Any) -> str:
    """Check that enrolment fails with KIND and leaves nothing; return the reason."""
    home = tmp_path / "data" / "identity"
    with pytest.raises(kind) as found:
        join(fleet, home, **changes)
    assert not home.exists()
    assert not list((tmp_path / "data").rglob("*")) or not home.parent.exists()
    assert fleet.secret not in found.value.diagnostics()
    return found.value.reason


def test_another_ca_is_refused_before_the_secret_is_sent(fleet: Listener, tmp_path: Path) -> None:
    token = fleet.token(ca="0" * 64)
    assert fails(fleet, tmp_path, IntegrityError, token=token) == "wrong_ca"
    assert not fleet.requests


def test_a_server_that_only_copies_the_ca_gets_no_secret(fleet: Listener, tmp_path: Path) -> None:
    thief = Pki(tmp_path / "thief")
    honest, fleet.pki = fleet.pki, thief
    token = fleet.token()  # names the thief's CA, which did not sign the server's certificate
    assert fails(fleet, tmp_path, IntegrityError, token=token) == "wrong_ca"
    assert not fleet.requests
    fleet.pki = honest


def test_a_server_under_another_name_is_refused(fleet: Listener, tmp_path: Path) -> None:
    port = fleet.url.rpartition(":")[2]
    token = fleet.token(url=f"https://127.0.0.2:{port}")
    reason = fails(fleet, tmp_path, EdgepackError, token=token)
    assert reason in {"wrong_ca", "unreachable"}
    assert not fleet.requests


def test_a_token_is_used_once(fleet: Listener, tmp_path: Path) -> None:
    join(fleet, tmp_path / "first")
    assert fails(fleet, tmp_path, UsageError) == "token_used"


def test_an_enrolled_device_is_not_enrolled_again(fleet: Listener, tmp_path: Path) -> None:
    fleet.uses = 2
    join(fleet, tmp_path / "identity")
    key = (tmp_path / "identity/key.pem").read_bytes()
    with pytest.raises(UsageError) as found:
        join(fleet, tmp_path / "identity")
    assert found.value.reason == "already_enrolled"
    assert (tmp_path / "identity/key.pem").read_bytes() == key
    assert len(fleet.requests) == 1, "nor is a token wasted on it"


def test_the_root_may_be_fetched_if_its_digest_is_known(fleet: Listener, tmp_path: Path) -> None:
    digest = hashlib.sha256(ROOT).hexdigest()
    join(fleet, tmp_path / "identity", root=None, root_sha256=digest.upper())
    assert (tmp_path / "identity/image-root.json").read_bytes() == ROOT


def test_a_root_that_is_not_the_publishers_is_refused(fleet: Listener, tmp_path: Path) -> None:
    fleet.image_root = ROOT + b" "
    digest = hashlib.sha256(ROOT).hexdigest()
    found = fails(fleet, tmp_path, IntegrityError, root=None, root_sha256=digest)
    assert found == "wrong_root"
    assert not fleet.requests


@pytest.mark.parametrize("change", [{"device": "cam-2"}, {"certificate": "rubbish"}])
def test_a_certificate_for_somebody_else_is_refused(
    fleet: Listener, tmp_path: Path, change: dict[str, str]
) -> None:
    fleet.reply = change
    assert fails(fleet, tmp_path, IntegrityError) == "bad_certificate"


def test_nobody_at_home(fleet: Listener, tmp_path: Path) -> None:
    token = fleet.token(url="https://127.0.0.1:9")
    assert fails(fleet, tmp_path, UnreachableError, token=token) == "unreachable"


def encoded(document: Any) -> str:
    raw = json.dumps(document).encode()
    return "ep1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")


GOOD = {"url": "https://h:1", "secret": "s", "ca": "0" * 64, "group": "lab"}


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "ep1.", "ep1.!!!", "ep2." + encoded(GOOD)[4:], encoded(GOOD)[:-9],
        encoded([]), encoded({"url": "https://h:1"}), encoded(GOOD | {"url": "http://h:1"}),
        encoded(GOOD | {"url": "https://"}), encoded(GOOD | {"url": "https://h:port"}),
        "ep1.é", encoded(GOOD | {"url": "https://h:1/é"}),
        encoded(GOOD | {"url": f"https://{'a' * 80}.b"}),
    ],
)  # fmt: skip
def test_what_is_not_a_token_is_said_so(text: str) -> None:
    with pytest.raises(UsageError) as found:
        read_token(text)
    assert found.value.reason == "bad_token"


def test_a_token_is_read() -> None:
    assert read_token(encoded(GOOD)).url == "https://h:1"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"signed": {"_type": "targets"}}', "[" * 9999])
def test_what_is_not_a_root_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "root.json").write_text(text)
    with pytest.raises(UsageError) as found:
        read_root(tmp_path / "root.json")
    assert found.value.reason == "bad_root"
