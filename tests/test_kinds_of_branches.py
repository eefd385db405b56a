"""Groups of models that decide in Python: inputs may, what weights compute may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import fxrebasin
from fxrebasin.acting import acted
from fxrebasin.kinds import GroupKind
from fxrebasin.passes.kinds.functional import functional_graph
from tests.support.elements import elements_of
from tests.support.lie import outputs_of


class Deciding(nn.Module):
    """A linear net without a nonlinearity, so that any matrix may act on its units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

    def scale(self, x: Tensor, hidden: Tensor) -> float:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden) * self.scale(x, hidden)


class ByInputs(Deciding):
    def scale(self, x: Tensor, hidden: Tensor) -> float:
        return 2.0 if bool((x > -9).all()) else float((x > 0).sum().item())


class ByUnits(Deciding):
    def scale(self, x: Tensor, hidden: Tensor) -> float:
        return 2.0 if bool(hidden.sum() > 0) else 3.0


class ByWeights(Deciding):
    def scale(self, x: Tensor, hidden: Tensor) -> float:
        return float(self.first.weight.abs().max())


class ByCount(Deciding):
    def scale(self, x: Tensor, hidden: Tensor) -> float:
        return float(len(hidden.relu().nonzero()))


def test_what_inputs_decide_hides_no_group() -> None:
    symmetry = fxrebasin.analyze(ByInputs().eval(), torch.randn(4, 3), symmetry="all")
    assert symmetry.classes[0].kind is GroupKind.GENERAL_LINEAR
    assert not any("only permutations" in note for note in symmetry.notes)


class ByConstant(Deciding):
    """Looks at what depends on no input and no weight."""

    def scale(self, x: Tensor, hidden: Tensor) -> float:
        return 2.0 if bool((torch.arange(x.shape[1]) > 1).any()) else float(hidden.sum())


class OwnFunction(torch.autograd.Function):
    """A function with a derivative of its own, which transforms of torch refuse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> Tensor:
        return along[0] * 2


class Writing(Deciding):
    """Writes to views, to its input, and to what it made; has a function of its own."""

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        hidden.t().mul_(3)
        x.add_(1)
        own: Tensor = OwnFunction.apply(hidden)  # type: ignore[no-untyped-call]
        return self.second(own) + x.sum(1, keepdim=True)


@pytest.mark.parametrize("model", [ByConstant, Writing])
def test_constants_and_writes_hide_no_group(model: type[Deciding]) -> None:
    net, inputs = model().eval(), torch.randn(4, 3)
    before = inputs.clone()
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.classes[0].kind is GroupKind.GENERAL_LINEAR
    assert symmetry.dimension() == 32 - 8  # parameters, and numbers of the linear map they make
    assert torch.equal(inputs, before)
    on_meta = fxrebasin.analyze(model().to("meta").eval(), inputs.to("meta"), symmetry="all")
    assert on_meta.dimension() == symmetry.dimension()


def test_a_graph_holds_no_data_but_that_of_the_model_and_its_inputs() -> None:
    graph = functional_graph(ByInputs().eval(), (torch.randn(4, 3),), {}, None)
    assert not isinstance(graph, str)
    made = [node for node in graph.nodes if node.op == "call_function"]
    assert made
    assert all(node.meta["val"].is_meta for node in made)


class Remembering(Deciding):
    """Writes to a tensor that is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(1)

    def scale(self, x: Tensor, hidden: Tensor) -> float:
        self.seen.add_(1)
        return 2.0


def test_a_write_to_a_constant_leaves_permutations() -> None:
    model = Remembering().eval()
    symmetry = fxrebasin.analyze(model, torch.randn(4, 3), symmetry="all")
    assert symmetry.dimension() == 0
    assert any("only permutations" in note for note in symmetry.notes)
    assert float(model.seen) == 0


@pytest.mark.parametrize("model", [ByUnits, ByWeights, ByCount])
def test_what_units_or_weights_decide_leaves_permutations(model: type[Deciding]) -> None:
    symmetry = fxrebasin.analyze(model().eval(), torch.randn(4, 3), symmetry="all")
    assert symmetry.dimension() == 0
    assert any("only permutations" in note for note in symmetry.notes)


def test_a_decoder_that_is_given_token_ids_only_has_its_groups() -> None:
    """It asks its positions whether several texts are packed into one row."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=19,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval().double()
    ids, others = torch.randint(19, (2, 7)), torch.randint(19, (3, 6))
    symmetry = fxrebasin.analyze(model, ids, symmetry="all")
    assert {GroupKind.ORTHOGONAL, GroupKind.GENERAL_LINEAR, GroupKind.COMPLEX_PAIRS} <= {
        c.kind for c in symmetry.classes
    }
    assert symmetry.groups is not None
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    moved = acted(state, symmetry.groups, symmetry.classes, elements_of(symmetry))
    before, after = (outputs_of(model, held, {"input_ids": others}) for held in (state, moved))
    assert (moved["model.embed_tokens.weight"] - state["model.embed_tokens.weight"]).norm() > 0.1
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
