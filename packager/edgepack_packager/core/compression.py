"""What can be done to a model before it is converted: six steps, their settings and their order.

A compress step turns a source into another source, in the framework that the source came from;
quantisation happens later, on the target. Checks numbers and combinations. Touches no model.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import msgspec

from edgepack.errors import UnsupportedError, UsageError

__all__ = [
    "COMPRESSIBLE",
    "Cluster",
    "CompressionStep",
    "Distil",
    "LowRank",
    "PruneMagnitude",
    "PruneStructured",
    "QuantizeAware",
    "order",
    "parse_step",
    "supported",
]


LIMITS: dict[str, tuple[float, float, bool]] = {
    "epochs": (0, 10_000, True),
    "batch": (2, 65_536, True),
    "learning_rate": (0, 1, False),
    "amount": (0, 1, False),
    "round_to": (1, 1024, True),
    "sparsity": (0, 1, False),
    "clusters": (2, 256, True),
    "bits": (2, 8, True),
    "rank": (0, 1, False),
    "temperature": (0, 100, False),
    "alpha": (0, 1, True),
}
"""Of every setting that is a number: lowest, highest, and whether these two are allowed."""
FUNCTIONS = ("student", "loss")
"""Settings that name code, as `file.py:function`."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What all steps have in common: a kind, settings within limits, and a way to a worker."""

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in LIMITS:
                _check_number(self.kind, name, value)
            elif name in FUNCTIONS:
                _check_function(self.kind, name, value)

    @property
    def needs_training(self) -> bool:
        """Whether it trains, and so needs `train:` with inputs and labels."""
        return bool(getattr(self, "epochs", 0))

    @property
    def files(self) -> tuple[str, ...]:
        """The Python files that it runs: their content decides the outcome too."""
        named = [getattr(self, name, "") for name in FUNCTIONS]
        return tuple(name.rpartition(":")[0] for name in named if name)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings with their `kind`, as a worker takes them."""
        return {"kind": self.kind} | asdict(self)


@dataclass(frozen=True, slots=True)
class _Trained(_Step):
    """A step that may train."""

    epochs: int = 3
    """Passes over the training data afterwards; 0: none."""
    learning_rate: float = 1e-3
    """Of Adam."""
    batch: int = 64
    loss: str = ""
    """`file.py:function(outputs by name, labels) -> scalar`; empty: cross-entropy on labels."""


@dataclass(frozen=True, slots=True)
class PruneStructured(_Trained):
    """Remove whole channels: a smaller dense network, faster everywhere.

    Raises:
        UsageError: a setting out of its range.
    """

    kind: ClassVar[str] = "prune_structured"
    amount: float = 0.5
    """Share of the channels of every layer that goes."""
    round_to: int = 16
    """Widths stay multiples of it: a kernel computes whole vectors, so odd widths save nothing."""
    exclude: tuple[str, ...] = ()
    """Names of layers that keep their width."""


@dataclass(frozen=True, slots=True)
class PruneMagnitude(_Trained):
    """Set the smallest weights of the whole model to zero: fewer bytes on the wire, no more.

    Raises:
        UsageError: a setting out of its range.
    """

    kind: ClassVar[str] = "prune_magnitude"
    epochs: int = 0
    sparsity: float = 0.5
    """Share of the weights that becomes zero and stays so."""


@dataclass(frozen=True, slots=True)
class Cluster(_Step):
    """Let the weights of a layer share a few values: fewer bytes on the wire, no more.

    Raises:
        UsageError: a setting out of its range.
    """

    kind: ClassVar[str] = "cluster"
    clusters: int = 16
    """Different values per layer, besides zero."""


@dataclass(frozen=True, slots=True)
class LowRank(_Trained):
    """Replace a layer by a chain of thin ones: SVD for dense layers, Tucker-2 for convolutions.

    Raises:
        UsageError: a setting out of its range.
    """

    kind: ClassVar[str] = "low_rank"
    rank: float = 0.5
    """Share of the full rank that is kept; a layer that would not shrink is left alone."""


@dataclass(frozen=True, slots=True)
class Distil(_Trained):
    """Train another, smaller network with this one as its teacher, and once without, to compare.

    Raises:
        UsageError: a setting out of its range, or no student.
    """

    kind: ClassVar[str] = "distil"
    epochs: int = 25
    student: str = ""
    """`file.py:factory`: returns the network to train."""
    temperature: float = 2.0
    """Softens what the teacher says; 1: as it is."""
    alpha: float = 0.5
    """Weight of the teacher's word; the rest belongs to the labels."""


@dataclass(frozen=True, slots=True)
class QuantizeAware(_Trained):
    """Train with int8 rounding in the loop, so that the quantisation on the target costs less.

    Raises:
        UsageError: a setting out of its range.
    """

    kind: ClassVar[str] = "qat"
    bits: int = 7
    """Of the weights. Targets use 7 of int8's bits unless the processor is known to have VNNI;
    what is trained for 7 fits into 8 as well."""


CompressionStep = PruneStructured | PruneMagnitude | Cluster | LowRank | Distil | QuantizeAware

ORDER: tuple[type[CompressionStep], ...] = (
    Distil, LowRank, PruneStructured, PruneMagnitude, Cluster, QuantizeAware,
)  # fmt: skip
BY_KIND: dict[str, type[CompressionStep]] = {step.kind: step for step in ORDER}
SECTIONS = {"low_rank": "low_rank", "cluster": "cluster", "distil": "distil", "qat": "qat"}
PRUNINGS = {"structured": "prune_structured", "magnitude": "prune_magnitude"}
IN_PLACE = ("prune_magnitude", "cluster")
"""Change the values of weights and nothing else, so no training framework has to be at hand."""

ALWAYS_TRAINED = frozenset({"distil", "qat"})
"""Steps that are nothing without training."""

COMPRESSIBLE: dict[str, tuple[str, ...]] = {
    "torch_module": tuple(BY_KIND),
    "torch_program": IN_PLACE,
    "torchscript": IN_PLACE,
    "keras": (*IN_PLACE, "low_rank"),
    "onnx": (*IN_PLACE, "low_rank"),
}
"""What can be done to each kind of source."""
TRAINABLE = ("torch_module", "keras")
TORCH_MODULE = "build from the PyTorch module itself: module.py:factory --weights FILE"


def parse_step(said: Mapping[str, Any], locate: Callable[[str], str] = str) -> CompressionStep:
    """Return the step that one entry of a recipe's `steps:` describes.

    Args:
        said: One key and its settings, e.g. `{"prune": {"kind": "magnitude", "sparsity": 0.8}}`.
        locate: Turns a path as the recipe says it into one that can be opened.

    Raises:
        UsageError: an unknown step or setting, a value of the wrong type or out of its range.
    """
    kind, settings = _kind(said)
    step = BY_KIND[kind]
    known = [one.name for one in fields(step)]
    unknown = sorted(str(name) for name in settings.keys() - set(known))
    if unknown:
        raise _bad(f"{kind} has no setting {', '.join(unknown)}", fix=f"known: {', '.join(known)}")
    try:
        parsed: CompressionStep = msgspec.convert(settings, step)
    except msgspec.ValidationError as error:
        raise _bad(f"the settings of {kind} are not right", why=str(error)) from error
    named = {name: str(settings[name]) for name in FUNCTIONS if settings.get(name)}
    moved: Any = {name: _move(path, locate) for name, path in named.items()}
    return replace(parsed, **moved)


def order(steps: Iterable[CompressionStep]) -> tuple[CompressionStep, ...]:
    """Return STEPS in the order in which none undoes another, whatever order they were given in.

    First what replaces the network (distillation), then what changes its layers (low rank, whose
    ranks structured pruning may then align), then what changes single weights: zeros before
    shared values, because clustering leaves zeros alone but pruning breaks clusters. Training
    with rounding comes last, because any other training would move the weights off the grid.

    Raises:
        UsageError: a kind appears twice, or two steps contradict one another.
    """
    steps = tuple(steps)
    kinds = [step.kind for step in steps]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise _bad(f"the recipe has {twice[0]} twice", fix="keep one of them")
    if {"cluster", "qat"} <= set(kinds):
        raise _bad(
            "cluster and qat do not go together",
            why="training moves the weights of a cluster apart again",
            fix="keep one of them",
        )
    return tuple(sorted(steps, key=lambda step: ORDER.index(type(step))))


def supported(kind: str, step: CompressionStep) -> UnsupportedError | None:
    """Return why STEP cannot be done to a source of KIND, or None if it can."""
    why = _missing(kind, step.kind)
    if why:
        what = f"{step.kind} cannot be done to a source of kind {kind}"
        return UnsupportedError(what, why=why, fix=_way_out(kind, step.kind), reason="no_recipe")
    if step.needs_training and kind not in TRAINABLE:
        return UnsupportedError(
            f"{step.kind} with fine-tuning cannot be done to a source of kind {kind}",
            why="it holds a graph to run, not a network that a framework can train",
            fix=f"set `epochs: 0`, or {TORCH_MODULE}",
            reason="no_recipe",
        )
    if kind != "torch_module" and step.files:
        return UnsupportedError(
            f"{step.kind}: a loss of your own works with PyTorch modules only",
            why="a model file is opened in safe mode, and a loss is code",
            fix="leave `loss` out: cross-entropy on labels",
            reason="no_recipe",
        )
    return None


def _missing(kind: str, step: str) -> str:
    """Return why STEP is not there for KIND, or nothing."""
    able = COMPRESSIBLE.get(kind)
    if able is None:
        return "it is a converted model: its weights are already laid out for a runtime"
    if step in able:
        return ""
    if step == "prune_structured" and kind in {"keras", "onnx"}:
        return (
            "removing a channel changes every layer that shares it, and there is no library "
            f"that knows these dependencies for {kind}"
        )
    if step == "qat" and kind == "keras":
        return "TensorFlow Model Optimization, the only library for it, needs Keras 2"
    if step == "distil" and kind == "keras":
        return "a student is a network in code, and only PyTorch sources are opened as code"
    return "it holds a fixed graph: layers can be neither replaced nor trained"


def _way_out(kind: str, step: str) -> str:
    able = COMPRESSIBLE.get(kind)
    if able is None:
        return "compress the model that it was made from"
    return f"{TORCH_MODULE}; for {kind} there is: {', '.join(able)}" if step not in able else ""


def _kind(said: Any) -> tuple[str, dict[str, Any]]:
    """Return the kind and the settings of one entry."""
    if not isinstance(said, Mapping) or len(said) != 1:
        why = "one entry is one key with its settings"
        raise _bad("a step cannot be read", why=why, fix="- cluster: {clusters: 16}")
    ((section, settings),) = said.items()
    settings = {} if settings is None else settings
    if not isinstance(settings, Mapping):
        raise _bad(f"{section}: the settings are not a mapping", fix=f"- {section}: {{...}}")
    settings = dict(settings)
    if section == "prune":
        return _pruning(settings.pop("kind", None)), settings
    if section not in SECTIONS:
        known = ", ".join(("prune", *SECTIONS, "quantize"))
        raise _bad(f"there is no step {section}", fix=f"known steps: {known}")
    return SECTIONS[section], settings


def _pruning(said: Any) -> str:
    if said not in PRUNINGS:
        given = f"there is no pruning {said}" if said else "prune has no `kind`"
        raise _bad(given, fix="- prune: {kind: structured, ...} or {kind: magnitude, ...}")
    return PRUNINGS[said]


def _move(named: str, locate: Callable[[str], str]) -> str:
    path, _, function = named.rpartition(":")
    return f"{locate(path)}:{function}"


def _check_function(step: str, name: str, said: str) -> None:
    """Refuse what names no function in a Python file; a loss may be left out."""
    path, _, function = said.rpartition(":")
    if not (path.endswith(".py") and function.isidentifier()) and (said or name == "student"):
        what = f"{step}: `{name}` is `{said}`" if said else f"{step} needs `{name}`"
        why = "it names a function in a Python file"
        raise _bad(what, why=why, fix=f"{name}: file.py:function")


def _check_number(step: str, name: str, value: float) -> None:
    low, high, included = LIMITS[name]
    if name == "epochs" and step in ALWAYS_TRAINED:
        low = 1
    if not (low <= value <= high if included else low < value < high):
        limits = f"from {low:g} to {high:g}" if included else f"above {low:g} and below {high:g}"
        raise _bad(f"{step}: {name} is {value:g}", why=f"it must be {limits}")


def _bad(what: str, *, why: str = "", fix: str = "") -> UsageError:
    return UsageError(what, why=why, fix=fix, reason="bad_recipe")
