"""State in which every unit differs, and the check that a group leaves a model's outputs alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import fxrebasin
from fxrebasin.permutation import Permutation
from fxrebasin.running.preserve import preserve
from fxrebasin.symmetry import Symmetry

TOLERANCE = 1e-10
BLIND = 1e-7
"""A wrong permutation has to change the outputs by more than this, relative to their size."""


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters and running statistics anew, in place; returns the model.

    Freshly built models hide errors: biases are zero, affine weights and running statistics are
    constant, layer scales are tiny. Matrices get the scale of their fan-in, vectors that were
    zero are normal around zero, other vectors lie in [0.5, 1.5]; variances are positive.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in drawn or not tensor.is_floating_point():
            continue
        drawn.add(id(tensor))
        if isinstance(tensor, nn.Parameter):
            tensor.copy_(_drawn(tensor, generator))
        elif name.endswith("running_mean"):
            tensor.copy_(0.3 * _normal(tensor, generator))
        elif name.endswith("running_var"):
            tensor.copy_(_around_one(tensor, generator))
    return model


def _drawn(parameter: Tensor, generator: torch.Generator) -> Tensor:
    low, high = parameter.aminmax()
    if parameter.ndim > 1 and low < high:
        fan_in = math.prod(parameter.shape[1:])
        return _normal(parameter, generator) * max(float(parameter.std()), fan_in**-0.5)
    if low == high == 0:
        return 0.2 * _normal(parameter, generator)
    return _around_one(parameter, generator)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64)


def _around_one(like: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(like.shape, generator=generator, dtype=torch.float64)


def assert_group_is_sound(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    symmetry: Symmetry | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> Symmetry:
    """Random elements of the group leave the float64 outputs unchanged on randomised state.

    The model is analysed as it comes; a float64 copy with the randomised state is then permuted.
    One tensor left unpermuted has to change the outputs, else the comparison proves nothing.
    """
    symmetry = symmetry or fxrebasin.analyze(model, tuple(inputs), kwargs, **options)
    drawn = randomise(copy.deepcopy(model).double())
    args, keywords = tree_map(_widened, (tuple(inputs), dict(kwargs or {})))
    expected = outputs(drawn, args, keywords)
    for seed in seeds:
        element = symmetry.random(seed)
        error = difference(expected, outputs(permuted(drawn, element), args, keywords))
        assert error <= TOLERANCE, f"seed {seed}: relative error {error}"
    if symmetry.classes:
        wrong = with_a_fault(drawn, symmetry)
        assert difference(expected, outputs(wrong, args, keywords)) > BLIND
    return symmetry


def permuted(model: nn.Module, permutation: Permutation) -> nn.Module:
    """A copy of the model with permuted weights."""
    result = copy.deepcopy(model)
    result.load_state_dict(permutation.permute_state_dict(model.state_dict()))
    return result


def with_a_fault(model: nn.Module, symmetry: Symmetry) -> nn.Module:
    """A permuted copy in which one tensor was left as it was: the first that moves with others.

    One that moves all by itself, such as tokens that have no positions, may as well be left.
    """
    state = model.state_dict()
    together: set[int] = set()
    for item in symmetry.classes:
        held = {state[name].data_ptr() for name, _ in item.axes}
        together |= held if len(held) > 1 else set()
    for seed in range(100):
        moved = symmetry.random(seed).permute_state_dict(state)
        victims = [name for name in state if not torch.equal(state[name], moved[name])]
        victims = [name for name in victims if state[name].data_ptr() in together] or victims
        if len(victims) > 1:
            break
    aliases = [n for n in state if state[n].data_ptr() == state[victims[0]].data_ptr()]
    result = copy.deepcopy(model)
    result.load_state_dict({**moved, **{name: state[name] for name in aliases}})
    return result


def outputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """All floating-point tensors that the model returns, in eval mode and without gradients."""
    with preserve(model), torch.no_grad():
        found = model(*args, **kwargs)
    leaves = tree_leaves(dict(found) if isinstance(found, Mapping) else found)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest absolute difference of an output, relative to its largest value.

    Outputs of other shapes, such as one box more, differ infinitely.
    """
    worst = 0.0
    for one, two in zip(expected, found, strict=True):
        assert bool(one.isfinite().all())
        assert bool(two.isfinite().all())
        if one.shape != two.shape:
            return math.inf
        if one.numel():
            scale = float(one.abs().max())
            worst = max(worst, float((one - two).abs().max()) / (scale or 1.0))
    return worst


def _widened(item: Any) -> Any:
    wide = isinstance(item, Tensor) and item.is_floating_point()
    return item.double() if wide else item


def log10_factorial(*sizes: int) -> float:
    """The decimal logarithm of the product of the sizes' factorials."""
    return sum(math.lgamma(size + 1) for size in sizes) / math.log(10)
