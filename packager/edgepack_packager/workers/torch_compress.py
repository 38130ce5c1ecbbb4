"""The compress step of PyTorch sources: a module in, a smaller program out. Quantises nothing.

Everything is done to the eager module in one process, in the order given, and the result is
exported once. A `.pt2` program and a TorchScript are graphs: only values of their weights can
change, and they stay what they are.

Quantisation-aware training belongs here although nothing is quantised here: it moves the weights
to where rounding costs little, and the quantiser of the target does the rounding. Complete
library routes do not fit: torchao's `prepare_qat_pt2e` does not work with this PyTorch, NNCF
needs a C++ compiler and leaves its own operators in the graph, and `torch.ao`'s `prepare_qat`
rounds between a convolution and its batch normalisation, where no target rounds. So PyTorch's
own fake quantisers are attached to the layers, and removed before the export.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.workers import torch_train
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.thinning import cluster, distinct, smallest, sparsity
from edgepack_packager.workers.torch_layers import (
    count,
    low_rank,
    prune_channels,
    rounding,
    weights_of,
)
from edgepack_packager.workers.torch_model import (
    Model,
    load_program,
    load_python,
    make_module,
    open_model,
)
from edgepack_packager.workers.torch_source import export_model

__all__ = ["compress"]

Say = Callable[[str], None]
Facts = dict[str, Any]
Tensor = Any
Module = Any
TOOLS = ("torch", "torch-pruning", "numpy")


@dataclass(slots=True)
class _Bench:
    """A module being worked on, and what is needed to judge and train it."""

    module: Module
    example: Mapping[str, Tensor]
    seed: int
    data: Any = None
    masks: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Weights and what of them has to stay zero."""

    def accuracy(self, module: Module = None) -> float | None:
        if self.data is None:
            return None
        return torch_train.accuracy(module or self.module, self.data)

    def keep_zeros(self) -> None:
        with torch.no_grad():
            for weight, mask in self.masks:
                weight.mul_(mask)

    def train(self, settings: Mapping[str, Any], module: Module = None, loss: Any = None) -> None:
        """Train by SETTINGS: the bench's module and the loss of SETTINGS, or others."""
        torch_train.train(
            module or self.module, self.data, loss or self.loss(settings), settings,
            seed=self.seed, after=self.keep_zeros,
        )  # fmt: skip

    def loss(self, settings: Mapping[str, Any], module: Module = None) -> torch_train.Loss:
        """Return what SETTINGS name, else cross-entropy on what the module gives."""
        if settings["loss"]:
            return _own_loss(settings["loss"])
        return torch_train.cross_entropy(self.probe(module), self.data.labels)

    def probe(self, module: Module = None) -> dict[str, Tensor]:
        """Return what a module says to some samples, by output name."""
        module = module or self.module
        with torch.no_grad():
            some = self.data.take(self.data.held_out[:32])
            return torch_train.answer(module.eval(), some)


def compress(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Do `args["steps"]` to the source and write it to OUT; return its kind, file and facts.

    Facts of a step: its settings, parameters before and after, accuracy on held-out training
    samples before it, after it and after training, and what it really did.

    Raises:
        UsageError: training data that does not fit, code that cannot be loaded.
        UnsupportedError: a step that this source or this network does not allow.
    """
    if args["kind"] != "torch_module":
        return _change_values(args, out, say)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # The fused path of transformer layers reads weights directly and would pass by a changed layer.
    torch.backends.mha.set_fastpath_enabled(False)
    say("opening the model")
    model = open_model(args)
    bench = _Bench(model.module, model.examples, args["seed"])
    if args["train"]:
        bench.data = torch_train.read(args["train"], model.examples, args["seed"])
    applied = [_do(bench, step, say) for step in args["steps"]]
    say("exporting")
    _save(bench.module, model, out)
    return {
        "kind": "torch_program",
        "file": "program.pt2",
        "applied": applied,
        "versions": installed_versions(TOOLS),
    }


def _save(module: Module, model: Model, out: Path) -> None:
    """Write MODULE, which has taken the place of MODEL's, to OUT/program.pt2."""

    def call(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return torch_train.answer(module, tensors)

    program, _ = export_model(Model(module.eval(), model.examples, call))
    torch.export.save(program, out / "program.pt2")


def _do(bench: _Bench, step: Mapping[str, Any], say: Say) -> Facts:
    """Do one STEP to what is on BENCH, train if asked for, and return the facts."""
    say(step["kind"].replace("_", " "))
    before = {"parameters_before": count(bench.module), "accuracy_before": bench.accuracy()}
    facts = STEPS[step["kind"]](bench, step)
    if step.get("epochs") and "accuracy_tuned" not in facts:
        facts |= {"accuracy_after": bench.accuracy()}
        bench.train(step)
        facts |= {"accuracy_tuned": bench.accuracy()}
    _refuse_nonsense(bench.module, step["kind"])
    facts |= _measured(weights_of(bench.module.named_parameters()), step["kind"])
    facts = {"accuracy_after": bench.accuracy()} | facts
    held_out = {} if bench.data is None else {"held_out": len(bench.data.held_out)}
    facts = before | {"parameters_after": count(bench.module)} | facts | held_out
    return dict(step) | {name: value for name, value in facts.items() if value is not None}


def _refuse_nonsense(module: Module, kind: str) -> None:
    if not all(bool(torch.isfinite(one).all()) for one in module.parameters()):
        raise UnsupportedError(
            f"{kind} left weights that are not finite",
            why="training diverged",
            fix="choose a lower `learning_rate`",
            reason="training_diverged",
        )


def _measured(tensors: Mapping[str, Tensor], kind: str) -> Facts:
    """Return what is really in the weights now, where that is what KIND is about."""
    weights = [one.detach().numpy() for one in tensors.values()]
    if kind == "prune_magnitude":
        return {"measured_sparsity": round(sparsity(weights), 6)}
    return {"distinct_values": distinct(weights)} if kind == "cluster" else {}


def _prune_structured(bench: _Bench, step: Mapping[str, Any]) -> Facts:
    bench.module, facts = prune_channels(bench.module, bench.example, step)
    return facts


def _low_rank(bench: _Bench, step: Mapping[str, Any]) -> Facts:
    ranks, stays = low_rank(bench.module, step["rank"])
    if not ranks:
        raise UnsupportedError(
            "low_rank finds no layer that would shrink",
            why=f"dense layers and convolutions at {step['rank']:g} of their rank: "
            + (", ".join(stays) or "none"),
            fix="choose a lower `rank`",
            reason="nothing_to_factorise",
        )
    return {"ranks": ranks, "kept": stays}


def _prune_magnitude(bench: _Bench, step: Mapping[str, Any]) -> Facts:
    bench.masks = _zero_smallest(_weights(bench.module), step)
    return {}


def _cluster(bench: _Bench, step: Mapping[str, Any]) -> Facts:
    _share_values(_weights(bench.module), step)
    return {}


def _zero_smallest(
    weights: Mapping[str, Tensor], step: Mapping[str, Any]
) -> list[tuple[Tensor, Tensor]]:
    """Set the smallest of WEIGHTS to zero; return each with what of it stays."""
    stays = smallest(
        {name: one.detach().numpy() for name, one in weights.items()}, step["sparsity"]
    )
    masks = [(weights[name], torch.from_numpy(mask)) for name, mask in stays.items()]
    with torch.no_grad():
        for weight, mask in masks:
            weight.mul_(mask)
    return masks


def _share_values(weights: Mapping[str, Tensor], step: Mapping[str, Any]) -> None:
    with torch.no_grad():
        for one in weights.values():
            one.copy_(torch.from_numpy(cluster(one.detach().numpy(), step["clusters"])))


def _weights(module: Module) -> dict[str, Tensor]:
    found = weights_of(module.named_parameters())
    if not found:
        raise _no_weights()
    return found


def _no_weights() -> UnsupportedError:
    return UnsupportedError(
        "the model has no weights that could be changed",
        why="no parameter with two axes or more is called `weight`",
        fix="a frozen model keeps its weights as constants: build from the module itself",
        reason="no_weights",
    )


def _qat(bench: _Bench, step: Mapping[str, Any]) -> Facts:
    """Train with rounding; accuracies after and tuned are those with rounding on."""
    loss = bench.loss(step)
    layers, end = rounding(
        bench.module,
        step["bits"],
        lambda: torch_train.collect(bench.module, bench.data, bench.data.seen),
    )
    rounded = bench.accuracy()
    bench.train(step, loss=loss)
    tuned = bench.accuracy()
    end()
    return {"layers": layers, "accuracy_after": rounded, "accuracy_tuned": tuned}


def _distil(bench: _Bench, step: Mapping[str, Any]) -> Facts:
    """Train a student of the present module and, from the same start, one without a teacher."""
    torch.manual_seed(bench.seed)
    path, _, factory = step["student"].rpartition(":")
    student = make_module(Path(path), factory)
    control = copy.deepcopy(student)
    _check_student(bench, student)
    teacher = bench.accuracy()
    plain = bench.loss(step, student)
    told = torch_train.log_probabilities(bench.module, bench.data)
    # Before it has learnt anything a student shows what it gives: classes or their shares.
    loss = torch_train.distillation(
        told, bench.probe(student), step["temperature"], step["alpha"], plain
    )
    untrained = bench.accuracy(student)
    bench.train(step, student, loss)
    bench.train(step, control, plain)
    bench.module = student
    return {
        "accuracy_teacher": teacher,
        "accuracy_after": untrained,
        "accuracy_tuned": bench.accuracy(student),
        "accuracy_control": bench.accuracy(control),
    }


def _check_student(bench: _Bench, student: Module) -> None:
    wanted = {name: tuple(one.shape) for name, one in bench.probe().items()}
    try:
        given = {name: tuple(one.shape) for name, one in bench.probe(student).items()}
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise _no_student(why) from error
    if given != wanted:
        raise _no_student(f"it gives {given} where the model gives {wanted}")


def _no_student(why: str) -> UsageError:
    return UsageError(
        "the student cannot stand in for the model",
        why=why,
        fix="its inputs and outputs must have the names and shapes of the model's",
        reason="bad_student",
    )


STEPS: dict[str, Callable[[_Bench, Mapping[str, Any]], Facts]] = {
    "distil": _distil,
    "low_rank": _low_rank,
    "prune_structured": _prune_structured,
    "prune_magnitude": _prune_magnitude,
    "cluster": _cluster,
    "qat": _qat,
}


def _own_loss(named: str) -> torch_train.Loss:
    """Return the loss that a recipe names; what it raises or returns wrongly is its own error."""
    function = _function(named)

    def loss(outputs: Mapping[str, Tensor], labels: Tensor, _rows: Tensor) -> Tensor:
        try:
            value = function(outputs, labels)
        except Exception as error:
            raise _bad_loss(named, f"{type(error).__name__}: {error}"[:300]) from error
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
            shape = list(value.shape) if isinstance(value, torch.Tensor) else ""
            raise _bad_loss(named, f"it returned {type(value).__name__} {shape}".strip())
        return value.reshape(())

    return loss


def _bad_loss(named: str, why: str) -> UsageError:
    return UsageError(
        f"the loss {Path(named).name} does not work",
        why=why,
        fix="it takes outputs by name and labels, and returns one number computed from them: "
        "a tensor with a gradient",
        reason="bad_loss",
    )


def _function(named: str) -> Callable[..., Tensor]:
    path, _, name = named.rpartition(":")
    found = getattr(load_python(Path(path)), name, None)
    if not callable(found):
        raise UsageError(f"{Path(path).name} has no function {name}", reason="no_loss")
    return cast("Callable[..., Tensor]", found)


VALUES: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any]], object]] = {
    "prune_magnitude": _zero_smallest,
    "cluster": _share_values,
}


# -- graphs: only values of weights can change


def _change_values(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Prune or cluster the weights of a program or a TorchScript; it stays of its kind."""
    say("opening the model")
    graph, tensors, name = _open_graph(args)
    weights = weights_of(iter(tensors.items()))
    if not weights:
        raise _no_weights()
    applied = []
    for step in args["steps"]:
        say(step["kind"].replace("_", " "))
        VALUES[step["kind"]](weights, step)
        applied.append(dict(step) | _measured(weights, step["kind"]))
    save = torch.export.save if args["kind"] == "torch_program" else torch.jit.save
    save(graph, str(out / name))
    return {
        "kind": args["kind"],
        "file": name,
        "applied": applied,
        "versions": installed_versions(TOOLS),
    }


def _open_graph(args: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor], str]:
    """Return the graph, its weights by name and the name of the file to write."""
    if args["kind"] == "torch_program":
        program = load_program(Path(args["source"]), trust=bool(args["trust"]))
        return program, dict(program.named_parameters()), "program.pt2"
    script = open_model(args).module
    return script, dict(script.named_parameters()), "model.pt"
