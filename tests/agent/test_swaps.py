"""Requests while models are swapped and runners killed: each is answered whole, by one model."""

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_rig import Site, site
from fleet_rig import wait
from hammer import TEST, Hammer
from slots import Client, Heard, digits_slot, listen, raw


class Askers(Hammer):
    """Clients that go on after a failure, and hold answers against truth.

    Args:
        addresses: Of the API; two threads for each.
        truth: By digest, what that model says of each picture.
    """

    def __init__(self, addresses: list[Any], truth: dict[str, np.ndarray]) -> None:
        super().__init__(addresses, keeps=(True, False))
        self._truth, self._begun = truth, threading.local()
        self.wrong: list[str] = []
        self.failed: list[tuple[float, BaseException]] = []
        """When the request was begun, and what became of it."""

    def _ask(self, address: Any, keep: bool) -> None:
        while not self._stop.is_set():
            self._begun.at = time.monotonic()
            try:
                with Client(address) as client:
                    self._converse(client, keep)
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failed.append((self._begun.at, error))

    def _one(self, client: Client, place: int) -> bool:
        self._begun.at = time.monotonic()
        return super()._one(client, place)

    def _judge(self, place: int, answer: np.ndarray, digest: str) -> None:
        if not np.array_equal(answer[0], self._truth[digest][place]):
            self.wrong.append(digest)


def truth_of(slot: Path) -> np.ndarray:
    model = slot / "model" / "model.onnx"
    return np.concatenate([raw(model, image) for image in TEST.inputs])


@pytest.mark.parametrize(
    ("swaps", "requests"), [(3, 300), pytest.param(20, 10_000, marks=pytest.mark.soak)]
)
def test_every_answer_is_that_of_the_model_it_names(
    tmp_path: Path, swaps: int, requests: int
) -> None:
    slots = [digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1", 0.3)]
    truth: dict[str, np.ndarray] = {}
    with ExitStack() as stack:
        sockets = [stack.enter_context(listen()), stack.enter_context(listen(tmp_path / "s"))]
        old = stack.enter_context(Heard(slots[0], sockets))
        for slot in slots:
            with Heard(slot) as probe:
                truth[probe.wait("loaded")["digest"]] = truth_of(slot)
        old.accepting()
        with Askers([sock.getsockname() for sock in sockets], truth) as askers:
            for number in range(swaps):
                new = stack.enter_context(Heard(slots[(number + 1) % 2], sockets))
                new.wait("loaded")
                due = (number + 1) * requests // swaps
                wait("requests", lambda due=due: askers.total >= due, 120)  # type: ignore[misc]
                new.tell("accept")
                new.wait("accepting")
                old.tell("drain")
                old.wait("drained")
                old.runner.stop(5)
                old = new
        assert askers.failed == []
        assert askers.wrong == []
        assert askers.total >= requests
        assert askers.answered().keys() == truth.keys(), askers.answered()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("kills", "apart_s"), [(2, 0.0), pytest.param(20, 5.5, marks=pytest.mark.soak)]
)
def test_a_killed_runner_costs_the_requests_under_way_and_no_other(
    place: Site, kills: int, apart_s: float
) -> None:
    """Whoever comes after it waits in the queue of the socket, which the agent keeps open.

    One that has lived for ten times its pause, 5 s, is started again with the first pause.
    """
    device = place.running_1()
    status = device.status()
    truth = {status["digest"]: truth_of(device.data / "slots" / status["slot"]["slot"])}
    killed: list[float] = []
    back: list[float] = []
    """Seconds from a kill to fifty answers of the next runner."""
    with Askers([("127.0.0.1", device.port)], truth) as askers:
        for _ in range(kills):
            before = askers.total
            wait("answers", lambda before=before: askers.total > before + 50, 60)  # type: ignore[misc]
            back.append(time.monotonic() - killed[-1] if killed else 0.0)
            time.sleep(apart_s)
            pid = device.status()["runner"]["pid"]
            os.kill(pid, signal.SIGKILL)
            # Until the kernel has taken it apart, its connections still take what is sent.
            wait("its end", lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
            killed.append(time.monotonic())
        before = askers.total
        wait("answers", lambda: askers.total > before + 50, 60)
    assert askers.wrong == []
    # What failed was under way when its runner died; what was begun after that was answered.
    for begun, error in askers.failed:
        assert any(begun <= moment for moment in killed), error
        assert isinstance(error, OSError | http.client.HTTPException), error
    assert len(askers.failed) <= 2 * kills, "one for each client and kill"
    print(f"{kills} kills, {askers.total} answers, {len(askers.failed)} lost; {sorted(back)}")
