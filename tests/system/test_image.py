"""The container image and the compose files: linted everywhere, built and run where root can.

There is no container engine here: the steps of the Dockerfile are done in a bare Debian, and what
compose.yaml says is started with the same user, read-only root, volume and health checks. Needs
root and debootstrap for that; run by `scripts/test-image`.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_rig import wait
from image_steps import Container, Image, build, filled, instructions
from system.harness import BIN
from system.test_clean_root import Machine, booted

HERE = Path(__file__).parents[2]
DOCKER = HERE / "deploy" / "docker"
DOCKERFILE = DOCKER / "Dockerfile"
MIRROR = "http://deb.debian.org/debian"
HOST = "fleet.example.com"


def test_the_dockerfile_has_good_manners() -> None:
    done = subprocess.run(
        [BIN / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["compose.yaml", "compose.postgres.yaml"])
def test_a_compose_file_has_the_form_of_the_specification(name: str) -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_container_has_more_than_it_needs() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]
    postgres = yaml.safe_load((DOCKER / "compose.postgres.yaml").read_text())
    assert "ports" not in postgres["services"]["postgres"]
    for service in postgres["services"].values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or value.startswith("/run/secrets/")
    words = [rest for word, rest in instructions(DOCKERFILE.read_text()) if word == "USER"]
    assert words == ["10001:10001"]


def test_what_the_image_needs_is_let_into_the_context() -> None:
    rules = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    for word, rest in instructions(DOCKERFILE.read_text()):
        if word == "COPY" and not rest.startswith("--from"):
            assert {f"!{name}" for name in rest.split()[:-1]} <= set(rules)


# -- built and run


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    work = tmp_path_factory.mktemp("image")
    bare = Path(os.environ.get("EDGEPACK_CLEAN_ROOT", ""))
    if not bare.name:
        bare = work / "bare"
        command = ["debootstrap", "--variant=minbase", "bookworm", bare, MIRROR]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    made = build(DOCKERFILE, HERE, bare, work)
    # As an engine writes it: the container's own name, and those of its neighbours.
    names = f"localhost broker {HOST} {socket.gethostname()}"
    (made.root / "etc/hosts").write_text(f"127.0.0.1 {names}\n::1 localhost\n")
    return made


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Container]]:
    """Containers that are stopped in the end."""
    found: list[Container] = []
    yield found
    for container in reversed(found):
        if container.process is not None and container.process.poll() is None:
            container.stop()


def healthy(container: Container, words: list[str], log: Path) -> None:
    def passes() -> bool:
        assert container.process is not None
        assert container.process.poll() is None, log.read_text()
        return container.run(*words).returncode == 0

    wait("its health check to pass", passes, 120)


@pytest.mark.clean_root
def test_the_image_runs_by_itself(image: Image, started: list[Container], tmp_path: Path) -> None:
    log, container = tmp_path / "log", Container(image, tmp_path / "data")
    container.start(log)
    started.append(container)
    healthy(container, image.healthcheck, log)
    assert "epf_" not in log.read_text(), "an engine keeps what it prints"
    shown = container.run(
        "edgepack", "fleet", "tokens", "show", "--data", "/data", "--role", "admin"
    )
    assert shown.stdout.startswith("epf_"), shown.stderr
    assert container.run("id", "-u").stdout == "10001\n"
    assert container.run("sh", "-c", "echo x > /opt/x").returncode != 0, "the root can be written"
    made = container.run("edgepack", "fleet", "groups", "create", "lab", "--data", "/data")
    assert made.returncode == 0, made.stderr
    assert container.stop() == 0, log.read_text()
    assert container.volume.stat().st_uid == 10001
    again = Container(image, tmp_path / "data")
    again.start(log)
    started.append(again)
    healthy(again, image.healthcheck, log)
    listed = again.run("edgepack", "fleet", "groups", "list", "--data", "/data")
    assert "lab" in listed.stdout, listed.stderr


@pytest.mark.clean_root
def test_compose_runs_broker_and_fleet_apart(
    image: Image, started: list[Container], tmp_path: Path
) -> None:
    services: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]

    def words(name: str) -> list[str]:
        text = [
            word.partition(":?")[0] + "}" * (":?" in word) for word in services[name]["command"]
        ]
        return [filled(word, {"EDGEPACK_HOST": HOST}) for word in text]

    def check(name: str) -> list[str]:
        kind, *command = services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return [str(word) for word in command]

    log = tmp_path / "log"
    broker = Container(image, tmp_path / "data", words("broker"))
    broker.start(log)
    started.append(broker)
    healthy(broker, check("broker"), log)
    fleet = Container(image, tmp_path / "data", words("fleet"), broker)
    fleet.start(log)
    started.append(fleet)
    healthy(fleet, check("fleet"), log)
    ask = ("--data", "/data", "--json")
    assert fleet.run("edgepack", "fleet", "groups", "create", "lab", *ask).returncode == 0
    token = fleet.run("edgepack", "fleet", "tokens", "create", "--group", "lab", *ask)
    assert token.returncode == 0, token.stderr
    broker.stop()
    wait("the fleet to miss its broker", lambda: fleet.run(*check("fleet")).returncode == 8, 60)
    assert fleet.stop() == 0, log.read_text()


@pytest.mark.clean_root
def test_the_units_run_under_a_real_systemd(image: Image, tmp_path: Path) -> None:
    """What hardening takes away is not missed, and the fleet reaches its broker through it."""
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", image.root, root], check=True)
    machine = Image(root)
    machine.run(
        "apt-get update && apt-get install -y --no-install-recommends systemd-sysv dbus", {}
    )
    printed = ["service", "print", "--host", HOST, "--program", "/opt/edgepack/bin/edgepack"]
    subprocess.run([BIN / "edgepack", "fleet", *printed, "--into", root], check=True)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    for unit in ("edgepack-broker.service", "edgepack-fleet.service"):
        (wants / unit).symlink_to(f"../{unit}")
    with booted(root, tmp_path / "console.log", "--private-network") as running:
        program = ("/opt/edgepack/bin/edgepack", "fleet")
        data = ("--data", "/var/lib/edgepack-fleet")

        def works() -> bool:
            return running.run(*program, "health", *data, check=False).strip() == "ok"

        wait("the fleet to work", works, 120)
        for unit in ("edgepack-broker", "edgepack-fleet"):
            assert shown(running, unit, "ActiveState") == "active"
            assert shown(running, unit, "NRestarts") == "0"
            facts = status(running, shown(running, unit, "MainPID"))
            assert facts["Uid"].split()[0] != "0"
            assert facts["CapBnd"] == "0" * 16
            assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        # The fleet sees the broker and may tell it to read a new certificate.
        pid = shown(running, "edgepack-broker", "MainPID")
        told = running.run(
            "setpriv", "--reuid=edgepack-fleet", "--regid=edgepack-fleet", "--clear-groups",
            "/opt/edgepack/bin/python", "-c",
            "from pathlib import Path; from edgepack_fleet.adapters.broker import reload; "
            "print(reload(Path('/var/lib/edgepack-fleet')))",
        )  # fmt: skip
        assert told.strip() == "True"
        assert shown(running, "edgepack-broker", "MainPID") == pid
        running.run("systemctl", "kill", "--signal=KILL", "edgepack-broker")
        wait("another broker", lambda: shown(running, "edgepack-broker", "NRestarts") == "1", 60)
        wait("the fleet to find it", works, 120)
        assert shown(running, "edgepack-fleet", "NRestarts") == "0"


def shown(machine: Machine, unit: str, name: str) -> str:
    return machine.run("systemctl", "show", "-P", name, unit).strip()


def status(machine: Machine, pid: str) -> dict[str, str]:
    lines = machine.run("cat", f"/proc/{pid}/status").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
