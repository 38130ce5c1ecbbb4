"""A fleet of the simulation's own: broker and service as processes, in one directory.

The broker has a second listener, for simulated devices only: a socket in a directory that nobody
but this user can enter. On it a device is who it says it is, without TLS, because thousands of
handshakes would measure nothing but handshakes. The configuration of a real fleet has no such
listener, and the socket is gone with the simulation.
"""

import json
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgepack.durable import write_file
from edgepack.errors import EdgepackError, UnreachableError
from edgepack_fleet.adapters import broker
from edgepack_fleet.adapters.lock import own
from edgepack_fleet.adapters.pki import Pki

__all__ = ["LocalFleet"]

READY_S = 60.0
STOP_S = 20.0
ANYWHERE = broker.Address("127.0.0.1", 0)


@dataclass(slots=True)
class LocalFleet:
    """The processes, from `start` to `stop`.

    Args:
        home: Everything is below it.
    """

    home: Path
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def data(self) -> Path:
        """The fleet's data directory."""
        return self.home / "fleet"

    @property
    def socket(self) -> Path:
        """Where simulated devices connect."""
        return self.data / "broker" / "simulated.sock"

    def start(self) -> None:
        """Start broker and fleet.

        Raises:
            UnsupportedError: mosquitto is not installed.
            UnreachableError: one of them does not come up.
        """
        mosquitto = broker.find_mosquitto()
        data = own(self.data)
        files = broker.prepare(data, Pki(data / "pki"), ANYWHERE)
        config = files.directory / "simulated.conf"
        acl = files.directory / "simulated-acl"
        write_file(acl, broker.devices_acl().encode(), mode=0o600)
        plain = _with_socket(files.config.read_text(), self.socket, acl)
        write_file(config, plain.encode(), mode=0o600)
        self.socket.unlink(missing_ok=True)
        self._start("broker", mosquitto, "-c", str(config))
        self._wait("the broker", self.socket.exists)
        http, devices = (broker.free_port("127.0.0.1") for _ in range(2))
        endpoints = data / "endpoints.json"
        endpoints.unlink(missing_ok=True)
        self._start(
            "fleet", _program(), "fleet", "serve", "--data", str(data),
            "--listen", f"127.0.0.1:{http}", "--device-listen", f"127.0.0.1:{devices}",
            "--max-per-s", "0",
        )  # fmt: skip
        self._wait("the fleet", endpoints.exists)

    def pids(self) -> list[int]:
        """Return the ids of broker and fleet, in this order."""
        return [process.pid for process in self._running]

    def endpoints(self) -> dict[str, str]:
        """Return where the fleet is."""
        return dict(json.loads((self.data / "endpoints.json").read_text()))

    @property
    def publisher(self) -> Path:
        """Home of the keys that were made for this fleet, once something is published."""
        return self.home / "publisher"

    def publish(self, bundles: Sequence[Path], *options: str) -> None:
        """Publish BUNDLES with keys made for this fleet, with OPTIONS of `edgepack repo publish`.

        Raises:
            EdgepackError: `edgepack repo` refused.
        """
        url, home, env = self.endpoints()["http"], str(self.publisher), self._operator()
        if not self.publisher.exists():
            _call("repo", "init", home, "--fleet", url, "--no-passphrase", env=env)
        names = map(str, bundles)
        _call("repo", "publish", *names, "--home", home, "--repo", url, *options, env=env)

    def stop(self) -> None:
        """End the processes, the fleet first."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _operator(self) -> dict[str, str]:
        from edgepack_fleet.access import bootstrap_token, fleet_secret

        token = bootstrap_token(fleet_secret(self.data, create=False), "operator")
        return dict(os.environ) | {"EDGEPACK_FLEET_TOKEN": token, "NO_COLOR": "1"}

    def _start(self, label: str, *command: str) -> None:
        with (self.home / f"{label}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._running.append(process)

    def _wait(self, what: str, ready: Callable[[], Any]) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            if self._running[-1].poll() is not None or time.monotonic() > deadline:
                raise UnreachableError(
                    f"{what} of the simulation does not come up",
                    why=f"see the logs in {self.home}",
                    reason="not_ready",
                )
            time.sleep(0.05)


def _with_socket(config: str, path: Path, acl: Path) -> str:
    """Return the broker's CONFIG with a listener for simulated devices at PATH."""
    own_rules = config.replace("per_listener_settings false", "per_listener_settings true")
    return f"""{own_rules}
# Simulated devices, of this user only.
listener 0 {path}
allow_anonymous true
acl_file {acl}
use_username_as_clientid true
"""


def _program() -> str:
    """Return the path of `edgepack` in this very environment."""
    return str(Path(sysconfig.get_path("scripts")) / "edgepack")


def _call(*words: str, env: dict[str, str]) -> None:
    command = [_program(), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgepackError(
            f"`edgepack {' '.join(words[:2])}` ended with exit code {done.returncode}",
            why=" | ".join(done.stderr.strip().splitlines()[-4:]),
            reason="publish_failed",
        )
