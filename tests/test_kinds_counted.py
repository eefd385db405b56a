"""In models of libraries, no more may be chosen freely than their Jacobian shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.exporters.verify.float64 import TrueFloat64
from fxrebasin.running.outputs import counted
from tests.support.counted_models import COUNTED, counted_model
from tests.support.elements import elements_of
from tests.support.nullity import nullity

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("Gemma", "GPT-NeoX", "Falcon", "MPT")
EXACT = (
    *QUICK,
    "BERT",
    "Falcon, many heads",
    "Gemma 2",
    "Gemma 3",
    "Phi",
    "Phi 3",
    "Qwen 2",
    "Qwen 3",
)
"""Models of which all is found; docs/symmetries.md says what is not of others."""


def _outputs(net: nn.Module, state: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad(), TrueFloat64():
        found = counted(functional_call(net, state, inputs))
    return torch.cat([item.flatten() for item in found.values()])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in COUNTED],
)
def test_the_dimension_is_at_most_the_nullity(name: str) -> None:
    torch.manual_seed(0)
    net, batch = counted_model(name)
    symmetry = fxrebasin.analyze(net, tuple(batch(2, 0)), symmetry="all")
    assert symmetry.groups is not None
    held = (*net.named_parameters(), *net.named_buffers())
    state = {key: value.detach().clone() for key, value in held}
    moved = acted(state, symmetry.groups, symmetry.classes, elements_of(symmetry))
    inputs = tuple(batch(6, 3))
    before, after = (_outputs(net, item, inputs) for item in (state, moved))
    assert (before - after).abs().max() <= 1e-10 * before.abs().max()
    size = sum(parameter.numel() for parameter in net.parameters())
    each = len(before) // 6
    with TrueFloat64():
        known = nullity(net, batch(2 * size // each + 20, 1))
    assert 0 < symmetry.dimension() <= known
    assert name not in EXACT or symmetry.dimension() == known
