"""What would requests gain if several were computed in one call? Raw runtime calls, no server.

    python benchmarks/inference/batching.py [--rounds 40] [--models DIR]

For each runtime, the MobileNetV2 of `run.py` and a small network, both int8, are called with 1, 2,
4 and 8 pictures at once, with one thread and with all. The sizes take turns, so that a slow moment
of the machine hits all of them. OpenVINO is asked with an AsyncInferQueue as well: 8 requests in
flight, with as many streams as it likes. `same` says whether a picture's answer within a batch is
bit for bit that of the picture alone.

With `--clients`, 8 clients ask without a pause: the runner over HTTP as it is; and, in one process
without HTTP, a model at which they take turns, one that computes together what waits (micro-batches
of up to 8, nobody waits for more to come), and a session of one thread for each core.

`--models` keeps the bundles between two runs. With `--sharing`, two processes compute at once
instead, each with all threads or with its half: what `thread_share` decides between.
"""

import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import run

from edgepack.bundle import open_bundle

SIZES = (1, 2, 4, 8)
SMALL = """
import sys, keras, numpy
keras.utils.set_random_seed(7)
layers = keras.layers
model = keras.Sequential([
    layers.Input((64, 64, 3), name="image"),
    layers.Conv2D(16, 3, strides=2, activation="relu"),
    layers.Conv2D(32, 3, strides=2, activation="relu"),
    layers.Conv2D(64, 3, strides=2, activation="relu"),
    layers.GlobalAveragePooling2D(),
    layers.Dense(10),
])
model.save(sys.argv[1] + "/mobilenet.keras")
drawn = numpy.random.default_rng(7).normal(0, 0.5, (16, 64, 64, 3)).clip(-1, 1)
numpy.savez(sys.argv[1] + "/calibration.npz", **{model.inputs[0].name: drawn.astype("float32")})
"""
Waiting = tuple[np.ndarray, queue.SimpleQueue[np.ndarray]]
"""A picture, and where its answer goes."""
Call = Callable[[np.ndarray], np.ndarray]


def models(home: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield network, target and the extracted bundle; built below HOME unless they are there."""
    for name, script in (("MobileNetV2", run.KERAS), ("small CNN", SMALL)):
        place = home / name.replace(" ", "-")
        if not place.exists():
            place.mkdir(parents=True)
            run.KERAS = script
            for target, bundle in run.build(place).items():
                with open_bundle(bundle) as opened:
                    opened.extract(place / target)
        for target in run.TARGETS:
            yield name, target, place / target


def onnx(slot: Path, size: int, threads: int) -> Call:
    """Return a call of ONNX Runtime with SIZE pictures."""
    import onnx as library
    import onnxruntime as ort

    model = library.load(slot / "model" / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    del model.graph.value_info[:]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), options)
    name = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {name: batch})[0])


def openvino(slot: Path, size: int, threads: int) -> Call:
    """Return a call of OpenVINO with SIZE pictures."""
    request = compiled(slot, size, threads, "LATENCY").create_infer_request()
    return lambda batch: np.array(request.infer([batch])[0])


def compiled(slot: Path, size: int, threads: int, hint: str) -> Any:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(slot / "model" / "model.xml")
    shape = model.inputs[0].get_partial_shape()
    shape[0] = size
    model.reshape(shape)
    wanted = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32",
              "INFERENCE_NUM_THREADS": threads}  # fmt: skip
    return core.compile_model(model, "CPU", wanted)


def tflite(slot: Path, size: int, threads: int) -> Call:
    """Return a call of LiteRT with SIZE pictures."""
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(str(slot / "model" / "model.tflite"), num_threads=threads)
    (entry,) = model.get_input_details()
    model.resize_tensor_input(entry["index"], [size, *entry["shape"][1:]])
    model.allocate_tensors()
    out = model.get_output_details()[0]["index"]
    kind, (scale, zero) = entry["dtype"], entry["quantization"]

    def call(batch: np.ndarray) -> np.ndarray:
        if kind is not np.float32:
            batch = np.clip(np.round(batch / scale) + zero, -128, 127).astype(kind)
        model.set_tensor(entry["index"], batch)
        model.invoke()
        return np.asarray(model.get_tensor(out))

    return call


LOADERS: dict[str, Callable[[Path, int, int], Call]] = {
    "onnx": onnx, "openvino": openvino, "tflite": tflite,
}  # fmt: skip


def pictures(slot: Path, count: int) -> np.ndarray:
    """Return COUNT drawn pictures in the layout of the model in SLOT."""
    manifest = json.loads((slot / "manifest.json").read_text())
    native = manifest["inputs"][0]["shape"][1:]
    order = manifest["inputs"][0]["binding"].get("permutation")
    drawn = np.random.default_rng(3).uniform(-1, 1, (count, *native)).astype(np.float32)
    return np.ascontiguousarray(drawn.transpose(order)) if order else drawn


def by_size(target: str, slot: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Return the median call in milliseconds by number of pictures, and whether answers agree."""
    given = pictures(slot, max(SIZES))
    calls = {size: LOADERS[target](slot, size, threads) for size in SIZES}
    alone = np.concatenate([calls[1](given[n : n + 1]) for n in range(max(SIZES))])
    same = bool(np.array_equal(alone, calls[max(SIZES)](given)))
    timed = {
        str(size): (lambda size=size: calls[size](given[:size]))
        for size in SIZES  # type: ignore[misc]
    }
    found = run.medians(timed, rounds)
    rates = {size: 1000 * int(size) / ms for size, ms in found.items()}
    return {"ms": found, "per_s": rates, "gain": max(rates.values()) / rates["1"], "same": same}


def in_flight(slot: Path, threads: int, seconds: float) -> dict[str, float]:
    """Return pictures a second: one after the other, and 8 in OpenVINO's queue."""
    import openvino as ov

    one = pictures(slot, 1)
    call = openvino(slot, 1, threads)
    flying = ov.AsyncInferQueue(compiled(slot, 1, threads, "THROUGHPUT"), 8)
    sums: dict[str, list[float]] = {"sync": [], "async": []}
    for _ in range(4):
        for name, ask in (
            ("sync", lambda: call(one)),
            ("async", lambda: flying.start_async([one])),
        ):
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds / 4:
                ask()
                count += 1
            flying.wait_all()
            sums[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in sums.items()}


WORKER = """
import sys, time, statistics; sys.path.insert(0, {here!r})
from pathlib import Path
import batching
call = batching.LOADERS[{target!r}](Path({slot!r}), 1, {threads})
one = batching.pictures(Path({slot!r}), 1)
for _ in range(20): call(one)
print("ready", flush=True); sys.stdin.readline()
times = []
end, used = time.monotonic() + {seconds}, time.process_time()
while time.monotonic() < end:
    start = time.perf_counter(); call(one); times.append((time.perf_counter() - start) * 1000)
used = time.process_time() - used
times.sort()
p95 = times[int(len(times) * 0.95)]
print(len(times) / {seconds}, len(times) / used, statistics.median(times), p95)
"""


def at_once(code: str, count: int) -> list[list[float]]:
    """Return the numbers that COUNT processes of CODE print, begun together when all are ready."""
    started = [
        subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
        for _ in range(count)
    ]  # fmt: skip
    for each in started:
        assert each.stdout
        each.stdout.readline()
    for each in started:
        assert each.stdin
        each.stdin.write("\n")
        each.stdin.flush()
    return [[float(x) for x in each.communicate()[0].split()] for each in started]


def beside(target: str, slot: Path, threads: int, seconds: float, count: int = 2) -> list[float]:
    """Return what COUNT processes at once do.

    Calls a second of all together, and of one for each second of processor time; median and p95 in
    milliseconds of the slower one. Only the second number says something on a busy machine, on
    which whoever has more threads gets more of it.
    """
    code = WORKER.format(here=str(Path(__file__).parent), target=target, slot=str(slot),
                         threads=threads, seconds=seconds)  # fmt: skip
    told = at_once(code, count)
    return [
        sum(x[0] for x in told), statistics.mean(x[1] for x in told), max(x[2] for x in told),
        max(x[3] for x in told),
    ]  # fmt: skip


def sharing(home: Path, rounds: int) -> list[str]:
    """Return what two models on all cores do, with all threads each and with a share each."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        "| network | runtime | threads each | calls a second | a CPU second | median, ms | p95 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, target, slot in models(home):
        found: dict[int, list[list[float]]] = {cores: [], max(1, cores // 2): []}
        for _ in range(max(1, rounds // 10)):
            for threads, rows in found.items():
                rows.append(beside(target, slot, threads, 2.0))
        for threads, rows in found.items():
            per_s, per_cpu, median, p95 = (
                statistics.median(column) for column in zip(*rows, strict=True)
            )
            numbers = f"{per_s:.0f} | {per_cpu:.0f} | {median:.2f} | {p95:.2f}"
            lines.append(f"| {name} | {target} | {threads} | {numbers} |")
    return lines


def batches(home: Path, rounds: int) -> list[str]:
    """Return what batches gain, as lines of Markdown tables."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        "| network | runtime | threads | 1 | 2 | 4 | 8: ms a call | best gain | same bits |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    queued = ["| network | threads | one after the other, per s | 8 in flight, per s | gain |",
              "|---|---|---|---|---|"]  # fmt: skip
    for name, target, slot in models(home):
        for threads in sorted({1, cores}):
            found = by_size(target, slot, threads, rounds)
            cells = " | ".join(f"{ms:.2f}" for ms in found["ms"].values())
            same = "yes" if found["same"] else "no"
            lines.append(
                f"| {name} | {target} | {threads} | {cells} | {found['gain']:.2f} x | {same} |"
            )
            if target == "openvino":
                rates = in_flight(slot, threads, 4.0)
                gain = rates["async"] / rates["sync"]
                queued.append(f"| {name} | {threads} | {rates['sync']:.0f} | {rates['async']:.0f} "
                              f"| {gain:.2f} x |")  # fmt: skip
    return [*lines, "", *queued]


CLIENTS = 8
ASKERS = """
import sys, threading, time; sys.path.insert(0, {here!r})
import numpy as np, run
request = run.body({name!r}, np.zeros({shape}, np.float32), "FP32")
counts = [0] * 4
print("ready", flush=True); sys.stdin.readline()
end = time.monotonic() + {seconds}
def ask(place):
    connection = run.Connection({address!r}, {path!r})
    while time.monotonic() < end:
        connection.post(request); counts[place] += 1
threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(sum(counts) / {seconds})
"""


def served(slot: Path, threads: int, seconds: float) -> float:
    """Return how many requests a second the runner answers to 8 clients in two processes."""
    with tempfile.TemporaryDirectory() as name, run.serving(slot, Path(name), threads) as address:
        manifest = json.loads((slot / "manifest.json").read_text())
        code = ASKERS.format(
            here=str(Path(__file__).parent), name=manifest["inputs"][0]["name"], seconds=seconds,
            shape=(1, *manifest["inputs"][0]["shape"][1:]), address=address,
            path=f"/v2/models/{manifest['name']}/infer",
        )  # fmt: skip
        return sum(told[0] for told in at_once(code, 2))


def turns(call: Call, one: np.ndarray, seconds: float, calls: Sequence[Call] = ()) -> float:
    """Return answers a second to 8 threads that take turns at CALL, or at one of CALLS each."""
    seats: queue.SimpleQueue[Call] = queue.SimpleQueue()
    for each in calls or (call,):
        seats.put(each)
    end, counts = time.monotonic() + seconds, [0] * CLIENTS

    def ask(place: int) -> None:
        while time.monotonic() < end:
            seat = seats.get()
            seat(one)
            seats.put(seat)
            counts[place] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def answer(calls: dict[int, Call], taken: Sequence[Waiting]) -> None:
    """Compute what was TAKEN in calls of the largest size that it fills; the last one is padded."""
    size = max(n for n in SIZES if n <= len(taken))
    for start in range(0, len(taken), size):
        some = taken[start : start + size]
        given = [picture for picture, _ in some]
        rows = calls[size](np.concatenate(given + given[:1] * (size - len(given))))
        for row, (_, answers) in zip(rows, some, strict=False):
            answers.put(row)


def gathered(calls: dict[int, Call], one: np.ndarray, seconds: float) -> float:
    """Return answers a second to 8 threads whose pictures are computed together, up to 8 at once.

    Whoever waits when the model becomes free goes along; nobody waits for more to come.
    """
    waiting: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
    end, counts = time.monotonic() + seconds, [0] * CLIENTS

    def ask(place: int) -> None:
        answers: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        while time.monotonic() < end:
            waiting.put((one, answers))
            answers.get()
            counts[place] += 1

    def compute() -> None:
        while time.monotonic() < end or not waiting.empty():
            with contextlib.suppress(queue.Empty):
                taken = [waiting.get(timeout=0.05)]
                while len(taken) < CLIENTS and not waiting.empty():
                    taken.append(waiting.get())
                answer(calls, taken)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(CLIENTS)]
    threads.append(threading.Thread(target=compute))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def clients(home: Path, rounds: int) -> list[str]:
    """Return what 8 clients get answered a second, with a thread a core, in four ways."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        "| network | runtime | over HTTP | turns | together | gain | one-thread sessions | gain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, target, slot in models(home):
        one = pictures(slot, 1)
        many = {size: LOADERS[target](slot, size, cores) for size in SIZES}
        alone = [LOADERS[target](slot, 1, 1) for _ in range(cores)]
        ways: dict[str, Callable[[], float]] = {
            "http": lambda slot=slot: served(slot, cores, 2.0),  # type: ignore[misc]
            "turns": lambda many=many, one=one: turns(many[1], one, 2.0),  # type: ignore[misc]
            "together": lambda many=many, one=one: gathered(many, one, 2.0),  # type: ignore[misc]
            "sessions": lambda many=many, one=one, alone=alone: turns(many[1], one, 2.0, alone),  # type: ignore[misc]
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(max(1, rounds // 10)):
            for way, measure in ways.items():
                found[way].append(measure())
        http, turn, together, sessions = (statistics.median(x) for x in found.values())
        lines.append(
            f"| {name} | {target} | {http:.0f} | {turn:.0f} | {together:.0f} | "
            f"{together / turn:.2f} x | {sessions:.0f} | {sessions / turn:.2f} x |"
        )
    return lines


@click.command()
@click.option("--rounds", default=40, help="Calls of each size.")
@click.option("--models", "kept", type=click.Path(path_type=Path), help="Where bundles are kept.")
@click.option("--sharing", "way", flag_value="sharing", help="Two models at once instead.")
@click.option("--clients", "way", flag_value="clients", help="Eight clients instead.")
def main(rounds: int, kept: Path | None, way: str | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        measure = {"sharing": sharing, "clients": clients}.get(way or "", batches)
        click.echo("\n".join(measure(kept or Path(name), rounds)))


if __name__ == "__main__":
    main()
