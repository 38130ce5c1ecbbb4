"""Workers of one fleet as processes, and devices that go on whatever ends in the middle."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgepack import messages, topics
from edgepack_fleet.adapters.broker import Address
from fleet_rig import EDGEPACK, Identity, environment, free_port, listens, wait

RESEND_S = 0.5


@dataclass
class Worker:
    """A process of `edgepack fleet serve` on a shared database."""

    data: Path
    database: str
    broker: Address
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.data.parent / f"worker-{self.port}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [EDGEPACK, "fleet", "serve", "--data", self.data, "--database", self.database,
                 "--listen", f"127.0.0.1:{self.port}", "--device-listen", "127.0.0.1:0",
                 "--broker", f"mqtts://{self.broker}", "--keep-raw", "1"],
                stdout=log, stderr=log, env=environment(self.data.parent),
            )  # fmt: skip

    def ready(self) -> None:
        wait(f"worker {self.port} to listen", lambda: self.alive() and listens(self.port), 60)

    def alive(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        return True

    def leads(self) -> bool:
        """Return whether it said last that it leads."""
        text = self.log.read_text()
        return text.rfind("is the leader") > text.rfind("is not the leader")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


@contextlib.contextmanager
def workers(count: int, data: Path, database: str, broker: Address) -> Iterator[list[Worker]]:
    """Yield COUNT workers that listen."""
    found = [Worker(data, database, broker) for _ in range(count)]
    try:
        for worker in found:
            worker.start()
        for worker in found:
            worker.ready()
        yield found
    finally:
        for worker in found:
            if worker.process is not None:
                worker.kill()


class Steady:
    """A device that reports and updates without end: it says again what nobody acknowledged."""

    def __init__(self, identity: Identity, address: Address, boot: str = "b") -> None:
        self.name, self.boot, self._address = identity.name, boot, address
        self.waiting: dict[int, messages.Telemetry] = {}
        """Rows that the fleet has not acknowledged."""
        self.said, self.done, self.bundle = 0, 0, "none@0"
        """Rows so far; updates that the fleet knows to be over; what runs."""
        self._job: messages.Job | None = None
        self._tokens = 0
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self.name)
        self._client.tls_set_context(identity.tls())
        self._client.reconnect_delay_set(1, 1)
        will = messages.encode(messages.Conn(online=False, conn=boot))
        self._client.will_set(topics.up(self.name, "conn"), will, 1, retain=True)
        self._client.on_connect = self._connected
        self._client.on_message = self._heard
        self._thread = threading.Thread(target=self._run, name=f"steady-{self.name}")

    def start(self) -> None:
        self._client.connect_async(self._address.host, self._address.port)
        self._client.loop_start()
        self._thread.start()

    def pause(self) -> None:
        """Say nothing more by itself."""
        self._stopping.set()
        self._thread.join()

    def stop(self) -> None:
        self.pause()
        self._client.disconnect()
        self._client.loop_stop()

    def _run(self) -> None:
        while not self._stopping.wait(RESEND_S):
            if self._client.is_connected():
                self._report()
                self._ask()

    def _report(self) -> None:
        with self._lock:
            row = messages.Telemetry(
                boot=self.boot, seq=self.said, start=0.0, end=1.0, inferences=3
            )
            self.waiting[self.said] = row
            self.said += 1
            rows = list(self.waiting.values())[:200]
        self._say("tele", messages.encode_batch(rows))

    def settle(self) -> None:
        """Say again what is not acknowledged; nothing new."""
        with self._lock:
            rows = list(self.waiting.values())[:200]
        if rows and self._client.is_connected():
            self._say("tele", messages.encode_batch(rows))

    def _ask(self) -> None:
        self._tokens += 1
        token = f"t{self._tokens}"
        if (job := self._job) is None:
            self._say("job/get", messages.JobGet(token=token))
            return
        status: Any = "IN_PROGRESS" if job.status == "QUEUED" else "SUCCEEDED"
        update = messages.JobUpdate(token=token, job=job.job, version=job.version, status=status)
        self._say("job/update", update)

    def _say(self, kind: str, message: Any, *, retain: bool = False) -> None:
        payload = message if isinstance(message, bytes) else msgspec.json.encode(message)
        self._client.publish(topics.up(self.name, kind), payload, 1, retain)

    def _connected(self, client: paho.Client, *_: Any) -> None:
        client.subscribe(topics.device_filter(self.name), 1)
        birth = messages.Conn(online=True, conn=self.boot, boot=self.boot)
        self._say("conn", birth, retain=True)

    def _heard(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        kind = message.topic.removeprefix(topics.down(self.name, ""))
        if kind == "ack":
            self._release(messages.decode(message.payload, messages.Ack))
        elif kind in {"job/get/accepted", "job/update/accepted"}:
            self._know(messages.decode(message.payload, messages.JobReply).job)
        elif kind == "job/update/rejected":
            self._job = None  # ask anew

    def _release(self, ack: messages.Ack) -> None:
        with self._lock:
            for seq in [s for s in self.waiting if s <= ack.upto]:
                if not any(first <= seq <= last for first, last in ack.missing):
                    del self.waiting[seq]

    def _know(self, job: messages.Job | None) -> None:
        if job is not None and job.status not in {"QUEUED", "IN_PROGRESS"}:
            self.bundle, job = job.release, None
            self.done += 1
        self._job = job
