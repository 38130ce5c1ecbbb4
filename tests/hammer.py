"""Clients that ask a device without a pause, and remember what was answered and what was not."""

import threading
import time
from collections import Counter
from typing import Any, Self

from digits import digits_data
from slots import Client

TEST = digits_data()[1].head(8)


class Hammer:
    """Threads that ask, half on kept connections, half on a new one each time.

    Args:
        addresses: Of the API; four threads for each.
        pause_s: Between an answer and the next question of a thread.
    """

    def __init__(self, addresses: list[Any], pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._digests: Counter[str] = Counter()
        self.first: dict[str, float] = {}
        """When each digest answered first, monotonic seconds; may be cleared."""
        self.total = 0
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
        for image, label in zip(TEST.inputs, TEST.labels, strict=True):
            answer, headers = client.infer(image)
            assert answer.shape == (1, 10), label
            with self._lock:
                self._digests[headers["edgepack-bundle"]] += 1
                self.total += 1
                self.first.setdefault(headers["edgepack-bundle"], time.monotonic())
            self._stop.wait(self._pause_s)
            if not keep or headers.get("connection") == "close" or self._stop.is_set():
                return
