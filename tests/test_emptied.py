"""Models whose weights are kept elsewhere: what is found is what is found with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxrebasin.calls.matching import matched, unproved
from fxrebasin.errors import EquivalenceError, InputError
from fxrebasin.models.emptied import Emptied, filled, is_emptied, state_for
from fxrebasin.permutation import Permutation
from tests.support.small_nets import draw, unsettled
from tests.support.structures import STRUCTURES


def emptied(build: Callable[[], nn.Module]) -> nn.Module:
    model = build().eval()
    made = Emptied(model)
    del model
    assert made.is_all_there_is()
    return made.model


def towards(
    build: Callable[[], nn.Module], inputs: Any, dtype: torch.dtype = torch.float32, **choices: Any
) -> tuple[Any, Any]:
    """What is found with weights in the model, and with weights beside it."""
    b, a = (
        {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
        for state in (unsettled(build(), seed).state_dict() for seed in (1, 2))
    )
    model = build().eval()
    model.load_state_dict(b)
    with_weights = matched(model, a, inputs, **choices)
    model = build().eval()
    made = Emptied(model)
    del model
    if not made.is_all_there_is():
        pytest.skip("a function that the model calls holds a parameter")
    lean, own = made.model, made.model.state_dict()
    lean.load_state_dict({n: t for n, t in b.items() if not own[n].is_meta}, strict=False)
    beside = unproved(lean, a, (inputs, None), ("weight", {}, "permutation"), choices, stored=b)
    assert all(torch.equal(tensor, b[name].to(tensor.dtype)) for name, tensor in b.items())
    return with_weights, beside.proved()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_found_is_what_is_found_with_weights(name: str) -> None:
    structure = STRUCTURES[name]
    dtype = torch.bfloat16 if len(name) % 2 else torch.float32
    choices = {"state_buffers": structure.state_buffers}
    one, other = towards(structure.build, structure.inputs(), dtype, **choices)
    assert one.certificate.digest() == other.certificate.digest()
    assert one.notes == other.notes
    assert one.log10_order == other.log10_order
    assert one.distance_after == pytest.approx(other.distance_after, rel=1e-6)
    assert (one.equivalence is None) == (other.equivalence is None)
    if one.equivalence is not None:
        assert one.equivalence.inputs == other.equivalence.inputs
        assert one.equivalence.notes == other.equivalence.notes


def test_most_structures_are_emptied() -> None:
    count = sum(is_emptied(Emptied(structure.build()).model) for structure in STRUCTURES.values())
    held = sum(any(True for _ in s.build().parameters()) for s in STRUCTURES.values())
    assert count >= 0.95 * held


class Looking(nn.Module):
    """Takes another way where activations say so."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        if float(h.sum()) > float(self.inner.bias.sum()):
            h = self.inner(h).relu()
        return self.leave(h)


def test_a_model_that_looks_at_numbers_gets_them() -> None:
    one, other = towards(Looking, draw(4, 3))
    assert other.certificate.units_moved > 0
    assert one.certificate.digest() == other.certificate.digest()
    assert one.notes == other.notes


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.leave = (nn.Linear(5, 5) for _ in "eal")
        self.again.weight = self.enter.weight
        self.register_buffer("scale", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.again(self.enter(x).relu()).relu() * self.scale)


def test_ties_flags_and_buffers_stay() -> None:
    def build() -> nn.Module:
        model = Tied()
        model.leave.weight.requires_grad_(False)
        model.leave.bias.note = "kept"
        return model

    model = emptied(build)
    assert model.again.weight is model.enter.weight
    assert model.enter.weight.is_meta
    assert not model.scale.is_meta
    assert (model.leave.weight.requires_grad, model.leave.bias.note) == (False, "kept")
    weights = {"enter.weight": draw(5, 5), "again.weight": draw(5, 5, seed=1)}
    state = state_for(model, {**build().state_dict(), **weights})
    assert state["enter.weight"] is state["again.weight"]
    reference = build()
    reference.load_state_dict({**reference.state_dict(), **weights})
    assert torch.equal(state["enter.weight"], reference.enter.weight)


def test_names_that_are_kept_have_their_values() -> None:
    torch.manual_seed(0)
    model = Tied()
    lean = Emptied(model, ["again.weight"]).model
    assert lean.enter.weight is model.enter.weight
    assert lean.leave.weight.is_meta


def test_state_is_that_of_the_model_whatever_shares_memory_in_a_file() -> None:
    model = emptied(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    shared, wide = draw(4, 4), draw(4).double()
    narrow = draw(4).bfloat16()
    stored = {"0.weight": shared, "1.weight": shared, "0.bias": wide, "1.bias": narrow}
    state = state_for(model, stored)
    assert state["0.weight"] is not state["1.weight"]
    assert state["0.weight"].data_ptr() != state["1.weight"].data_ptr()
    assert torch.equal(state["1.weight"], shared)
    assert state["0.bias"].dtype == torch.float32
    assert state["1.bias"].data_ptr() == narrow.data_ptr()


def test_a_filled_model_has_memory_of_its_own() -> None:
    lean = emptied(Tied)
    weights = unsettled(Tied()).state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    model = filled(lean, weights)
    assert model.enter.weight is model.again.weight
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())
    assert is_emptied(lean)
    with pytest.raises(InputError, match=r"no values for leave\.weight"):
        filled(lean, {n: t for n, t in weights.items() if n != "leave.weight"})


class Viewing(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.rows = self.weight.detach()[:2]


class Loading(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3)
        self.total = self.weight.detach().sum()
        self.register_load_state_dict_post_hook(Loading.count)

    def count(self, _: object) -> None:
        self.total = self.weight.detach().sum()


class Turning(nn.Linear):
    """Its weight lies the other way round in files."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(
            {**state, f"{prefix}weight": state[f"{prefix}weight"].t()}, prefix, *rest
        )


class Counting(nn.Linear):
    """Keeps how large its weight is in a tensor that no file has."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.register_buffer("total", self.weight.detach().sum(), persistent=False)
        self.register_load_state_dict_post_hook(Counting.count)

    def count(self, _: object) -> None:
        self.total.copy_(self.weight.detach().sum())


class Renaming(nn.Linear):
    """Takes its weight under the name that it had once."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if f"{prefix}kernel" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")
        super()._load_from_state_dict(state, prefix, *rest)


def test_code_for_older_names_does_no_harm() -> None:
    assert is_emptied(Emptied(nn.Sequential(Renaming(), nn.Linear(3, 3))).model)


@pytest.mark.parametrize(
    "build",
    [
        Viewing,
        Loading,
        Turning,
        Counting,
        lambda: nn.Sequential(Loading(), nn.Linear(3, 3)),
    ],
)
def test_weights_that_are_looked_at_in_other_ways_stay(build: Callable[[], nn.Module]) -> None:
    model = build()
    lean = Emptied(model).model
    weight = next(iter(lean.parameters()))
    assert weight is next(iter(model.parameters()))


def test_a_parameter_in_a_closure_is_noticed() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        weight = model[0].weight
        model.penalty = lambda: weight.sum()
        return model

    model = build()
    made = Emptied(model)
    del model
    assert not made.is_all_there_is()


def test_weights_that_are_not_finite_are_named() -> None:
    lean = emptied(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    state = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict()
    broken = {**state, "2.weight": state["2.weight"].clone().fill_(float("nan"))}
    with pytest.raises(InputError, match=r"not finite: 2\.weight\[0, 0\]"):
        unproved(
            lean, state, ((draw(2, 3),), None), ("weight", {}, "permutation"), {}, stored=broken
        )


def test_what_is_proved_is_the_weights_beside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    b, a = (unsettled(build(), seed).state_dict() for seed in (3, 4))
    wanted = ("weight", {}, "permutation")
    found = unproved(emptied(build), a, ((draw(2, 3),), None), wanted, {}, stored=b)
    move = Permutation.permute_tensor

    def wrong(self: Permutation, name: str, tensor: Tensor) -> Tensor:
        return tensor if name == "2.weight" else move(self, name, tensor)

    monkeypatch.setattr(Permutation, "permute_tensor", wrong)
    with pytest.raises(EquivalenceError):
        found.proved()
