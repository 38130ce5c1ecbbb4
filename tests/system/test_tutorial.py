"""The tutorial's own commands, run in order as they stand there."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from system.harness import BIN, clean_env, free_port, wait

pytestmark = [pytest.mark.mosquitto, pytest.mark.system, pytest.mark.toolchain]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
PORTS = ("8883", "8080", "8443", "9000")
FOREGROUND = (
    "edgepack fleet broker",
    "edgepack fleet serve",
    "edgepack-agent --config agent.yaml run",
)


class Terminal:
    """Runs the tutorial's lines in one directory, with free ports in place of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = clean_env(home) | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        self.env["EDGEPACK_PASSPHRASE"] = "a passphrase"
        self.ports = {port: str(free_port()) for port in PORTS}
        self.running: list[subprocess.Popen[bytes]] = []
        self.token = ""

    def text(self, text: str) -> str:
        for told, real in self.ports.items():
            text = text.replace(f":{told}", f":{real}")
        return text.replace("ep1.…", self.token)

    def line(self, line: str) -> None:
        if line.startswith(FOREGROUND):
            self.start(line)
            return
        done = subprocess.run(
            ["bash", "-c", f"{self.text(line)}\nenv -0 > .env"],
            cwd=self.home, env=self.env, capture_output=True, text=True, check=False, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        names = ("EDGEPACK_FLEET_URL", "EDGEPACK_FLEET_TOKEN")
        said = dict(e.split("=", 1) for e in (self.home / ".env").read_text().split("\0") if e)
        self.env |= {name: said[name] for name in names if name in said}
        found = re.search(r"ep1\.\S+", done.stdout)
        self.token = found[0] if found else self.token

    def start(self, line: str) -> None:
        words = self.text(line).split()
        with (self.home / f"{len(self.running)}.log").open("wb") as log:
            process = subprocess.Popen(words, cwd=self.home, env=self.env, stdout=log, stderr=log)
        self.running.append(process)
        wait(f"`{line}` to be ready", lambda: self.ready(line))

    def ready(self, line: str) -> bool:
        if "fleet serve" in line:
            return (self.home / "fleet" / "endpoints.json").exists()
        if "fleet broker" in line:
            return (self.home / "fleet" / "broker" / "mosquitto.conf").exists()
        return (self.home / "device" / "run" / "control.sock").exists()

    def close(self) -> None:
        for process in reversed(self.running):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.running):
            process.wait(20)


def sections() -> list[tuple[str, str]]:
    """Return (language, text) of every code block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(600)
def test_the_tutorial_works_as_written(tmp_path: Path, keras_home: Path) -> None:
    for name in ("calibration.npz", "evaluate.npz", "exam.npz"):
        shutil.copy(keras_home / name, tmp_path / name)
    shutil.copy(keras_home / "model.keras", tmp_path / "digits.keras")
    shutil.copy(keras_home / "x.npz", tmp_path / "x.npz")
    terminal = Terminal(tmp_path)
    blocks = sections()
    config = next(text for language, text in blocks if language == "yaml")
    (tmp_path / "agent.yaml").write_text(terminal.text(config))
    try:
        for language, text in blocks:
            lines = text.replace("\\\n", " ").splitlines() if language == "sh" else []
            for line in lines:
                if not line.startswith(("python3", "pip", "sudo")):
                    terminal.line(line)
                if "rollouts create" in line:
                    wait("the device to run it", lambda: serves(terminal, "1.0.0"))
    finally:
        terminal.close()


def serves(terminal: Terminal, version: str) -> bool:
    url = terminal.text("http://127.0.0.1:9000/v2/models/digits")
    token = terminal.home / "device" / "data" / "api-token"
    bearer = f"Authorization: Bearer {token.read_text().strip()}" if token.exists() else ""
    words = ["curl", "-s", "-H", bearer, url]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    time.sleep(0.2)
    return version in done.stdout
