"""Run a Python script with a wall clock that a file sets: `jumping_clock.py FILE SCRIPT ARG...`.

FILE holds the seconds by which the clock is off. Only what asks Python for the time is fooled,
not the C library: TLS still knows what time it is, and monotonic clocks go on.
"""

import datetime as dt
import runpy
import sys
import time
from pathlib import Path

_file = Path(sys.argv[1])
_time = time.time


def off() -> float:
    return float(_file.read_text())


class Jumping(dt.datetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> "Jumping":
        return cls.fromtimestamp(_time() + off(), tz)


if __name__ == "__main__":
    time.time = lambda: _time() + off()
    dt.datetime = Jumping  # type: ignore[misc]
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
