"""A process that we look after: started, listened to, ended. Decides nothing.

All its output goes line by line to whoever keeps the log. Where `setpriv` is (util-linux), the
process is told to end when we are killed, so that nothing is left that holds our ports.
"""

import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Child"]

LAST_WORDS = 5


class Child:
    """A running process. Make it in the main thread: its end is bound to that of the thread.

    Args:
        name: What it is called in the log.
        command: Program and arguments.
        tell: Called with the name and each line that it writes.
        ended: Called with the child when it has ended.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        tell: Callable[[str, str], None],
        ended: Callable[["Child"], None],
    ) -> None:
        self.name, self.since = name, time.monotonic()
        self._tell, self._ended = tell, ended
        self._last: deque[str] = deque(maxlen=LAST_WORDS)
        self._process = subprocess.Popen(
            [*_with_us(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C is for us: we stop our children in order.
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, name=f"log-{name}", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def last_words(self) -> str:
        """The last lines that it wrote, joined."""
        return " | ".join(self._last)

    def stop(self, grace_s: float) -> None:
        """End it: politely, and after GRACE_S seconds for good."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(grace_s)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._last.append(line.strip())
                # A log that nobody takes any more is no reason to stop a fleet.
                with contextlib.suppress(OSError):
                    self._tell(self.name, line.rstrip("\n"))
        self._process.wait()
        self._ended(self)


def _with_us() -> list[str]:
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
