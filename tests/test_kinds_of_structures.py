"""Elements of the groups that were found leave every structure that models are made of alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.exporters.verify.float64 import TrueFloat64
from fxrebasin.passes.kinds.functional import functional_graph
from fxrebasin.passes.kinds.regauge import centred, with_factors, with_shifts
from fxrebasin.running.outputs import counted
from tests.support.elements import elements_of
from tests.support.randomise import randomise
from tests.support.structures import STRUCTURES


def _outputs(model: nn.Module, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad(), TrueFloat64():
        found = counted(functional_call(model, dict(state), inputs))
        return torch.cat([item.double().flatten() for item in found.values()])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRUCTURES)
def test_groups_and_gauges_leave_the_function(name: str) -> None:
    structure = STRUCTURES[name]
    torch.manual_seed(0)
    model, inputs = randomise(structure.build().eval()), structure.inputs()
    symmetry = fxrebasin.analyze(
        model, inputs, state_buffers=structure.state_buffers, symmetry="all"
    )
    groups, graph = symmetry.groups, functional_graph(model, inputs, {}, None)
    if groups is None or isinstance(graph, str):
        assert any("only permutations" in note for note in symmetry.notes)
        return
    model = model.double()
    inputs = tuple(item.double() if item.is_floating_point() else item for item in inputs)
    held = (*model.named_parameters(), *model.named_buffers())
    state = {key: value.detach().clone() for key, value in held}
    before = _outputs(model, state, inputs)
    if not torch.equal(before, _outputs(model, state, inputs)):
        return  # it draws numbers
    other = {
        key: value + torch.rand_like(value) + 0.3 if value.is_floating_point() else value
        for key, value in state.items()
    }
    same = [
        acted(state, groups, symmetry.classes, elements_of(symmetry)),
        centred(state, groups, symmetry.classes),
        with_shifts(state, other, graph=graph, groups=groups),
    ]
    same.append(with_factors(state, groups, symmetry.classes, other))
    for moved in same:
        after = _outputs(model, moved, inputs)
        assert (after - before).abs().max() <= 1e-9 * before.abs().max()
