"""Elements by coordinates, and how they act on a state again and again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.action import Action
from fxrebasin.charts import Chart, charts_of, condition_of
from fxrebasin.kinds import GroupKind
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.kinds.regauge import with_factors
from tests.support.tiny_transformers import Form, drawn

FORMS = {
    "GPT": Form(layers=2),
    "gate and rotary": Form(width=8, centred=False, biases=False, rotary=True, gate=True),
    "ReLU": Form(relu=True),
    "ViT": Form(length=9, inputs=4, outputs=4, patches=True),
}
PAIRS = (1, 0, 3, 2, 5, 4)


def coordinates_of(charts: dict[str, Chart]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(chart.zeros().shape, generator=generator, dtype=torch.float64) / 3
        for name, chart in charts.items()
    }


@pytest.mark.parametrize("name", FORMS)
def test_a_prepared_action_is_that_of_the_elements(name: str) -> None:
    net = drawn(FORMS[name], 1)
    symmetry = fxrebasin.analyze(net, net.batch(2, 0), symmetry="all")
    groups, classes = symmetry.groups, symmetry.classes
    assert groups is not None
    own = {key: value.detach().double() for key, value in net.state_dict().items()}
    state = with_factors(own, groups, classes, None)
    charts = charts_of(groups, classes)
    assert {c.name for c in classes if c.kind is not GroupKind.PERMUTATION} == charts.keys()
    elements = {k: charts[k].element(value) for k, value in coordinates_of(charts).items()}
    action = Action(groups, classes, {key: value.shape for key, value in state.items()})
    moved = action(state, elements)
    expected = acted(state, groups, classes, {k: item.own for k, item in elements.items()})
    assert moved.keys() == state.keys()
    for key, value in expected.items():
        torch.testing.assert_close(moved[key], value, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(moved["head.weight"], state["head.weight"]) or name == "ReLU"


@pytest.mark.parametrize(
    "kind", [kind for kind in GroupKind if kind.dimension(6) and kind is not GroupKind.PERMUTATION]
)
def test_coordinates_give_elements_of_the_group(kind: GroupKind) -> None:
    chart = Chart(PermutationClass("units", 6, ("heads",), 2), kind, PAIRS)
    still = chart.element(chart.zeros())
    drawn = coordinates_of({"units": chart})["units"].requires_grad_()
    element = chart.element(drawn)
    own, other = element.own, element.contragredient
    if not kind.has_matrices:
        assert torch.equal(still.own, torch.ones(2, 6))
        assert bool((own > 0).all())
        torch.testing.assert_close(own * other, torch.ones_like(own))
    else:
        one = torch.eye(6).expand(2, 6, 6)
        assert torch.equal(still.own, one)
        torch.testing.assert_close(own @ other.mT, one.double())
        assert torch.linalg.matrix_norm(own - one.double()).min() > 0.3
    if kind in (GroupKind.ORTHOGONAL, GroupKind.ORTHOGONAL_FIXING_ONES):
        torch.testing.assert_close(own, other)
        fixed = torch.allclose(own.sum(-1), torch.ones(2, 6, dtype=torch.float64), atol=1e-12)
        assert fixed is (kind is GroupKind.ORTHOGONAL_FIXING_ONES)
    if kind is GroupKind.COMPLEX_PAIRS:
        turn = torch.zeros(6, 6, dtype=torch.float64)
        turn[range(6), PAIRS] = torch.tensor([-1.0, 1.0] * 3, dtype=torch.float64)
        torch.testing.assert_close(own @ turn, turn @ own)
        assert not torch.allclose(own @ own.mT, one.double())
    (slope,) = torch.autograd.grad((own * torch.arange(6.0)).sum(), drawn)
    assert bool(slope.any(dim=0).any())


def test_condition_numbers() -> None:
    assert condition_of(torch.diag_embed(torch.tensor([[1.0, -4.0], [2.0, 3.0]]))) == 4
    assert condition_of(torch.tensor([[1.0, -0.5], [0.1, 1.0]])) == pytest.approx(10)
