"""Train a PyTorch module a little: seeded, on one thread, judged on samples it never sees.

Serves every compress step that trains. Knows neither what was compressed nor any file but the
training data.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from edgepack.errors import UnsupportedError
from edgepack_packager.workers.torch_model import name_outputs
from edgepack_packager.workers.training_data import (
    are_probabilities,
    check_classes,
    only_output,
    read_lessons,
)

__all__ = [
    "Data",
    "Loss",
    "accuracy",
    "answer",
    "collect",
    "cross_entropy",
    "distillation",
    "log_probabilities",
    "read",
    "train",
]

Tensor = Any
Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensor, Tensor], Tensor]
"""From outputs by name, labels and the rows they belong to, to a scalar."""


@dataclass(frozen=True, slots=True)
class Data:
    """Samples by input name, first axis = samples, and which of them are held out."""

    inputs: Tensors
    labels: Tensor
    seen: Tensor
    held_out: Tensor

    def take(self, rows: Tensor) -> Tensors:
        """Return the samples in ROWS."""
        return {name: values[rows] for name, values in self.inputs.items()}


def read(path: str, examples: Tensors, seed: int) -> Data:
    """Return what is in PATH, for a model that takes EXAMPLES; see `training_data.read_lessons`."""
    wanted = {
        name: (tuple(one.shape), str(one.dtype).removeprefix("torch."))
        for name, one in examples.items()
    }
    found = read_lessons(path, wanted, seed)
    inputs = {name: torch.from_numpy(found.inputs[name]) for name in wanted}
    rest = (torch.from_numpy(one) for one in (found.labels, found.seen, found.held_out))
    return Data(inputs, *rest)


def answer(module: Any, inputs: Tensors) -> Tensors:
    """Return what MODULE says to INPUTS, by output name."""
    return name_outputs(module(**inputs))


def cross_entropy(example: Tensors, labels: Tensor) -> Loss:
    """Return cross-entropy on the only output; EXAMPLE shows what the module gives.

    Raises:
        UsageError: several outputs, or labels that are no classes of this output.
    """
    check_classes(labels.numpy(), {name: tuple(one.shape) for name, one in example.items()})
    speak = _log_probabilities(example)

    def loss(outputs: Tensors, wanted: Tensor, _rows: Tensor) -> Tensor:
        return functional.nll_loss(speak(outputs), wanted.long())

    return loss


def distillation(
    told: Tensor, example: Tensors, temperature: float, alpha: float, plain: Loss
) -> Loss:
    """Return ALPHA of what the teacher TOLD about all samples and the rest of PLAIN.

    TOLD is log-probabilities; both sides are softened by TEMPERATURE, and its square keeps the
    gradients of both parts comparable (Hinton et al., 2015).
    """
    speak = _log_probabilities(example)

    def soften(values: Tensor) -> Tensor:
        return functional.log_softmax(values / temperature, dim=-1)

    def loss(outputs: Tensors, wanted: Tensor, rows: Tensor) -> Tensor:
        distance = functional.kl_div(
            soften(speak(outputs)), soften(told[rows]), log_target=True, reduction="batchmean"
        )
        return alpha * temperature**2 * distance + (1 - alpha) * plain(outputs, wanted, rows)

    return loss


def log_probabilities(module: Any, data: Data) -> Tensor:
    """Return what MODULE says about all samples of DATA: log-probabilities, a row per sample."""
    told = collect(module, data, torch.arange(len(data.labels)))
    return _log_probabilities(told)(told)


def _log_probabilities(example: Tensors) -> Callable[[Tensors], Tensor]:
    """Return what turns outputs like EXAMPLE into log-probabilities: they may be those already."""
    name, _ = only_output({name: tuple(one.shape) for name, one in example.items()})
    values = example[name]
    if are_probabilities(values.detach().numpy()):
        return lambda outputs: outputs[name].clamp_min(1e-7).log()
    return lambda outputs: functional.log_softmax(outputs[name], dim=-1)


def train(
    module: Any,
    data: Data,
    loss: Loss,
    settings: Mapping[str, Any],
    *,
    seed: int,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train MODULE by the `epochs`, `batch` and `learning_rate` of SETTINGS; leave it in eval mode.

    AFTER is called when the weights have moved, to keep zeros where they have to be. The
    learning rate rises first, so that trained weights are not thrown away, and ends near zero, so
    that a short run ends settled.

    Raises:
        UnsupportedError: nothing in MODULE may be trained.
    """
    parameters = [one for one in module.parameters() if one.requires_grad]
    if not parameters:
        raise UnsupportedError(
            "the module has no parameter that may be trained",
            why="all of them have requires_grad=False",
            fix="let the factory return it with requires_grad_(True), or set `epochs: 0`",
            reason="frozen",
        )
    optimizer = torch.optim.Adam(parameters, lr=settings["learning_rate"])
    batches = list(_batches(data.seen, settings, seed))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings["learning_rate"], total_steps=max(1, len(batches))
    )
    torch.manual_seed(seed)
    module.train()
    for rows in batches:
        optimizer.zero_grad()
        loss(answer(module, data.take(rows)), data.labels[rows], rows).backward()
        optimizer.step()
        schedule.step()
        after()
    module.eval()


def _batches(rows: Tensor, settings: Mapping[str, Any], seed: int) -> Iterator[Tensor]:
    """Yield the rows of all batches; one of a single sample would break batch normalisation."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings["epochs"]):
        mixed = rows[torch.randperm(len(rows), generator=generator)]
        yield from (part for part in mixed.split(settings["batch"]) if len(part) > 1)


def accuracy(module: Any, data: Data) -> float | None:
    """Return the share of held-out samples whose highest class is right; None: no such thing."""
    outputs = collect(module, data, data.held_out)
    labels = data.labels[data.held_out]
    first = next(iter(outputs.values()))
    if len(outputs) != 1 or first.ndim != 2 or labels.ndim != 1:
        return None
    return round(float((first.argmax(dim=-1) == labels).double().mean()), 6)


def collect(module: Any, data: Data, rows: Tensor) -> Tensors:
    """Return what MODULE in eval mode says about ROWS of DATA."""
    module.eval()
    with torch.no_grad():
        parts = [answer(module, data.take(some)) for some in rows.split(256)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
