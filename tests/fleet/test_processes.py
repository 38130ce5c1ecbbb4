"""`edgepack fleet` as people start it: processes, commands, exit codes, sudden ends."""

import contextlib
import io
import json
import os
import signal
import ssl
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgepack import messages
from edgepack.cli import root, run_command
from edgepack_fleet.cli import show
from fleet_rig import (
    EDGEPACK,
    INVENTORY,
    Device,
    Identity,
    Mosquitto,
    csr,
    environment,
    free_port,
    listens,
    mosquitto,
    pem,
    publisher,
    refused,
    wait,
)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Place:
    """A data directory and the fleet that serves it."""

    data: Path
    broker: str = "mqtts://127.0.0.1:1"
    more: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    port: int = field(default_factory=free_port)
    devices: int = field(default_factory=free_port)

    def start(self) -> None:
        self._before = self._endpoints()
        broker = () if "--embedded-broker" in self.more else ("--broker", self.broker)
        with (self.data.parent / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [EDGEPACK, "fleet", "serve", "--data", self.data, "--listen",
                 f"127.0.0.1:{self.port}", "--device-listen", f"127.0.0.1:{self.devices}",
                 *broker, *self.more],
                stdout=log, stderr=log, env=environment(self.data.parent),
            )  # fmt: skip
        wait("the fleet to be ready", self._ready, 30)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.data.parent / "serve.log").read_text()
        return self._endpoints() not in {None, self._before}

    def _endpoints(self) -> tuple[int, int] | None:
        """Return which file says where it serves; one that was killed leaves its own behind."""
        with contextlib.suppress(FileNotFoundError):
            found = (self.data / "endpoints.json").stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.process = None
        return code

    def spawn(self, *words: str) -> Done:
        """Run a command in a process of its own."""
        done = subprocess.run(
            [EDGEPACK, "fleet", *words, "--data", self.data],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment(self.data.parent),
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, *words: str | Path, data: bool = True) -> Done:
        """Run a command as the program does, in this process: starting one costs a second."""
        where = ("--data", str(self.data)) if data else ()
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run_command(root, ["fleet", *map(str, words), *where])
            except SystemExit as leave:
                code = int(leave.code or 0)
        return Done(code, out.getvalue(), err.getvalue())

    def ask(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.code == 0, done.stderr
        document = json.loads(done.stdout)
        assert document["schema"].startswith("edgepack.")
        return document


@contextlib.contextmanager
def serving(place: Place) -> Iterator[Place]:
    place.data.mkdir(parents=True, exist_ok=True)
    try:
        place.start()
        yield place
    finally:
        if place.process is not None:
            place.process.kill()
            place.process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A fleet without a broker: it serves all the same, and says so."""
    with serving(Place(tmp_path_factory.mktemp("place") / "fleet")) as found:
        publisher(found.data).release()
        yield found


def clear(done: Done, code: int, *words: str) -> None:
    assert done.code == code, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_the_whole_way_by_commands(place: Place) -> None:
    assert place.run("groups", "create", "lab").stdout == "lab\n"
    assert "lab" in place.run("groups", "list").stdout
    assert place.ask("groups", "show", "lab")["devices"] == 0
    assert place.ask("releases", "list")["releases"][0]["id"] == "digits@1.0.0"
    assert "onnx-int8" in place.run("releases", "show", "digits@1.0.0").stdout
    token = place.run("tokens", "create", "--group", "lab", "--ttl", "60")
    assert token.stdout.startswith("ep1.")
    assert token.stdout.strip() not in place.run("tokens", "list").stdout
    made = place.ask("rollouts", "create", "digits@1.0.0", "--group", "lab", "--waves", "1,100%",
                     "--max-failures", "2", "--probation", "7")  # fmt: skip
    assert made["policy"]["max_failures"] == 2
    assert made["policy"]["probation_s"] == 7
    rollout = made["id"]
    assert place.ask("rollouts", "pause", rollout)["state"] == "paused"
    assert place.ask("rollouts", "resume", rollout)["state"] == "running"
    assert place.ask("rollouts", "cancel", rollout)["state"] == "cancelled"
    assert "Cancelled by an admin." in place.run("rollouts", "show", rollout).stdout
    assert rollout in place.run("rollouts", "list").stdout
    assert place.ask("devices", "list")["devices"] == []


def test_errors_have_their_exit_codes(place: Place, tmp_path: Path) -> None:
    clear(place.run("devices", "show", "nobody"), 2, "nobody")
    clear(place.run("rollouts", "show", "r99"), 2, "r99")
    clear(place.run("rollouts", "create", "digits@7.7.7", "--group", "x"), 2, "digits@7.7.7")
    clear(place.run("groups", "create", "Not A Name"), 2)
    clear(place.run("devices", "list", data=False), 2, "EDGEPACK_FLEET_URL")
    url = f"http://127.0.0.1:{place.port}"
    wrong = place.run("devices", "list", "--url", url, "--token", "guess", data=False)
    clear(wrong, 2, "token")
    nobody = f"http://127.0.0.1:{free_port()}"
    clear(place.run("devices", "list", "--url", nobody, "--token", "t", data=False), 7, nobody)
    clear(place.run("devices", "list", "--url", "nonsense", "--token", "t", data=False), 7)
    clear(place.run("tokens", "show", "--data", tmp_path, data=False), 2)
    clear(place.run("devices", "list", "--data", tmp_path, data=False), 2)


@pytest.mark.parametrize("name", ["../releases", "..", "a/../b", "a?b", "a#b", "a%2e", ""])
def test_a_name_leads_to_nothing_else(place: Place, name: str) -> None:
    clear(place.run("devices", "show", name), 2, f"{name!r}")
    clear(place.run("rollouts", "pause", name), 2)


def test_what_cannot_be_sent_is_said_before(place: Place) -> None:
    clear(place.run("tokens", "create", "--group", "lab", "--ttl", "inf"), 2, "finite")
    url = ("--url", f"http://127.0.0.1:{place.port}")
    token = place.ask("tokens", "show", "--role", "viewer")["token"]
    assert place.run("groups", "list", *url, "--token", f"{token}\n", data=False).code == 0
    for odd in (f"{token[:-1]}\x00", f"{token}\nX: y", f"é{token}"):
        refused = place.run("groups", "list", *url, "--token", odd, data=False)
        clear(refused, 2, "token")
        assert token[:-1] not in refused.stderr


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '"x"', '{"http": 7}', "\x00"])
def test_garbage_where_the_address_should_be(place: Place, tmp_path: Path, text: str) -> None:
    (tmp_path / "secret").write_bytes((place.data / "secret").read_bytes())
    (tmp_path / "endpoints.json").write_text(text)
    clear(place.run("groups", "list", "--data", tmp_path, data=False), 7)


def test_what_devices_say_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("device", "reason"), [("cam", "[/red] [bold]x[/] \x1b[2J\x07")], "")
    show.facts([("reason", "\x1b]0;title\x07 a\nb")])
    shown = capsys.readouterr().out
    assert "[/red] [bold]x[/]" in shown
    assert not set("\x1b\x07") & set(shown)
    assert "a\ufffdb" in shown


def test_a_viewer_cannot_change_anything(place: Place) -> None:
    token = place.ask("tokens", "show", "--role", "viewer")["token"]
    url = ("--url", f"http://127.0.0.1:{place.port}", "--token", token)
    assert place.run("devices", "list", "--json", *url, data=False).code == 0
    clear(place.run("groups", "create", "other", *url, data=False), 2, "operator")


def test_access_tokens_and_what_was_done_with_them(place: Place) -> None:
    made = place.run("access", "create", "ci", "--role", "operator", "--days", "1")
    text, token_id = made.stdout.strip(), made.stderr.partition(":")[0]
    assert text.startswith("epf_")
    assert token_id in place.run("access", "list").stdout
    assert text not in place.run("access", "list").stdout
    url = ("--url", f"http://127.0.0.1:{place.port}", "--token", text)
    assert place.run("groups", "create", "by-ci", *url, data=False).code == 0
    clear(place.run("access", "list", *url, data=False), 2, "admin")
    assert place.run("access", "revoke", token_id).stdout == f"{token_id} is revoked\n"
    clear(place.run("groups", "create", "late", *url, data=False), 2, "valid token")
    clear(place.run("access", "revoke", "bootstrap-admin"), 2, "secret")
    done = place.ask("audit", "list", "--who", token_id, "--days", "1")["audit"]
    assert [(e["action"], e["detail"]) for e in done] == [("create_group", {"id": "by-ci"})]
    assert f"ci ({token_id})" in place.run("audit", "list", "--done").stdout
    assert "wrong_state" in place.run("audit", "list", "--refused").stdout


def test_webhooks_by_commands(place: Place) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/"
    made = place.run("webhooks", "create", nowhere, "--type", "edgepack.rollout.state")
    assert made.stdout.startswith("whsec_")
    webhook = made.stderr.partition(" ")[0]
    assert place.run("webhooks", "test", webhook).code == 0

    def tried() -> list[Any]:
        found = place.ask("webhooks", "show", webhook)["deliveries"]
        return [d for d in found if d["tries"]]

    assert wait("the first try", tried)[0]["state"] == "pending"
    assert "ConnectError" in place.run("webhooks", "list").stdout
    assert made.stdout.strip() not in place.run("webhooks", "list", "--json").stdout
    assert place.run("webhooks", "delete", webhook).stdout == f"{webhook} is deleted\n"
    clear(place.run("webhooks", "show", webhook), 2, webhook)
    clear(place.run("webhooks", "create", "http://example.org"), 2, "https")


def test_a_second_fleet_of_the_same_data_isrefused(place: Place) -> None:
    again = place.spawn("serve", "--listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0")
    clear(again, 2, "another fleet serves", str(place.process.pid if place.process else ""))
    assert (place.data / "endpoints.json").exists()
    assert httpx.get(f"http://127.0.0.1:{place.port}/api/v1/health").status_code == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--listen", "0.0.0.0:0"), "without TLS"),
        (("--listen", "nonsense"), "HOST:PORT"),
        (("--listen", "127.0.0.1:99999"), "HOST:PORT"),
        (("--broker", "mqtt://127.0.0.1:1883"), "TLS"),
        (("--broker", "mqtts://127.0.0.1:1", "--embedded-broker"), "exclude"),
        (("--tls-cert", "nowhere.pem"), "belong together"),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    place = Place(tmp_path / "fleet")
    ports = () if "--listen" in words else ("--listen", "127.0.0.1:0")
    clear(place.run("serve", *ports, "--device-listen", "127.0.0.1:0", *words), 2, said)


def test_a_certificate_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    place = Place(tmp_path / "fleet")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n")
    ports = ("--listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0")
    for cert in (garbage, tmp_path / "nowhere.pem"):
        words = ("serve", *ports, "--tls-cert", str(cert), "--tls-key", str(garbage))
        clear(place.run(*words), 2, "cannot be used")


def test_a_port_that_is_taken_is_said(place: Place, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{place.port}"
    other = Place(tmp_path / "fleet")
    clear(other.spawn("serve", "--listen", taken, "--device-listen", "127.0.0.1:0"), 2, taken)


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    place = Place(Path("/proc/nowhere/fleet"))
    for words in (("serve", "--listen", "127.0.0.1:0"), ("broker", "--print-config")):
        clear(place.run(*words), 2, "/proc/nowhere/fleet")


def test_who_starts_first_the_directory_is_its_owners_alone(tmp_path: Path) -> None:
    place = Place(tmp_path / "new" / "fleet")
    assert place.run("broker", "--print-config").code == 0
    assert stat.S_IMODE(place.data.stat().st_mode) == 0o700


def test_a_database_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    ports = ("--listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0")
    place = Place(tmp_path / "fleet")
    clear(place.spawn("serve", *ports, "--database", "martian://x"), 2, "database")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_politely_and_leaves_no_address(tmp_path: Path, number: signal.Signals) -> None:
    with serving(Place(tmp_path / "fleet")) as place:
        secret = place.data / "secret"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert place.stop(number) == 0
        assert not (place.data / "endpoints.json").exists()
        assert "Traceback" not in (tmp_path / "serve.log").read_text()
        assert secret.read_text() not in (tmp_path / "serve.log").read_text()
        clear(place.run("devices", "list"), 7, "not running")


def test_help_names_every_command_without_importing_one() -> None:
    code = """
import sys
from edgepack.cli import root, run_command
run_command(root, ["fleet", "--help"])
heavy = {"fastapi", "sqlalchemy", "uvicorn", "pydantic", "rich", "httpx", "paho"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    python = str(EDGEPACK.with_name("python"))
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in (
        "access",
        "audit",
        "webhooks",
        "serve",
        "broker",
        "devices",
        "groups",
        "releases",
        "rollouts",
        "tokens",
        "openapi",
    ):
        assert f"  {name} " in done.stdout


def test_openapi_and_the_brokers_configuration_are_printed(tmp_path: Path) -> None:
    place = Place(tmp_path / "fleet")
    assert json.loads(place.run("openapi", data=False).stdout)["openapi"].startswith("3.")
    shown = place.run("broker", "--print-config", "--listen", "127.0.0.1:18883").stdout
    for line in (
        "listener 18883 127.0.0.1",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        "set_tcp_nodelay true",
    ):
        assert line in shown.splitlines()


# -- with devices


def enrol_over_https(place: Place, name: str) -> Identity:
    """Enrol as a stranger does: with a token, over HTTPS, trusting the CA the fleet shows."""
    token = place.ask("tokens", "create", "--group", "lab")["token"]
    import base64

    from cryptography.hazmat.primitives.asymmetric import ec

    facts = json.loads(base64.urlsafe_b64decode(token[4:] + "=="))
    folder = place.data.parent / name
    folder.mkdir()
    identity = Identity(name, folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    identity.ca.write_bytes(httpx.get(f"{facts['url']}/enroll/ca", verify=blind).content)
    key = ec.generate_private_key(ec.SECP256R1())
    request = messages.EnrollRequest(
        secret=facts["secret"], csr=csr(key), name=name, inventory=INVENTORY
    )
    trusted = ssl.create_default_context(cafile=str(identity.ca))
    answer = httpx.post(f"{facts['url']}/enroll", content=messages.encode(request), verify=trusted)
    reply = messages.decode(answer.content, messages.EnrollReply)
    identity.certificate.write_text(reply.certificate)
    identity.key.write_bytes(pem(key))
    return identity


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path / "fleet") as found:
        yield found


@pytest.mark.scale
@pytest.mark.mosquitto
def test_the_fleet_is_killed_again_and_again_and_the_rollout_finishes(
    tmp_path: Path, broker: Mosquitto
) -> None:
    with serving(Place(tmp_path / "fleet", f"mqtts://{broker.address}")) as place:
        publisher(place.data).release()
        place.ask("groups", "create", "lab")
        devices = [Device(enrol_over_https(place, f"cam-{n}"), broker.address) for n in range(2)]
        for device in devices:
            device.connect()
        rollout = place.ask("rollouts", "create", "digits@1.0.0", "--group", "lab",
                            "--waves", "1,100%")["id"]  # fmt: skip

        def restart() -> None:
            place.stop(signal.SIGKILL)
            place.start()

        def begun() -> Device | None:
            return next((d for d in devices if d.job()), None)

        first = wait("somebody to get a job", begun)
        restart()
        job = first.update(first.waits_for_job(), "IN_PROGRESS")
        sent = messages.encode_batch(
            [messages.Telemetry(boot="b", seq=0, start=0.0, end=1.0, inferences=9)]
        )
        first.say("tele", sent)
        restart()
        first.say("tele", sent)  # the acknowledgement may have died with the fleet
        first.hears("ack")
        first.update(job, "SUCCEEDED")
        restart()
        second = next(d for d in devices if d is not first)
        job = second.update(second.waits_for_job(), "IN_PROGRESS")
        restart()
        second.update(job, "SUCCEEDED")
        wait(
            "the rollout to complete",
            lambda: place.ask("rollouts", "show", rollout)["state"] == "completed",
        )
        assert place.ask("devices", "show", first.name)["inferences"] == 9
        for device in devices:
            device.leave()
        assert place.stop() == 0


@pytest.mark.scale
def test_the_embedded_broker_knows_devices_by_their_certificates(tmp_path: Path) -> None:
    place = Place(tmp_path / "fleet", more=("--embedded-broker",))
    with serving(place):
        publisher(place.data).release()
        place.ask("groups", "create", "lab")
        address = _embedded(place)
        cam = Device(enrol_over_https(place, "cam"), address)
        thief = Device(enrol_over_https(place, "thief"), address)
        cam.connect()
        wait("the fleet to be connected", lambda: place.ask("devices", "show", "cam")["online"])
        rollout = place.ask("rollouts", "create", "digits@1.0.0", "--group", "lab",
                            "--waves", "100%")["id"]  # fmt: skip
        job = cam.update(cam.waits_for_job(), "IN_PROGRESS")

        assert refused(thief, "cam"), "another device's name"
        assert refused(thief, "fleet"), "the fleet's name"
        assert not refused(thief, "thief")
        assert cam.client.is_connected()
        thief.connect()
        assert place.ask("devices", "revoke", "thief")["session"] == "ended"
        wait("its session to end", lambda: not thief.client.is_connected())
        assert refused(thief, "thief"), "the list is read here as well"
        thief.leave()

        cam.update(job, "SUCCEEDED")
        wait(
            "the rollout to complete",
            lambda: place.ask("rollouts", "show", rollout)["state"] == "completed",
        )
        cam.leave()
        assert place.stop() == 0
        certificate, key, ca = (
            place.data / "pki" / n for n in ("server.pem", "server.key", "ca.pem")
        )
        place.more += ("--tls-cert", str(certificate), "--tls-key", str(key))
        place.start()
        assert _embedded(place) == address, "devices know it by this port"
        trusted = ssl.create_default_context(cafile=str(ca))
        url = f"https://127.0.0.1:{place.port}"
        assert httpx.get(f"{url}/api/v1/health", verify=trusted).status_code == 200
        assert json.loads((place.data / "endpoints.json").read_text())["http"] == url
        assert place.stop() == 0


def _embedded(place: Place) -> Any:
    from edgepack_fleet.adapters.broker import parse_address

    endpoints = json.loads((place.data / "endpoints.json").read_text())
    return parse_address(endpoints["broker"].removeprefix("mqtts://"))


@pytest.mark.mosquitto
def test_the_broker_command_becomes_mosquitto(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            EDGEPACK,
            "fleet",
            "broker",
            "--data",
            tmp_path / "fleet",
            "--listen",
            f"127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
        env=environment(tmp_path),
    )
    try:

        def became() -> bool:
            return b"mosquitto" in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0]

        wait("mosquitto to take over the process", became)
        wait("mosquitto to listen", lambda: listens(port))
        process.terminate()
        # It may be that early that mosquitto has not set its handlers up: then the signal ends it.
        assert process.wait(10) in {0, -signal.SIGTERM}
        assert not listens(port)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
