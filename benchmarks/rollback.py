"""How long the way back takes on a device under load, and how many requests it costs.

    python benchmarks/rollback.py [--times 20]

A real fleet, broker and agent; clients ask over TCP and the unix socket, on kept and on new
connections. A new model is on probation and answers alone; then a person stops the update. Timed:
the command until the answer to it, and until the first answer of the model before.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from agent_rig import site  # noqa: E402
from edgepack.errors import EdgepackError  # noqa: E402
from fleet_rig import wait  # noqa: E402
from hammer import Hammer  # noqa: E402


def measure(times: int) -> dict[str, object]:
    answers, commands, asked = [], [], 0
    with tempfile.TemporaryDirectory() as name, site(Path(name)) as place:
        device = place.running_1()
        place.publish("3.0.0")
        good = device.status()["digest"]
        with Hammer(device.api, 0.005) as hammer:
            for _ in range(times):
                rollout = place.roll_out("3.0.0", probation_s=600)
                wait("probation", lambda: device.status().get("phase") == "probation", 60)
                alone(hammer, good)
                began = time.monotonic()
                hammer.first.clear()
                with contextlib.suppress(EdgepackError):
                    device.ask("rollback")
                commands.append(time.monotonic() - began)
                hammer.all_by(good)
                answers.append(hammer.first[good] - began)
                place.ended(rollout)
            asked = hammer.total
        lost = len(hammer.failures)
    return {
        "times": times,
        "requests": asked,
        "lost": lost,
        "first_answer_ms": spread(answers),
        "command_ms": spread(commands),
    }


def alone(hammer: Hammer, old: str) -> None:
    """Return when the model OLD answers no more."""
    while True:
        hammer.forget()
        if old not in hammer.wait_for(30):
            return


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * s for s in seconds)
    worst = ordered[-1]
    return {"p50": round(statistics.median(ordered), 1), "max": round(worst, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    print(json.dumps(measure(parser.parse_args().times), indent=2))
