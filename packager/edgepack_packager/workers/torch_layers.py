"""Change the layers of a PyTorch module: fewer channels, thinner chains, zeros, rounding.

Changes modules in place and trains nothing. Which layers depend on one another is known by
torch-pruning; how to round is known by PyTorch's own fake quantisers.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.workers.thinning import factorise, is_thin, rank_of, tucker

__all__ = ["count", "low_rank", "prune_channels", "rounding", "weights_of"]

Tensor = Any
Module = Any
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROOTS = (*CONVOLUTIONS, nn.ConvTranspose2d, nn.Linear)
"""Layers that may lose channels of their own accord; the others follow."""
Widths = dict[str, list[int]]


def weights_of(named: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return what counts as a weight among NAMED tensors: called so, floating, two axes or more.

    Biases, norms and position tables are few and every value of theirs matters.
    """
    return {
        name: value
        for name, value in named
        if name.endswith("weight") and value.ndim > 1 and value.is_floating_point()
    }


def count(module: Module) -> int:
    """Return the number of parameters."""
    return sum(one.numel() for one in module.parameters())


def prune_channels(
    module: Module, example: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[Module, dict[str, Any]]:
    """Return MODULE without the channels that matter least, and what became of its layers.

    Layers that give the outputs keep their width. So does a layer whose width the module's own
    code counts on: where the pruned module cannot run any more, one group of layers after the
    other is added to those that may shrink.

    Raises:
        UsageError: an excluded layer does not exist.
        UnsupportedError: no layer can lose channels.
    """
    module, frozen = _thawed(module)
    layers = _named_layers(module)
    unknown = sorted(set(settings["exclude"]) - {name for name, _ in module.named_modules()})
    if unknown:
        fix = f"layers are: {', '.join(layers)}"
        what = f"prune_structured excludes layers that are not there: {', '.join(unknown)}"
        raise UsageError(what, fix=fix, reason="unknown_layer")
    kept = _excluded(layers, settings["exclude"]) | _last(module, example)
    pruned = _pruned(module, example, settings, kept)
    if pruned is None:
        pruned, kept = _greedy(module, example, settings, kept)
    widths = {} if pruned is None else _widths(layers, _named_layers(pruned))
    if pruned is None or not widths:
        raise UnsupportedError(
            "prune_structured finds no layer that can lose channels",
            why=f"multiples of {settings['round_to']} are kept; not touched: "
            + ", ".join(sorted(kept)),
            fix="choose a smaller `round_to` or a larger `amount`",
            reason="nothing_to_prune",
        )
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name not in frozen)
    return pruned, {"channels": widths, "kept": sorted(kept)}


def _thawed(module: Module) -> tuple[Module, set[str]]:
    """Return a copy of MODULE in which gradients show what depends on what, and what they hid."""
    copied = copy.deepcopy(module)
    frozen = {name for name, one in copied.named_parameters() if not one.requires_grad}
    for one in copied.parameters():
        one.requires_grad_(one.is_floating_point())
    return copied, frozen


def _greedy(
    module: Module, example: Mapping[str, Tensor], settings: Mapping[str, Any], kept: set[str]
) -> tuple[Module | None, set[str]]:
    """Return MODULE pruned in as many groups of layers as it can run with, and what is kept."""
    best: Module | None = None
    still = set(_named_layers(module))
    for group in _groups(module, example, kept):
        pruned = _pruned(module, example, settings, still - group)
        if pruned is not None:
            best, still = pruned, still - group
    return best, still


def _groups(module: Module, example: Mapping[str, Tensor], kept: set[str]) -> list[set[str]]:
    """Return the sets of layers that lose channels together; without those in KEPT."""
    import torch_pruning

    layers = _named_layers(module)
    names = {id(layer): name for name, layer in layers.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(module, dict(example))
    groups = graph.get_all_groups(
        ignored_layers=[layers[name] for name in sorted(kept)], root_module_types=list(ROOTS)
    )
    return [
        {
            names[id(one.dep.target.module)]
            for one in group
            if id(one.dep.target.module) in names
            and graph.is_out_channel_pruning_fn(one.dep.pruning_fn)
        }
        for group in groups
    ]


def _named_layers(module: Module) -> dict[str, Module]:
    kinds = (*ROOTS, nn.MultiheadAttention)
    return {name: one for name, one in module.named_modules() if isinstance(one, kinds)}


def _excluded(layers: Mapping[str, Module], named: Sequence[str]) -> set[str]:
    """Return the layers that are NAMED or lie inside of something named."""
    return {name for name in layers for one in named if name == one or name.startswith(one + ".")}


def _widths(before: Mapping[str, Module], after: Mapping[str, Module]) -> Widths:
    pairs = {name: [_width(one), _width(after[name])] for name, one in before.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _width(layer: Module) -> int:
    for name in ("out_channels", "out_features", "embed_dim"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise TypeError(type(layer).__name__)


def _pruned(
    module: Module, example: Mapping[str, Tensor], settings: Mapping[str, Any], kept: set[str]
) -> Module | None:
    """Return a pruned copy of MODULE, or None if it does not run or answers in another shape."""
    import torch_pruning

    one = copy.deepcopy(module).eval()
    layers = _named_layers(one)
    wanted = _shapes(one, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pruner = torch_pruning.pruner.MagnitudePruner(
                one,
                dict(example),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=settings["amount"],
                round_to=settings["round_to"],
                root_module_types=list(ROOTS),
                ignored_layers=[layers[name] for name in sorted(kept)],
            )
            pruner.step()
            return one if _shapes(one, example) == wanted else None
        except Exception:  # noqa: BLE001  whatever it cannot do, another choice of layers may
            return None


def _shapes(module: Module, example: Mapping[str, Tensor]) -> list[Any]:
    with torch.no_grad():
        return [one.shape for one in pytree.tree_leaves(module(**example))]


def _last(module: Module, example: Mapping[str, Tensor]) -> set[str]:
    """Return the layers that give the outputs: nothing with weights comes after them.

    Found on the way back from the outputs, which ends wherever it meets the weight of a layer.
    """
    module.eval()
    owners = {
        id(weight): name
        for name, layer in _named_layers(module).items()
        for weight in layer.parameters()
        if weight.ndim > 1
    }
    outputs = pytree.tree_leaves(module(**example))
    waiting = [one.grad_fn for one in outputs if one.grad_fn is not None]
    seen: set[Any] = set()
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        before = [one for one, _ in node.next_functions if one is not None]
        names = {owners[id(leaf)] for leaf in map(_leaf, before) if id(leaf) in owners}
        found |= names
        waiting += [] if names else before
    return found


def _leaf(node: Any) -> Tensor:
    """Return the parameter behind NODE, itself or transposed; None: there is none."""
    while len(node.next_functions) == 1 and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)


def low_rank(module: Module, share: float) -> tuple[dict[str, list[int]], list[str]]:
    """Replace layers of MODULE by chains of SHARE of their rank; return the ranks and what stays.

    A layer stays if a chain would not be smaller, if it is thin already, if its owner reads
    its weight directly, or if another layer has the same weight and would keep it. One that is
    in several places is replaced in all of them.
    """
    ranks: dict[str, list[int]] = {}
    stays: list[str] = []
    places: dict[int, list[tuple[str, Module, str, Module]]] = {}
    for place in _replaceable(module):
        places.setdefault(id(place[3]), []).append(place)
    owned = Counter(id(one) for each in module.modules() for one in each.parameters(recurse=False))
    for (name, _, _, layer), *_ in places.values():
        make = _dense_chain if type(layer) is nn.Linear else _conv_chain
        alone = owned[id(layer.weight)] == 1 and not is_thin(layer.weight.shape[:2])
        chain = make(layer, share) if alone else None
        if chain is None or count(chain[0]) >= count(layer):
            stays.append(name)
            continue
        for _, owner, key, _ in places[id(layer)]:
            setattr(owner, key, chain[0].train(layer.training))
        ranks[name] = chain[1]
    return ranks, stays


def _replaceable(module: Module) -> Iterator[tuple[str, Module, str, Module]]:
    """Yield (name, owner, its attribute, layer) of each layer that may become a chain."""
    for prefix, owner in module.named_modules():
        if isinstance(owner, nn.MultiheadAttention):
            continue
        # Not `named_children`, which tells a layer with two names once.
        for key, layer in owner._modules.items():  # noqa: SLF001
            if type(layer) in {nn.Linear, nn.Conv2d}:
                yield f"{prefix}.{key}".lstrip("."), owner, key, layer


def _dense_chain(layer: Module, share: float) -> tuple[Module, list[int]] | None:
    rank = rank_of(min(layer.weight.shape), share)
    left, right = factorise(layer.weight.detach().numpy(), rank)
    first = nn.Linear(layer.in_features, rank, bias=False)
    last = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    return _filled([first, last], [right, left], layer.bias), [rank]


def _conv_chain(layer: Module, share: float) -> tuple[Module, list[int]] | None:
    """Return a convolution as 1x1, window, 1x1; without a window two are enough."""
    kernel = layer.weight.detach().numpy()
    outward, inward = kernel.shape[:2]
    if layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    if kernel[0, 0].size == 1:
        rank = rank_of(min(outward, inward), share)
        left, right = factorise(kernel.reshape(outward, inward), rank)
        first = nn.Conv2d(inward, rank, 1, layer.stride, layer.padding, bias=False)
        last = nn.Conv2d(rank, outward, 1, bias=layer.bias is not None)
        return _filled([first, last], [right, left], layer.bias), [rank]
    ranks = rank_of(inward, share), rank_of(outward, share)
    last_weight, core, first_weight = tucker(kernel, ranks[1], ranks[0])
    middle = nn.Conv2d(
        *ranks, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False
    )
    parts = [
        nn.Conv2d(inward, ranks[0], 1, bias=False),
        middle,
        nn.Conv2d(ranks[1], outward, 1, bias=layer.bias is not None),
    ]
    return _filled(parts, [first_weight, core, last_weight], layer.bias), list(ranks)


def _filled(parts: Sequence[Module], weights: Sequence[Any], bias: Tensor) -> Module:
    """Return PARTS in a row, with WEIGHTS in them and BIAS in the last one."""
    with torch.no_grad():
        for part, weight in zip(parts, weights, strict=True):
            part.weight.copy_(torch.from_numpy(weight).reshape(part.weight.shape))
        if bias is not None:
            parts[-1].bias.copy_(bias)
    return nn.Sequential(*parts)


def rounding(
    module: Module, bits: int, calibrate: Callable[[], object]
) -> tuple[int, Callable[[], None]]:
    """Round MODULE's weights to BITS and inputs of layers to 8 from now on; return what ends it.

    Weights: symmetric, a scale per output channel. Such a grid survives the folding of batch
    normalisation, which scales a channel and its grid alike. Inputs: asymmetric, one scale,
    from a moving average of what passes while CALIBRATE runs and in training.

    Returns the number of layers. At the end the weights are left on their grid, and everything
    that rounds is taken away.

    Raises:
        UnsupportedError: there is no layer to round.
    """
    kinds = {*CONVOLUTIONS, nn.Linear}
    layers = [one for one in module.modules() if type(one) in kinds]
    if not layers:
        raise UnsupportedError("qat finds no layer to round", reason="nothing_to_round")
    watching = [True]
    hooks = [_round_inputs(layer, watching) for layer in layers]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _weight_grid(bits))
    calibrate()
    watching.clear()

    def end() -> None:
        module.eval()
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)

    return len(layers), end


def _weight_grid(bits: int) -> Module:
    # As runtimes do: -127 to 127 of 8 bits, -64 to 64 of 7.
    top = 127 if bits == 8 else 2 ** (bits - 1)
    return quantization.FakeQuantize(
        # All of the newest range and nothing of the older ones: the grid follows the weights.
        quantization.MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0,
        quant_min=-top, quant_max=top, dtype=torch.qint8, qscheme=torch.per_channel_symmetric,
    )  # fmt: skip


def _round_inputs(layer: Module, watching: list[bool]) -> Any:
    grid = quantization.FakeQuantize(
        quantization.MovingAverageMinMaxObserver,
        quant_min=0, quant_max=255, dtype=torch.quint8, qscheme=torch.per_tensor_affine,
    )  # fmt: skip

    def hook(
        owner: Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        grid.enable_observer(bool(watching) or owner.training)
        # Layers have one input; some modules give it by its name.
        one, *_ = (*inputs, *named.values())
        return (grid(one),), {}

    return layer.register_forward_pre_hook(hook, with_kwargs=True)
