"""Weights and statistics without which a wrong permutation could go unnoticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from fxrebasin.exporters.verify.input_sets import example_set, further_sets
from fxrebasin.models.redraw import Manner

# Of rows that are not like the inputs, when statistics are taken.
_UNLIKE_ROWS = 14

# Of a unit, in units of the mean of a layer's: one that was never on may be so on other inputs.
_LEAST_VARIANCE = 0.1


@torch.no_grad()
def randomise(
    model: nn.Module, args: tuple[Any, ...], seed: int, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Give `model` state in which all units differ, in place, whatever it was initialised with.

    Freshly built models hide errors: biases are zero, affine weights and running statistics are
    constant, layer scales are so small that their blocks do nothing. Parameters are redrawn with
    their own mean and standard deviation, constant ones around 1 (around 0 if they are zero).
    BatchNorm statistics are those that each layer meets when the model runs on the inputs and on
    rows that are not like them, scaled and shifted per unit. They are set layer by layer during
    that run, so that activations keep their size in deep models; where they grow, float32 has no
    digits left to compare. Variances are four times as large: with blocks as large as what they are
    added to, a rounding error doubles every few blocks, and at the end of a hundred nothing else is
    left.

    The inputs alone would not do. Two images of noise are the same but for a little after some
    pooling; layers that divide by the spread of so little make it, and rounding errors with it,
    large, one after the other, and any other image becomes huge on the way.

    Args:
        model: its parameters, and the running statistics of BatchNorm, are overwritten; it is left
            in eval mode.
        args: positional inputs, such as images `[n, c, h, w]`.
        seed: of the draw; the global generator is left as it was.
        kwargs: keyword inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        _redraw(parameter, generator)
    forgetful(model)

    def set_statistics(layer: _BatchNorm, args: tuple[Any, ...]) -> None:
        if layer.running_mean is None or layer.running_var is None:
            return
        features = args[0].transpose(0, 1).flatten(1)
        variance = features.var(1)
        variance = variance.clamp(min=_LEAST_VARIANCE * variance.mean().item())
        shift = 0.2 * variance.sqrt() * _normal(variance, generator)
        layer.running_mean.copy_(features.mean(1) + shift)
        layer.running_var.copy_(4 * variance * _around_one(variance, generator))

    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(set_statistics) for layer in layers]
    if layers:
        all_args, all_kwargs = _with_unlike_rows(args, kwargs or {})
        model(*all_args, **all_kwargs)
    for hook in hooks:
        hook.remove()


def _with_unlike_rows(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs, with further rows behind theirs, of which each has a mean of its own."""
    unlike = next(further_sets(example_set(args, kwargs), _UNLIKE_ROWS, Manner.BEYOND))
    given, structure = tree_flatten((args, dict(kwargs)))
    drawn = tree_leaves((unlike.args, dict(unlike.kwargs)))
    joined = [
        torch.cat([one, other]) if isinstance(one, Tensor) else one
        for one, other in zip(given, drawn, strict=True)
    ]
    whole: tuple[tuple[Any, ...], dict[str, Any]] = tree_unflatten(joined, structure)
    return whole


def forgetful(model: nn.Module) -> nn.Module:
    """The model in eval mode, without what it has kept of earlier weights since it was last there.

    timm's attention with a bias for each offset gathers the biases once, and again after training.
    """
    return model.train().eval()


def _redraw(parameter: Tensor, generator: torch.Generator) -> None:
    low, high = parameter.aminmax()
    if low < high:
        spread = parameter.std()
        parameter.copy_(parameter.mean() + spread * _normal(parameter, generator))
    elif low == 0:
        parameter.copy_(0.1 * _normal(parameter, generator))
    else:
        parameter.copy_(_around_one(parameter, generator))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _around_one(like: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(like.shape, generator=generator)
