"""The compress step of Keras sources, in the `tf` toolchain: a .keras file in and out.

Zeros, shared values, and thin chains in the place of dense layers and convolutions, with
fine-tuning where asked for. Removes no channel and rounds nothing: there is no library that
does these for Keras 3.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import UnsupportedError
from edgepack_packager.workers.probe import installed_versions
from edgepack_packager.workers.tf import open_keras
from edgepack_packager.workers.thinning import (
    cluster,
    distinct,
    factorise,
    is_thin,
    rank_of,
    smallest,
    sparsity,
    tucker,
)
from edgepack_packager.workers.training_data import (
    Lessons,
    are_probabilities,
    check_classes,
    only_output,
    read_lessons,
)

__all__ = ["compress"]

Say = Callable[[str], None]
Facts = dict[str, Any]
Settings = Mapping[str, Any]
KERNELS = ("kernel", "embeddings")
TOOLS = ("tensorflow", "keras", "numpy")


@dataclass(slots=True)
class _Bench:
    """A model being worked on, and what it is trained and judged with."""

    model: Any
    lessons: Lessons | None
    seed: int
    masks: list[tuple[Any, Any]] = field(default_factory=list)
    """Weights and what of them has to stay zero."""

    def kernels(self) -> list[Any]:
        """Return what counts as a weight: biases and norms are few, and all of them matter."""
        found = [w for w in self.model.weights if w.name.endswith(KERNELS) and len(w.shape) > 1]
        if not found:
            raise UnsupportedError("the model has no weights to change", reason="no_weights")
        return found

    def keep_zeros(self) -> None:
        for weight, mask in self.masks:
            weight.assign(weight * mask)

    def answers(self, rows: Any) -> dict[str, Any]:
        """Return what the model says about ROWS of the lessons, by output name."""
        assert self.lessons is not None
        told = self.model.predict(_take(self.lessons, rows), batch_size=256, verbose=0)
        values = told if isinstance(told, list | tuple) else [told]
        return dict(zip(self.model.output_names, values, strict=True))

    def accuracy(self) -> float | None:
        """Return the share of held-out samples whose highest class is right."""
        if self.lessons is None:
            return None
        outputs = self.answers(self.lessons.held_out)
        shapes = {name: values.shape for name, values in outputs.items()}
        check_classes(self.lessons.labels, shapes)
        right = outputs[only_output(shapes)[0]].argmax(axis=-1)
        return round(float((right == self.lessons.labels[self.lessons.held_out]).mean()), 6)


def compress(args: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Do `args["steps"]` to the source and write OUT/model.keras; return kind, file and facts.

    Facts of a step: its settings, parameters before and after, accuracy on held-out training
    samples before it, after it and after training, and what it really did.

    Raises:
        UsageError: a broken model, or training data that does not fit it.
        UnsupportedError: there is nothing in the model that a step could change.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(args["seed"])
    tf.config.experimental.enable_op_determinism()
    say("opening the model")
    source = open_keras(Path(args["source"]), trust=bool(args["trust"]))
    lessons = None
    if args["train"]:
        lessons = read_lessons(args["train"], source.inputs, args["seed"])
    bench = _Bench(source.owner, lessons, args["seed"])
    applied = [_do(bench, step, say) for step in args["steps"]]
    bench.model.save(out / "model.keras")
    return {
        "kind": "keras",
        "file": "model.keras",
        "applied": applied,
        "versions": installed_versions(TOOLS),
    }


def _do(bench: _Bench, step: Settings, say: Say) -> Facts:
    """Do one STEP to what is on BENCH, train if asked for, and return the facts."""
    say(step["kind"].replace("_", " "))
    before = {"parameters_before": bench.model.count_params(), "accuracy_before": bench.accuracy()}
    facts = STEPS[step["kind"]](bench, step)
    facts |= {"accuracy_after": bench.accuracy()}
    if step.get("epochs"):
        _train(bench, step)
        facts |= {"accuracy_tuned": bench.accuracy()}
    facts |= _measured(bench, step["kind"]) | {"parameters_after": bench.model.count_params()}
    facts |= {"held_out": len(bench.lessons.held_out) if bench.lessons else None}
    return dict(step) | {k: v for k, v in (before | facts).items() if v is not None}


def _measured(bench: _Bench, kind: str) -> Facts:
    """Return what is really in the weights now, where that is what KIND is about."""
    weights = [kernel.numpy() for kernel in bench.kernels()]
    if not all(np.isfinite(weight).all() for weight in weights):
        raise UnsupportedError(
            f"{kind} left weights that are not finite",
            why="training diverged",
            fix="choose a lower `learning_rate`",
            reason="training_diverged",
        )
    if kind == "prune_magnitude":
        return {"measured_sparsity": round(sparsity(weights), 6)}
    return {"distinct_values": distinct(weights)} if kind == "cluster" else {}


def _prune_magnitude(bench: _Bench, step: Settings) -> Facts:
    kernels = bench.kernels()
    stays = smallest({str(i): one.numpy() for i, one in enumerate(kernels)}, step["sparsity"])
    masks = zip(kernels, stays.values(), strict=True)
    bench.masks = [(kernel, mask.astype(np.float32)) for kernel, mask in masks]
    bench.keep_zeros()
    return {}


def _cluster(bench: _Bench, step: Settings) -> Facts:
    for kernel in bench.kernels():
        kernel.assign(cluster(kernel.numpy(), step["clusters"]))
    return {}


def _low_rank(bench: _Bench, step: Settings) -> Facts:
    chains: dict[int, _Chain] = {}
    ranks: dict[str, list[int]] = {}
    for name, layer in _layers(bench.model):
        chain = _chain(layer, step["rank"])
        if chain is not None:
            # Layers of two models inside of one may have the same name.
            chains[id(layer)], ranks[name] = chain, chain.ranks
    if not chains:
        raise UnsupportedError(
            "low_rank finds no layer that would shrink",
            why=f"dense layers and 2-D convolutions at {step['rank']:g} of their rank",
            fix="choose a lower `rank`",
            reason="nothing_to_factorise",
        )
    bench.model = _rebuilt(bench.model, chains)
    return {"ranks": ranks}


@dataclass(frozen=True, slots=True)
class _Chain:
    """Thin layers that take the place of one, and what is in them."""

    layers: list[Any]
    weights: list[Any]
    ranks: list[int]


def _layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every layer that a copy of MODEL is made of, with its name and those it lies in."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _layers(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + layer.name, layer


def _rebuilt(model: Any, chains: Mapping[int, _Chain]) -> Any:
    """Return a copy of MODEL with CHAINS, by `id`, in the place of layers."""
    import keras

    pairs: list[tuple[Any, Any]] = []

    def copied(layer: Any) -> Any:
        chain = chains.get(id(layer))
        same = keras.Sequential(chain.layers, name=layer.name) if chain else None
        clone = same or layer.__class__.from_config(layer.get_config())
        pairs.append((layer, clone))
        return clone

    made = keras.models.clone_model(model, clone_function=copied, recursive=True)
    for layer, clone in pairs:
        chain = chains.get(id(layer))
        clone.set_weights(chain.weights if chain else layer.get_weights())
    return made


def _chain(layer: Any, share: float) -> _Chain | None:
    """Return what may take the place of LAYER; None: it is of another kind, or would not shrink."""
    import keras

    kinds = {keras.layers.Dense: _dense_chain, keras.layers.Conv2D: _conv_chain}
    make = kinds.get(type(layer))
    chain = make(layer, share) if make else None
    if chain is None or sum(w.size for w in chain.weights) >= layer.count_params():
        return None
    return chain


def _dense_chain(layer: Any, share: float) -> _Chain | None:
    import keras

    kernel, *bias = layer.get_weights()
    if is_thin(kernel.shape):
        return None
    rank = rank_of(min(kernel.shape), share)
    first, last = factorise(kernel, rank)
    settings = layer.get_config()
    layers = [
        keras.layers.Dense(rank, use_bias=False, name="first"),
        keras.layers.Dense.from_config(settings | {"name": "last"}),
    ]
    return _Chain(layers, [first, last, *bias], [rank])


def _conv_chain(layer: Any, share: float) -> _Chain | None:
    """Return 1x1, window, 1x1 for a convolution; without a window there is nothing to win."""
    import keras

    kernel, *bias = layer.get_weights()
    plain_conv = layer.groups == 1 and layer.data_format == "channels_last"
    if not plain_conv or kernel[..., 0, 0].size == 1 or is_thin(kernel.shape[2:]):
        return None
    ranks = rank_of(kernel.shape[2], share), rank_of(kernel.shape[3], share)
    last, core, first = tucker(kernel.transpose(3, 2, 0, 1), ranks[1], ranks[0])
    settings = layer.get_config()
    plain = {"use_bias": False, "activation": "linear"}
    thin = {"kernel_size": 1, "strides": 1, "dilation_rate": 1, "padding": "valid"}
    conv = keras.layers.Conv2D.from_config
    layers = [
        conv(settings | thin | plain | {"filters": ranks[0], "name": "first"}),
        conv(settings | plain | {"filters": ranks[1], "name": "core"}),
        conv(settings | thin | {"name": "last"}),
    ]
    weights = [first.T[None, None], core.transpose(2, 3, 1, 0), last.T[None, None], *bias]
    return _Chain(layers, weights, list(ranks))


STEPS: dict[str, Callable[[_Bench, Settings], Facts]] = {
    "prune_magnitude": _prune_magnitude,
    "cluster": _cluster,
    "low_rank": _low_rank,
}


# -- training


def _train(bench: _Bench, step: Settings) -> None:
    """Fine-tune by STEP; zeros stay zeros."""
    import keras

    lessons = bench.lessons
    assert lessons is not None
    (probe,) = bench.answers(lessons.held_out[:64]).values()
    steps = step["epochs"] * -(-len(lessons.seen) // step["batch"])
    peak, warm = step["learning_rate"], max(1, steps // 3)
    # It rises first, so that trained weights are not thrown away, and ends near zero.
    rate = keras.optimizers.schedules.CosineDecay(
        peak / 25, max(1, steps - warm), warmup_target=peak, warmup_steps=warm
    )
    bench.model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=not are_probabilities(probe)),
    )
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: bench.keep_zeros()
    )
    keras.utils.set_random_seed(bench.seed)
    bench.model.fit(
        _take(lessons, lessons.seen), lessons.labels[lessons.seen],
        epochs=step["epochs"], batch_size=step["batch"], callbacks=[callback], verbose=0,
    )  # fmt: skip


def _take(lessons: Lessons, rows: Any) -> Any:
    taken = [values[rows] for values in lessons.inputs.values()]
    return taken if len(taken) > 1 else taken[0]
