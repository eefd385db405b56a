"""Many models in one basis of their largest groups, by weights and by what is learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.errors import InputError
from tests.support.elements import elements_of
from tests.support.interrupting import Interrupting
from tests.support.tiny_transformers import Form, Transformer, drawn

FORMS = {
    "GPT": Form(layers=1, width=8, hidden=6, heads=2),
    "Llama": Form(
        layers=1, width=8, hidden=6, heads=2, centred=False, biases=False, rotary=True, gate=True
    ),
}


def loss(outputs: Tensor, targets: Any) -> Tensor:
    """Mean square."""
    found: Tensor = (outputs - targets).square().mean()
    return found


def batches(net: Transformer, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(net.batch(16, k), net(net.batch(16, k))) for k in range(10, 10 + count)]


def moved(net: nn.Module, inputs: Tensor, seed: int) -> nn.Module:
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.groups is not None
    element = Alignment(symmetry.random(seed), symmetry.groups, elements_of(symmetry))
    other = copy.deepcopy(net)
    other.load_state_dict(element.apply(net.state_dict()))
    return other


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("method", ["merge_many", "learned"])
def test_one_model_in_many_bases_is_merged_to_itself(name: str, method: str) -> None:
    net = drawn(FORMS[name], 1)
    inputs = net.batch(2, 0)
    models = [net, moved(net, inputs, 3), moved(net, inputs, 4)]
    options: dict[str, Any] = {}
    if method == "learned":
        options = {"loader": batches(net), "loss": loss, "steps": 2}
    merged = fxrebasin.merge_many(models, method, example_inputs=inputs, symmetry="all", **options)
    for key, value in net.state_dict().items():
        assert float((merged.state_dict()[key] - value).norm()) <= 1e-9 * float(value.norm()), key


@pytest.mark.parametrize("name", FORMS)
def test_learning_lowers_the_loss_of_the_mean_of_three(name: str) -> None:
    nets = [drawn(FORMS[name], seed) for seed in (1, 2, 3)]
    inputs, loader = nets[0].batch(2, 0), batches(nets[0])
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    losses = []
    for steps in (1, 40):
        merged = fxrebasin.merge_many(
            nets,
            "learned",
            example_inputs=inputs,
            symmetry="all",
            loader=loader,
            loss=loss,
            steps=steps,
            rate=0.02,
        )
        with torch.no_grad():
            losses.append(float(loss(merged(loader[0][0]), loader[0][1])))
    assert losses[1] < losses[0]
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_what_is_learned_for_many_repeats_keeps_functions_and_counts_weights() -> None:
    nets = [drawn(FORMS["GPT"], seed) for seed in (1, 2, 3)]
    given: dict[str, Any] = {
        "example_inputs": nets[0].batch(2, 0),
        "symmetry": "all",
        "loader": batches(nets[0]),
        "loss": loss,
        "steps": 4,
    }
    first, second, other = (
        fxrebasin.align_many(nets, "learned", seed=seed, **given) for seed in (0, 0, 1)
    )
    weighted = fxrebasin.align_many(nets, "learned", weights=[5, 1, 1], **given)
    assert first[0].is_identity
    states = [
        [found.apply(net.state_dict()) for found, net in zip(own, nets, strict=True)]
        for own in (first, second, other, weighted)
    ]
    for one, two in zip(states[0], states[1], strict=True):
        assert all(torch.equal(v, two[k]) for k, v in one.items())
    assert any(not torch.equal(v, states[2][1][k]) for k, v in states[0][1].items())
    assert any(not torch.equal(v, states[3][1][k]) for k, v in states[0][1].items())
    inputs = nets[0].batch(3, 7)
    for net, state in zip(nets, states[0], strict=True):
        same = copy.deepcopy(net)
        same.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(same(inputs), net(inputs), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("at", "is_known"), [(1, 0), (6, 1), (16, 2)])
def test_ctrl_c_gives_the_best_of_many_so_far(at: int, is_known: int) -> None:
    """While data of the second or the third model are seen, and while all are learned."""
    nets = [drawn(FORMS["GPT"], seed) for seed in (1, 2, 3)]
    loader = Interrupting(batches(nets[0]), at)
    given: dict[str, Any] = {"symmetry": "all", "loader": loader, "loss": loss, "steps": 9}
    inputs = nets[0].batch(2, 0)
    with pytest.warns(UserWarning, match="aligning was interrupted"):
        found = fxrebasin.align_many(nets, "learned", example_inputs=inputs, **given)
    elements = [bool(one.elements) for one in found]
    assert elements == [0 < k <= is_known for k in range(len(nets))], elements
    for net, one in zip(nets, found, strict=True):
        same = copy.deepcopy(net)
        same.load_state_dict(one.apply(net.state_dict()))
        with torch.no_grad():
            torch.testing.assert_close(same(inputs), net(inputs), atol=1e-9, rtol=1e-9)


def test_two_models_start_from_weights_too() -> None:
    nets = [drawn(FORMS["GPT"], seed) for seed in (1, 2)]
    found = fxrebasin.align_many(
        nets,
        "learned",
        example_inputs=nets[0].batch(2, 0),
        symmetry="all",
        loader=batches(nets[0]),
        loss=loss,
        steps=2,
        start="weight",
    )
    assert not found[1].is_identity


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("learned", {}, "needs loader and loss"),
        ("learned", {"states": 3}, "has no option 'states'"),
        ("learned", {"loader": [], "loss": loss, "start": "luck"}, "no start 'luck'"),
        ("merge_many", {"init": "growing"}, "has no option 'init'; its options are: none"),
        ("cycle_consistent", {}, "is for the methods 'learned', 'merge_many'"),
    ],
)
def test_options_are_checked_first(method: str, options: dict[str, Any], message: str) -> None:
    nets = [drawn(FORMS["GPT"], seed) for seed in (1, 2)]
    with pytest.raises(InputError, match=message):
        fxrebasin.align_many(
            nets, method, example_inputs=nets[0].batch(2, 0), symmetry="all", **options
        )


def test_permutations_of_many_are_not_learned() -> None:
    nets = [drawn(FORMS["GPT"], seed) for seed in (1, 2)]
    with pytest.raises(InputError, match="symmetry='signed' or 'all'"):
        fxrebasin.merge_many(nets, "learned", loader=batches(nets[0]), loss=loss)
