"""Compare edgepack's plain routes with the libraries' own calls, and with Olive, on one machine.

    python benchmarks/packager/raw_calls.py [--rounds 5] [--olive PYTHON] [--write-page]

Every conversion runs in a fresh process, ours as the worker step that `edgepack build` starts;
sides take turns, so that a slow moment of the machine hits all alike, and medians are compared.
PYTHON is one of an environment of its own with `olive-ai`, `requests` (which Olive 0.13 imports
and does not declare), `torch` and the same `onnxruntime`. The digits models are
trained here; SqueezeNet has random weights, so it tells size and speed, not accuracy.
"""

import compileall
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from onnx import version_converter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import runtimes  # noqa: E402

from digits import INPUT, digits_data, digits_onnx  # noqa: E402
from edgepack_packager.adapters import toolchains  # noqa: E402
from edgepack_packager.adapters.worker import Interpreter, host_interpreter, run_step  # noqa: E402
from edgepack_packager.demo.training import train_digits  # noqa: E402
from light_models import light_model, pictures  # noqa: E402

ONE_CALL = Path(__file__).with_name("one_call.py")
PAGE = ROOT / "docs" / "reference" / "benchmarks-packager.md"
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "tflite": "model.tflite"}
LONGEST_S = 900.0
PICTURES = 32
OPSET = 17
CALLS = 400


@dataclass(frozen=True)
class Model:
    """A trained or made-up model, opened; its arrays are by native name, first axis = samples."""

    name: str
    source: Path
    """What a library would be given: a file, or a SavedModel."""
    opened: Path
    """The directory that edgepack's opening step left."""
    calibration: Path
    test: dict[str, NDArray[Any]]
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Route:
    """One conversion of one model, as both sides do it."""

    name: str
    target: str
    model: Model
    step: str
    args: dict[str, Any]
    where: Interpreter
    rivals: tuple[str, ...] = ()
    """Other raw calls to the same end."""

    @property
    def title(self) -> str:
        return f"{self.model.name}, {self.name.replace('_', ' ')}"


@dataclass
class Side:
    """What one way to the same artefact cost in each round."""

    out: Path
    walls: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    def phase(self, name: str) -> float:
        return statistics.median(one[name] for one in self.phases)


def models(work: Path) -> list[Model]:
    """Make the three models: digits in ONNX and in Keras, SqueezeNet in ONNX."""
    source, train, test = digits_onnx(work / "digits.onnx"), *digits_data()
    calibration = _save(work / "digits.npz", {INPUT: train.head(200).inputs})
    digits = Model(
        "digits, ONNX", source, _opened(source, "onnx", work / "digits"), calibration,
        {INPUT: test.inputs}, test.labels,
    )  # fmt: skip
    return [digits, _squeezenet(work), _keras(work)]


def _squeezenet(work: Path) -> Model:
    # In the wheel's opset 9 the raw call would write a model that does not load.
    proto = version_converter.convert_version(light_model("squeezenet"), OPSET)
    source = work / "squeezenet.onnx"
    source.write_bytes(proto.SerializeToString())
    name = next(iter(proto.graph.input)).name
    calibration = _save(work / "squeezenet.npz", {name: pictures(PICTURES)})
    opened = _opened(source, "onnx", work / "squeezenet")
    return Model("SqueezeNet", source, opened, calibration, {name: pictures(8, seed=5)})


def _keras(work: Path) -> Model:
    train_digits(work / "keras", epochs=6)
    opened = _opened(work / "keras" / "model.keras", "keras", work / "keras-opened")
    with np.load(work / "keras" / "evaluate.npz") as arrays:
        test = dict(arrays)
    labels = test.pop("labels")
    with np.load(work / "keras" / "calibration.npz") as arrays:
        calibration = _save(work / "keras.npz", {n: a for n, a in arrays.items() if n in test})
    return Model("digits, Keras", opened / "saved_model", opened, calibration, test, labels)


def _opened(source: Path, kind: str, out: Path) -> Path:
    """Open SOURCE as a build does; raw calls start where the library can."""
    out.mkdir()
    where, step = (_tf(), "tf.export") if kind == "keras" else (_host(), "onnx_source.normalise")
    args = {
        "source": str(source), "kind": kind, "shapes": {}, "signature": None, "factory": None,
        "weights": None, "trust": False,
    }  # fmt: skip
    run_step(where, step, args, out, timeout_s=LONGEST_S)
    return out


def routes(models: list[Model], work: Path) -> Iterator[Route]:
    """Yield every comparison; a route starts from what the one before it left in WORK."""
    for model in models[:2]:
        for target in ("openvino", "onnx"):
            yield _convert(model, target)
            rivals = ("olive",) if target == "onnx" else ()
            yield _quantize(model, target, work, rivals)
    keras = models[2]
    args = {"from": str(keras.opened), "saved_model": str(keras.opened / "saved_model")}
    yield Route("tflite_fp32", "tflite", keras, "tf.tflite", args, _tf())
    yield _quantize(keras, "tflite", work, ("tflite_int8_converter",))


def _convert(model: Model, target: str) -> Route:
    args = {"from": str(model.opened), "target": target, "source_format": "onnx", "shapes": None}
    return Route(f"{target}_fp32", target, model, "convert.convert", args, _host())


def _quantize(model: Model, target: str, work: Path, rivals: tuple[str, ...]) -> Route:
    args = {
        "from": str(_home(work, model, f"{target}_fp32") / "ours"), "target": target,
        "how": {"precision": "int8"}, "calibration": str(model.calibration),
    }  # fmt: skip
    return Route(f"{target}_int8", target, model, "convert.quantize", args, _host(), rivals)


def _home(work: Path, model: Model, route: str) -> Path:
    return work / "out" / model.name.replace(", ", "-") / route


def measure(route: Route, work: Path, rounds: int, olive: str | None) -> dict[str, Side]:
    """Run every side of ROUTE ROUNDS times in turn; the files of the last round stay."""
    home = _home(work, route.model, route.name)
    raw = [] if route.name == "onnx_fp32" else ["raw"]
    rivals = [one for one in route.rivals if one != "olive" or olive]
    sides = {name: Side(home / name) for name in ("ours", *raw, *rivals)}
    for side in sides.values():
        side.out.mkdir(parents=True)
    for _ in range(rounds):
        for name, side in sides.items():
            if name == "ours":
                start = time.monotonic()
                run_step(route.where, route.step, route.args, side.out, timeout_s=LONGEST_S)
                side.walls.append(time.monotonic() - start)
            python = olive if name == "olive" else None
            wall, phases = _one_call(route, name, side.out, work, python)
            side.phases.append(phases)
            if name != "ours":
                side.walls.append(wall)
    return sides


def _one_call(
    route: Route, side: str, out: Path, work: Path, python: str | None
) -> tuple[float, dict[str, float]]:
    """Run one side in a process of its own; return its whole time and its phases in seconds."""
    fp32 = _home(work, route.model, f"{route.target}_fp32") / "ours"
    args = {
        "source": str(route.model.source), "fp32": str(fp32), "out": str(out),
        "calibration": str(route.model.calibration), "step": route.step, "args": route.args,
    }  # fmt: skip
    path = work / "args.json"
    path.write_text(json.dumps(args))
    known = {"ours": ("ours", route.name), "olive": ("olive", route.name)}
    kind, name = known.get(side, ("raw", route.name if side == "raw" else side))
    needs_tf = route.where.isolated or "converter" in side
    interpreter = python or str((_tf() if needs_tf else _host()).python)
    start = time.monotonic()
    command = [interpreter, str(ONE_CALL), kind, name, str(path), str(start)]
    done = subprocess.run(
        command, check=False, env=_environment(), capture_output=True, text=True,
        timeout=LONGEST_S, cwd=work,
    )  # fmt: skip
    wall = time.monotonic() - start
    if done.returncode:
        raise click.ClickException(f"{route.title}, {side}: {done.stderr[-2000:]}")
    return wall, json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    """Return what a raw call sees: like a worker, quiet and alone, with our code in reach."""
    quiet = {
        "ORT_DISABLE_TELEMETRY": "1", "OLIVE_DISABLE_TELEMETRY": "1", "CI": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": os.pathsep.join(str(ROOT / one) for one in ("contracts", "packager")),
    }  # fmt: skip
    return os.environ | quiet


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    np.savez(path, **arrays)
    return path


def _host() -> Interpreter:
    return host_interpreter()


def _tf() -> Interpreter:
    found = toolchains.interpreter(toolchains.find_toolchain("tf"))
    if found is None:
        raise click.ClickException("first: edgepack toolchain install tf")
    return found


# -- what came out


def latency(route: Route, sides: dict[str, Side]) -> dict[str, float]:
    """Return medians in ms, one thread, the calls taking turns; `session` is ours in ours."""
    sample = {name: array[:1] for name, array in route.model.test.items()}
    calls: dict[str, Callable[[], Any]] = {}
    for name, side in sides.items():
        run = runtimes.opened(route.target, _artefact(route, side))
        calls[name] = lambda run=run: run(sample)
    session = runtimes.session(route.target, sides["ours"].out)
    public = {spec.name: sample[spec.name] for spec in session.manifest.inputs}
    calls["session"] = lambda: session.run(public)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(CALLS + 20):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 20:
                times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def accuracy(route: Route, side: Side) -> float | None:
    """Return the share of test samples that an artefact gets right; None without labels."""
    if route.model.labels is None:
        return None
    run = runtimes.opened(route.target, _artefact(route, side))
    count = len(route.model.labels)
    rows = [run({n: a[i : i + 1] for n, a in route.model.test.items()}) for i in range(count)]
    return float((np.concatenate(rows).argmax(axis=1) == route.model.labels).mean())


def _artefact(route: Route, side: Side) -> Path:
    return next(iter(sorted(side.out.glob(FILES[route.target]))), side.out / "none")


def _size(route: Route, side: Side) -> int:
    file = _artefact(route, side)
    return sum(path.stat().st_size for path in {file, file.with_suffix(".bin")} if path.exists())


def rows(route: Route, sides: dict[str, Side]) -> Iterator[tuple[str, ...]]:
    """Yield a line of the table for every side of ROUTE."""
    base = sides.get("raw", sides["ours"])
    times = latency(route, sides)
    times_base = times["raw" if "raw" in sides else "ours"]
    for name, side in sides.items():
        right = accuracy(route, side)
        session = f"{times['session'] / times_base:.2f}" if name == "ours" else ""
        yield (
            route.title if name == "ours" else "", TITLES[name],
            f"{side.wall:.2f}", f"{side.wall / base.wall:.2f}",
            *(f"{side.phase(phase):.2f}" for phase in ("start", "imports", "call")),
            f"{_size(route, side) / 1000:.1f}", "" if right is None else f"{right:.4f}",
            f"{times[name]:.3f}", f"{times[name] / times_base:.2f}", session,
        )  # fmt: skip


TITLES = {
    "ours": "edgepack", "raw": "raw call", "olive": "Olive",
    "tflite_int8_converter": "TFLite converter",
}  # fmt: skip
HEAD = (
    "route", "who", "step, s", "ratio", "start", "imports", "call", "kB", "top-1", "ms", "ratio",
    "session",
)  # fmt: skip


def build_phases(work: Path) -> list[tuple[str, ...]]:
    """Time the phases of one whole `edgepack build` of the digits model, ONNX int8."""
    from edgepack.cli import root
    from edgepack_packager.adapters import steps

    spent: list[tuple[str, float]] = []

    def timed(where: Interpreter, step: str, *args: Any, **more: Any) -> dict[str, Any]:
        start = time.monotonic()
        try:
            return run_step(where, step, *args, **more)
        finally:
            spent.append((step, time.monotonic() - start))

    test = digits_data()[1]
    labelled = _save(work / "labelled.npz", {INPUT: test.inputs, "labels": test.labels})
    words = [
        "build", work / "digits.onnx", "--target", "onnx", "--precision", "int8", "--calibration",
        work / "digits.npz", "--evaluate", labelled, "--unsigned", "--no-cache", "--jobs", "1",
        "--json", "--out", work / "dist",
    ]  # fmt: skip
    steps.run_step, before = timed, steps.run_step
    start = time.monotonic()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            root.main([str(word) for word in words], standalone_mode=False)
    finally:
        steps.run_step = before
    rest = time.monotonic() - start - sum(seconds for _, seconds in spent)
    return [(name, f"{seconds:.2f}") for name, seconds in (*spent, ("bundle and the rest", rest))]


def markdown(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """Return a table for the documentation."""
    every = [head, ("---",) * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def page(table: list[tuple[str, ...]], phases: list[tuple[str, ...]], rounds: int) -> str:
    """Return the page of the reference."""
    names = ("onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "onnx")
    tools = ", ".join(f"{name} {version(name)}" for name in names)
    return PAGE_TEXT.format(
        rounds=rounds, calls=CALLS, tools=tools, cpus=os.cpu_count(), machine=platform.machine(),
        table=markdown(HEAD, table), phases=markdown(("phase", "s"), phases),
    )  # fmt: skip


PAGE_TEXT = """\
# Benchmarks: packager

Written by `python benchmarks/packager/raw_calls.py --write-page`; do not edit. Measured on
{cpus} CPUs ({machine}) with {tools}. Read ratios, not seconds.

## A plain route against the library's own call

{table}

`step`: a conversion from asking for the process to its end, median of {rounds} rounds in which
the sides take turns; ours is the worker that `edgepack build` starts. `ratio` is to the raw call.
`start`, `imports` and `call` split it. Ours also checks the calibration data, reads the artefact
back, loads it in its runtime, counts what was quantised and writes it in a canonical form; the
raw calls are the manuals' with the same settings. `top-1`: on 540 (ONNX) or 432 (Keras) test
digits; SqueezeNet has random weights, and was brought from opset 9 to 17 first, because the raw
call writes a file there that onnxruntime does not load (edgepack does this by itself). `ms`:
median of {calls} calls of the bare runtime, one thread, taking turns; `ratio` is to the raw
call's artefact; `session` is our artefact in edgepack's own session, with its checks of names,
shapes and dtypes, to the same. There is no raw call to the ONNX file of an ONNX model. The int8
weights themselves are compared in `tests/packager/test_raw_equal.py`: they are equal.

## The phases of a whole build

`edgepack build digits.onnx --target onnx --precision int8 --evaluate ...`, nothing cached. Every
phase but the last is a process of its own; most of each is Python's start and imports.

{phases}

`observe` runs the artefact in its runtime on every sample, then measures latency and memory: this
is the proof, which the raw calls do not have.
"""


@click.command()
@click.option("--rounds", type=int, default=5)
@click.option("--olive", type=click.Path(exists=True), help="Python with olive-ai.")
@click.option("--write-page", "write", is_flag=True, help="Write the page of the reference.")
def main(rounds: int, olive: str | None, write: bool) -> None:
    for part in ("contracts", "targets", "packager"):
        # As pip does when it installs: a checkout is compiled again by every process.
        compileall.compile_dir(ROOT / part, quiet=1)
    with tempfile.TemporaryDirectory(prefix="edgepack-benchmark-") as name:
        work = Path(name)
        table: list[tuple[str, ...]] = []
        for route in routes(models(work), work):
            table += (lines := list(rows(route, measure(route, work, rounds, olive))))
            print(*map("  ".join, lines), sep="\n", file=sys.stderr, flush=True)
        phases = build_phases(work)
    text = page(table, phases, rounds)
    print(text)
    if write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
