"""Clients that ask a device without a pause, and remember what was answered and what was not."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np

from digits import digits_data
from slots import Client

TEST = digits_data()[1].head(8)


class Beside:
    """Threads beside a test, each at its WORK until `_stop` is set."""

    def __init__(self, work: Sequence[Callable[[], None]]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each) for each in work]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


class Hammer(Beside):
    """Threads that ask, half on kept connections, half on a new one each time.

    Args:
        addresses: Of the API.
        pause_s: Between an answer and the next question of a thread.
        keeps: For each thread of an address, whether it keeps its connections.
    """

    def __init__(
        self,
        addresses: Sequence[Any],
        pause_s: float = 0.0,
        keeps: Sequence[bool] = (True, True, False, False),
    ) -> None:
        super().__init__(
            [partial(self._ask, address, keep) for address in addresses for keep in keeps]
        )
        self._pause_s = pause_s
        self._digests: Counter[str] = Counter()
        self.first: dict[str, float] = {}
        """When each digest answered first, monotonic seconds; may be cleared."""
        self.total = 0
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()

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

    def all_by(self, digest: str, count: int = 20) -> None:
        """Return when the last COUNT answers and all later ones are of DIGEST."""
        deadline = time.monotonic() + 20
        while True:
            self.forget()
            if set(self.wait_for(count)) == {digest}:
                return
            assert time.monotonic() < deadline, self.answered()

    def _ask(self, address: Any, keep: bool) -> None:
        try:
            while not self._stop.is_set():
                with Client(address) as client:
                    self._converse(client, keep)
        except BaseException as error:
            self.failures.append(error)

    def _converse(self, client: Client, keep: bool) -> None:
        for place in range(len(TEST.inputs)):
            goes_on = self._one(client, place)
            self._stop.wait(self._pause_s)
            if not keep or not goes_on or self._stop.is_set():
                return

    def _one(self, client: Client, place: int) -> bool:
        """Ask for the picture at PLACE; return whether the connection goes on."""
        answer, headers = client.infer(TEST.inputs[place])
        digest = headers["edgepack-bundle"]
        self._judge(place, answer, digest)
        with self._lock:
            self._digests[digest] += 1
            self.total += 1
            self.first.setdefault(digest, time.monotonic())
        return headers.get("connection") != "close"

    def _judge(self, place: int, answer: np.ndarray, _digest: str) -> None:
        """Fail if ANSWER cannot be one for the picture at PLACE."""
        assert answer.shape == (1, 10), TEST.labels[place]
