"""Two runners on the same listening sockets: requests pass from one to the other, none is lost."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

from digits import digits_data
from slots import Client, Heard, digits_slot, listen

TEST = digits_data()[1].head(8)


class Hammer:
    """Threads that ask without a pause: half on kept connections, half on a new one each time."""

    def __init__(self, addresses: list[Any]) -> None:
        self._digests: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(address, keep))
            for address in addresses
            for keep in (True, True, False, False)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def forget(self) -> None:
        with self._lock:
            self._digests.clear()

    def answered(self) -> Counter[str]:
        """Return the number of answers by digest since the last `forget`."""
        with self._lock:
            return Counter(self._digests)

    def wait_for(self, count: int) -> Counter[str]:
        """Return `answered` once there are COUNT of them."""
        deadline = time.monotonic() + 20
        while (found := self.answered()).total() < count:
            assert time.monotonic() < deadline, self.failures
            time.sleep(0.02)
        return found

    def _ask(self, address: Any, keep: bool) -> None:
        try:
            while not self._stop.is_set():
                with Client(address) as client:
                    self._converse(client, keep)
        except BaseException as error:
            self.failures.append(error)

    def _converse(self, client: Client, keep: bool) -> None:
        for image, label in zip(TEST.inputs, TEST.labels, strict=True):
            answer, headers = client.infer(image)
            assert answer.shape == (1, 10), label
            with self._lock:
                self._digests[headers["edgepack-bundle"]] += 1
            if not keep or headers.get("connection") == "close" or self._stop.is_set():
                return


def hand_over(old: Heard, new: Heard) -> None:
    new.tell("accept")
    new.wait("accepting")
    old.tell("drain")
    old.wait("drained")


def test_there_and_back_under_load_loses_nothing(tmp_path: Path) -> None:
    first, second = digits_slot(tmp_path / "a"), digits_slot(tmp_path / "b", "1.0.1")
    with (
        listen() as tcp,
        listen(tmp_path / "api.sock") as unix,
        Heard(first, [tcp, unix]) as old,
        Heard(second, [tcp, unix]) as new,
    ):
        digest = {old: old.wait("loaded")["digest"], new: new.wait("loaded")["digest"]}
        old.tell("accept")
        old.wait("accepting")
        with Hammer([tcp.getsockname(), unix.getsockname()]) as hammer:
            for here, there in ((old, new), (new, old), (old, new)):
                hand_over(here, there)
                hammer.forget()
                assert set(hammer.wait_for(50)) == {digest[there]}
            old.runner.stop(5)
        assert hammer.failures == []


def test_a_way_back_cuts_the_draining_short(tmp_path: Path) -> None:
    with listen() as tcp, Heard(digits_slot(tmp_path / "a"), [tcp]) as heard:
        heard.accepting()
        with Client(tcp.getsockname()) as idle:
            idle.infer(TEST.inputs[0])
            heard.tell("drain")
            heard.tell("accept")
            heard.wait("accepting")
            heard.wait("beat")
            heard.wait("beat")
            idle.infer(TEST.inputs[0])
        assert all(event["evt"] != "drained" for event in heard.past)


def test_what_nobody_took_waits_for_the_next_runner(tmp_path: Path) -> None:
    with listen() as tcp, Heard(digits_slot(tmp_path / "a"), [tcp]) as heard:
        heard.wait("loaded")
        with Client(tcp.getsockname()) as early:
            asked = threading.Thread(target=early.infer, args=(TEST.inputs[0],))
            asked.start()
            heard.wait("beat")
            assert asked.is_alive()
            heard.tell("accept")
            heard.wait("accepting")
            asked.join(10)
            assert not asked.is_alive()
