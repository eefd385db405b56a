"""The checks that every model of a library goes through: its group, and a transform onto another.

Many of these models cast to float32 inside, so both sides of a comparison run in true float64.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import fxrebasin
from fxrebasin.exporters.verify.float64 import TrueFloat64
from fxrebasin.symmetry import Symmetry
from tests.support.randomise import (
    BLIND,
    TOLERANCE,
    difference,
    outputs,
    permuted,
    randomise,
    with_a_fault,
)

CALM = 0.3
"""The size of what predicts boxes: they are about as large as their anchors, and close."""


def analysed(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any
) -> Symmetry:
    """The symmetry of a model, every operator of which has a rule."""
    symmetry = fxrebasin.analyze(model, tuple(args), dict(kwargs), **options)
    assert symmetry.unknown_operators == ()
    assert symmetry.classes
    return symmetry


def assert_sound(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    symmetry: Symmetry,
    seeds: Sequence[int] = (0,),
    calm: bool = False,
) -> None:
    """Random elements of the group leave the outputs alone, and a faulty one does not.

    Experts of a mixture run one by one, which products in groups cannot do in float64. With
    `calm`, layers of which the outputs are pinned, such as those that predict boxes, are scaled
    down: what random weights predict lies outside of every image, where no fault shows.
    """
    drawn = randomise(copy.deepcopy(model).double())
    choose = getattr(drawn, "set_experts_implementation", None)
    if choose is not None:
        choose("eager")
    wide = tree_map(_widened, (tuple(args), dict(kwargs)))
    if calm:
        _calm_pinned_layers(drawn, symmetry, *wide)
    expected = float64_outputs(drawn, *wide)
    for seed in seeds:
        found = float64_outputs(permuted(drawn, symmetry.random(seed)), *wide)
        error = difference(expected, found)
        assert error <= TOLERANCE, f"seed {seed}: relative error {error}"
    faulty = float64_outputs(with_a_fault(drawn, symmetry), *wide)
    assert difference(expected, faulty) > BLIND


def float64_outputs(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """What a model returns when nothing in it is computed in less than float64."""
    with TrueFloat64():
        return outputs(model, args, kwargs)


@torch.no_grad()
def _calm_pinned_layers(
    model: nn.Module, symmetry: Symmetry, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Scale layers of which the outputs are pinned so that these are about CALM in size."""

    factors: dict[nn.Module, Tensor] = {}

    def scale(layer: nn.Module, _: object, output: Tensor) -> Tensor:
        return output * factors.setdefault(layer, CALM / output.square().mean().sqrt())

    hooks = [
        layer.register_forward_hook(scale)
        for name, layer in model.named_modules()
        if (f"{name}.weight", 0) in symmetry.pins and not list(layer.children())
    ]
    float64_outputs(model, args, kwargs)
    for hook in hooks:
        hook.remove()
    for layer, factor in factors.items():
        for parameter in layer.parameters():
            parameter.mul_(factor)


def _widened(item: Any) -> Any:
    wide = isinstance(item, Tensor) and item.is_floating_point()
    return item.double() if wide else item


def assert_transforms(
    model_a: nn.Module, model_b: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """The result computes what model B does, is nearer to model A, and has model B's state."""
    result = fxrebasin.transform(model_b, ref=model_a, example_inputs=args, example_kwargs=kwargs)
    report = result.meta["fxrebasin"]
    assert report.equivalence.passed
    assert report.distance_after < report.distance_before
    assert list(result.state_dict()) == list(model_b.state_dict())


def assert_permutes_without_a_graph(
    model_a: nn.Module, model_b: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """`transform` says why there is no graph and what to do instead, and that works."""
    with pytest.raises(fxrebasin.errors.TraceError, match="nothing to rewrite or export"):
        fxrebasin.transform(model_b, ref=model_a, example_inputs=args, example_kwargs=kwargs)
    found = fxrebasin.match(model_b, ref=model_a, example_inputs=args, example_kwargs=kwargs)
    assert not found.is_identity
    wide = copy.deepcopy(model_b).double()
    inputs = tree_map(_widened, (tuple(args), dict(kwargs)))
    error = difference(
        float64_outputs(wide, *inputs), float64_outputs(permuted(wide, found), *inputs)
    )
    assert error <= TOLERANCE


def pair(build: Any, *args: Any) -> tuple[nn.Module, nn.Module, Any]:
    """Two models with different weights, and inputs for them."""
    torch.manual_seed(1)
    model_a, inputs = build(*args)
    torch.manual_seed(2)
    model_b, _ = build(*args)
    return randomise(model_a, 1), randomise(model_b, 2), inputs
