"""A model in a fresh process of its own: loaded there, answering and measured when told.

What a process has done before changes how a model loads and how much memory it takes, so a
measurement gets a new one. It ends with its parent, whatever happens, and has no network.

    python -m edgepack_targets.fresh REQUEST FD

REQUEST is JSON: model_dir, manifest, samples (an .npz), threads, parent (a process id).
Commands are JSON lines on standard input, replies JSON lines on the file descriptor FD.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, TextIO

from edgepack import errors
from edgepack.confinement import die_with_parent, stay_offline
from edgepack.errors import EdgepackError, UnsupportedError
from edgepack.manifest import Manifest
from edgepack_targets.measure import (
    Benchmark,
    EffectiveFacts,
    Run,
    benchmark_document,
    latency,
    peak_rss_mb,
)

__all__ = ["FreshModel", "measure_bundle", "measure_runs"]

WARM_UP, FEWEST, BLOCK_MS, LARGEST_BLOCK = 5, 10, 50.0, 200
TIMEOUT_S = 600.0
SECRET = "EDGEPACK_"  # noqa: S105  what starts so in the environment is ours and not its business
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONHASHSEED": "0"}


class FreshModel:
    """A model that was loaded, and asked once, in a process of its own; a context manager.

    Args:
        home: Directory with `model/` and `manifest.json`, as a bundle is extracted.
        samples: An .npz that fits the model; it is fed in turn.
        threads: None: the runtime's choice.

    Attributes:
        load_ms: Time to load the model.
        first_ms: Time of the first inference.
        effective: What the session runs with.

    Raises:
        EdgepackError: what the target refused, with its own words.
        UnsupportedError: the process died.
    """

    def __init__(self, home: Path, samples: Path, *, threads: int | None = None) -> None:
        request = {
            "model_dir": str(home / "model"),
            "manifest": str(home / "manifest.json"),
            "samples": str(samples),
            "threads": threads,
            "parent": os.getpid(),
        }
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            reader, writer = os.pipe()
            self._replies = stack.enter_context(os.fdopen(reader))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, json.dumps(request), str(writer)],
                    env=_environment(), stdin=subprocess.PIPE, text=True,
                    stdout=self._log, stderr=self._log, pass_fds=(writer,), start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(writer)
            stack.callback(self._end)
            said = self._reply()
            self._stack = stack.pop_all()
        self.load_ms, self.first_ms = float(said["load_ms"]), float(said["first_ms"])
        self.effective: EffectiveFacts = said["effective"]

    def times(self, count: int) -> list[float]:
        """Return the milliseconds of COUNT inferences, one sample each."""
        return list(self._ask(do="time", count=count)["times"])

    def answer(self, samples: Path, out: Path) -> None:
        """Write the outputs for SAMPLES, by public name, to OUT; both are .npz files."""
        self._ask(do="answer", samples=str(samples), out=str(out))

    def peak_rss_mb(self) -> float:
        """Return the largest memory that the process had so far, in 10^6 bytes."""
        return float(self._ask(do="peak")["peak_rss_mb"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        stdin = self._process.stdin
        # A process that died in between is told about by the missing reply.
        with suppress(BrokenPipeError):
            if stdin:
                stdin.write(json.dumps(command) + "\n")
                stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        ready, _, _ = select.select([self._replies], [], [], TIMEOUT_S)
        line = self._replies.readline() if ready else ""
        if not line:
            raise self._died(late=not ready)
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise _rebuild(said["error"])
        return said

    def _died(self, *, late: bool) -> EdgepackError:
        self._end()
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return UnsupportedError(
            f"the model did not answer within {TIMEOUT_S:g} s" if late else f"the model {how}",
            why=" | ".join(line.strip() for line in tail),
            reason="model_crashed",
        )

    def _end(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()


def measure_bundle(
    home: Path,
    manifest: Manifest,
    digest: str,
    *,
    runs: int,
    seconds: float,
    threads: int | None,
    say: Callable[[str], None],
) -> Benchmark:
    """Measure the bundle that is extracted to HOME, with its golden inputs, as `measure_runs` does.

    Raises:
        IntegrityError: the golden inputs are not what MANIFEST says.
        EdgepackError: see `FreshModel`.
    """
    from edgepack_targets.pipeline.npz import read_npz

    golden, samples = home / manifest.golden.inputs, manifest.golden.samples
    # The process trusts what it is given, and a bundle need not come from a friend.
    read_npz(golden, manifest.inputs, what="golden", max_samples=samples)
    done, effective = measure_runs(
        home, golden, runs=runs, seconds=seconds, threads=threads, say=say
    )
    return benchmark_document(manifest, digest, done, effective, threads)


def measure_runs(
    home: Path,
    samples: Path,
    *,
    runs: int = 3,
    seconds: float = 1.0,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Run], EffectiveFacts]:
    """Measure the model in HOME in RUNS fresh processes, one after the other.

    Args:
        home: Directory with `model/` and `manifest.json`, as a bundle is extracted.
        samples: An .npz that fits the model.
        runs: How many processes.
        seconds: How long each one infers, after a warm-up.
        threads: None: the runtime's choice.
        say: Called with a line of progress.

    Returns:
        The runs, and what the sessions ran with.

    Raises:
        EdgepackError: see `FreshModel`.
    """
    done: list[Run] = []
    for index in range(runs):
        say(f"run {index + 1} of {runs}")
        with FreshModel(home, samples, threads=threads) as model:
            times = _spend(model, seconds)
            done.append(
                {
                    "load_ms": model.load_ms,
                    "first_ms": model.first_ms,
                    "latency_ms": latency(times),
                    "throughput_per_s": 1e3 * len(times) / sum(times),
                    "peak_rss_mb": model.peak_rss_mb(),
                    "inferences": len(times),
                }
            )
            effective = model.effective
    return done, effective


def _spend(model: FreshModel, seconds: float) -> list[float]:
    """Return the times of all inferences of SECONDS, but of a few at least."""
    warm = model.times(WARM_UP)
    block = max(1, min(LARGEST_BLOCK, int(BLOCK_MS / max(min(warm), 1e-3))))
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) < FEWEST or time.monotonic() < end:
        times += model.times(block)
    return times


def _rebuild(said: dict[str, str]) -> EdgepackError:
    kind = getattr(errors, said["class"], UnsupportedError)
    error: EdgepackError = kind(
        said["what"], why=said["why"], fix=said["fix"], reason=said["reason"]
    )
    return error


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SECRET)}
    return kept | QUIET


# -- inside the process


def main() -> NoReturn:
    """Load the model of the request, then do what each line on standard input says."""
    request, descriptor = json.loads(sys.argv[1]), int(sys.argv[2])
    die_with_parent(request["parent"])
    os.set_inheritable(descriptor, False)
    stay_offline()
    with os.fdopen(descriptor, "w") as replies:
        try:
            _serve(request, replies)
        except EdgepackError as error:
            facts = {"what": error.what, "why": error.why, "fix": error.fix}
            facts |= {"class": type(error).__name__, "reason": error.reason}
            _tell(replies, error=facts)
    # Some runtimes crash while their threads are torn down; all is told by now.
    os._exit(0)


def _tell(replies: TextIO, **facts: Any) -> None:
    replies.write(json.dumps(facts) + "\n")
    replies.flush()


def _serve(request: dict[str, Any], replies: TextIO) -> None:
    from edgepack.manifest import read_manifest
    from edgepack_targets import registry
    from edgepack_targets.pipeline.feed import cut_samples
    from edgepack_targets.pipeline.npz import read_arrays

    manifest = read_manifest(Path(request["manifest"]).read_bytes())
    samples = list(cut_samples(manifest, read_arrays(Path(request["samples"]))))
    target = registry.find(manifest.target.runtime)
    begin = time.perf_counter()
    session = target.load(Path(request["model_dir"]), manifest, threads=request["threads"])
    loaded = time.perf_counter()
    session.run(samples[0])
    first = time.perf_counter()
    times = {"load_ms": (loaded - begin) * 1e3, "first_ms": (first - loaded) * 1e3}
    _tell(replies, **times, effective=asdict(session.effective))
    rounds = cycle(samples)

    def timed() -> float:
        sample = next(rounds)
        start = time.perf_counter()
        session.run(sample)
        return (time.perf_counter() - start) * 1e3

    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "time":
                _tell(replies, times=[timed() for _ in range(command["count"])])
            case "answer":
                _answer(session, manifest, Path(command["samples"]), Path(command["out"]))
                _tell(replies)
            case "peak":
                _tell(replies, peak_rss_mb=peak_rss_mb())


def _answer(session: Any, manifest: Any, samples: Path, out: Path) -> None:
    import numpy as np

    from edgepack_targets.pipeline.feed import run_samples
    from edgepack_targets.pipeline.npz import read_arrays

    given: dict[str, Any] = run_samples(session, manifest, read_arrays(samples))
    with out.open("wb") as file:
        np.savez(file, allow_pickle=False, **given)


if __name__ == "__main__":
    main()
