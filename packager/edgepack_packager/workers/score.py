"""Score answers against labels, with the built-in metric or the user's own. Runs no model."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack_packager.workers.arrays import read_arrays

__all__ = ["score"]

Array = NDArray[Any]
Metric = Callable[[dict[str, Array], Array | dict[str, Array]], float]


def score(args: dict[str, Any], _out: Path, _say: Callable[[str], None]) -> dict[str, Any]:
    """Return the score of each npz in `args["answers"]` (by name), higher is better.

    Raises:
        UsageError: the metric is not there, fails, or does not return a finite number.
    """
    metric = _top1(args["output"]) if args["metric"] == "top1" else _load(args)
    labels = read_arrays(args["labels"])
    truth = labels["labels"] if set(labels) == {"labels"} else labels
    return {name: _call(metric, path, truth) for name, path in args["answers"].items()}


def _call(metric: Metric, answers: str, truth: Array | dict[str, Array]) -> float:
    try:
        value = float(metric(read_arrays(answers), truth))
    except (Exception, SystemExit) as error:
        raise UsageError(
            "the metric failed", why=f"{type(error).__name__}: {error}", reason="metric_failed"
        ) from error
    if not np.isfinite(value):
        raise UsageError("the metric returned no finite number", reason="metric_failed")
    return value


def _top1(output: str) -> Metric:
    def metric(outputs: dict[str, Array], labels: Array | dict[str, Array]) -> float:
        wanted = labels["labels"] if isinstance(labels, Mapping) else labels
        guesses = outputs[output].reshape(len(wanted), -1).argmax(axis=1)
        return float((guesses == np.asarray(wanted).reshape(-1)).mean())

    return metric


def _load(args: Mapping[str, Any]) -> Metric:
    place, _, name = args["metric"].rpartition(":")
    try:
        found: Metric = getattr(_module(place, args["cwd"]), name)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"the metric {args['metric']} cannot be loaded",
            why=f"{type(error).__name__}: {error}",
            fix="--metric file.py:function or --metric module:function",
            reason="bad_metric",
        ) from error
    return found


def _module(place: str, cwd: str) -> Any:
    sys.path.insert(0, cwd)
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location("edgepack_user_metric", Path(cwd) / place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
