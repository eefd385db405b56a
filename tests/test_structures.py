"""Structures that models are made of: each comes out complete, and sound on randomised state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import assert_group_is_sound
from tests.support.structures import STRUCTURES

KNOWN_GAPS = {
    "experts_by_top_k": "rows chosen by data: one permutation is found for all experts",
    "diagonal_and_all_of_a_parameter": "an exchange of both axes at once has no expression",
}
"""Structures whose group is sound but not exactly the closed form; a name leaves when mended."""


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_group_is_complete_and_sound(name: str) -> None:
    structure = STRUCTURES[name]
    model, inputs = structure.build(), structure.inputs()
    symmetry = fxrebasin.analyze(model, inputs, state_buffers=structure.state_buffers)
    assert symmetry.unknown_operators == ()
    complete = symmetry.log10_order() == pytest.approx(structure.order, rel=1e-6, abs=1e-9)
    assert complete != (name in KNOWN_GAPS), (symmetry.log10_order(), structure.order)
    assert_every_axis_is_free_or_pinned(symmetry)
    assert_group_is_sound(model, inputs, symmetry=symmetry)


def assert_every_axis_is_free_or_pinned(symmetry: fxrebasin.Symmetry) -> None:
    free = {axis for c in symmetry.classes for axis in c.axes}
    for name, shape in symmetry.shapes.items():
        for axis in range(len(shape)):
            assert ((name, axis) in free) != ((name, axis) in symmetry.pins)
    assert all(reason.strip() for reason in symmetry.pins.values())


@torch.library.custom_op("fxrebasin_tests::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    """An operator of which nobody has heard."""
    return x * torch.arange(x.shape[-1], dtype=x.dtype)


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Mysterious(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.inner(mystery(self.enter(x))).relu())


def test_an_unknown_operator_pins_what_it_touches_and_is_listed() -> None:
    model, inputs = Mysterious(), (torch.randn(4, 3),)
    symmetry = assert_group_is_sound(model, inputs)
    assert symmetry.unknown_operators == ("fxrebasin_tests.mystery.default",)
    assert [c.axes[0] for c in symmetry.classes] == [("inner.weight", 0)]
    for axis in (("enter.weight", 0), ("enter.bias", 0), ("inner.weight", 1)):
        assert "unknown operator" in symmetry.pins[axis]
        assert "mystery" in symmetry.explain(*axis)


def test_parameters_that_are_not_read_belong_to_no_class() -> None:
    structure = STRUCTURES["unused_parameters"]
    symmetry = fxrebasin.analyze(structure.build(), structure.inputs())
    state = structure.build().state_dict()
    moved = symmetry.random(0).permute_state_dict(state)
    for name in ("aux.weight", "aux.bias"):
        assert "not read" in symmetry.pins[name, 0]
        assert torch.equal(moved[name], state[name])


def test_dims_inside_heads_have_a_permutation_per_head() -> None:
    structure = STRUCTURES["fused_attention"]
    symmetry = fxrebasin.analyze(structure.build(), structure.inputs())
    heads = next(c for c in symmetry.classes if c.size == 3)
    dims = [c for c in symmetry.classes if c.within]
    assert [(c.size, c.within, c.count) for c in dims] == [(4, (heads.name,), 3)] * 2


def test_the_soundness_check_sees_wrong_permutations() -> None:
    class Deceptive(nn.Module):
        """Its units get an order after it was analysed."""

        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)
            self.ordered = False

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            return self.leave(h.cumsum(-1) if self.ordered else h)

    model, inputs = Deceptive(), (torch.randn(4, 3),)
    symmetry = fxrebasin.analyze(model, inputs)
    model.ordered = True
    with pytest.raises(AssertionError, match="relative error"):
        assert_group_is_sound(model, inputs, symmetry=symmetry)
