"""Methods over groups that look at data: `activation` and `learned`."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.errors import InputError
from fxrebasin.kinds import GroupKind
from fxrebasin.passes.match import concluding, group_learned
from fxrebasin.passes.match.concluding import polar
from fxrebasin.passes.match.middle import distances_midway
from tests.support.elements import elements_of
from tests.support.interrupting import Interrupting
from tests.support.randomise import randomise
from tests.support.tiny_transformers import Form, Transformer, drawn

FORMS = {
    "GPT": Form(layers=2, width=12, hidden=9, heads=3),
    "Llama": Form(
        layers=2, width=12, hidden=9, heads=3, centred=False, biases=False, rotary=True, gate=True
    ),
    "ViT": Form(length=9, inputs=4, outputs=4, patches=True, width=12, hidden=9, heads=3),
    "ReLU": Form(relu=True, width=12, hidden=9, heads=3),
}


def loss(outputs: Tensor, targets: Any) -> Tensor:
    """The mean square of what is put out, or the distance from targets."""
    return (outputs - (0 if targets is None else targets)).square().mean()


def planted(net: nn.Module, inputs: Tensor) -> nn.Module:
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert symmetry.groups is not None
    element = Alignment(symmetry.random(3), symmetry.groups, elements_of(symmetry))
    other = copy.deepcopy(net)
    other.load_state_dict(element.apply(net.state_dict()))
    return other


def batches(net: Transformer, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        return [(net.batch(24, k), net(net.batch(24, k))) for k in range(10, 10 + count)]


def transformed(other: nn.Module, net: Transformer, **options: Any) -> Any:
    inputs = net.batch(2, 0)
    return fxrebasin.transform(other, ref=net, example_inputs=inputs, symmetry="all", **options)


def apart(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    return max(float((one[k] - two[k]).norm() / two[k].norm()) for k in two)


@pytest.mark.parametrize("name", FORMS)
def test_activations_find_a_planted_element(name: str) -> None:
    net = drawn(FORMS[name], 1)
    other = planted(net, net.batch(2, 0))
    assert apart(other.state_dict(), net.state_dict()) > 0.5
    result = transformed(other, net, method="activation", loader=batches(net))
    assert apart(result.state_dict(), net.state_dict()) <= 1e-9


@pytest.mark.parametrize("name", ["tanh", "sin", "identity", "relu"])
def test_activations_find_signs_scales_and_matrices_of_perceptrons(name: str) -> None:
    function: Any = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "identity": nn.Identity()}.get(name)

    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()

    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(8, 7), function or Sine(), nn.Linear(7, 9)).double()
        inputs = torch.randn(60, 8).double()
    other = planted(net, inputs)
    assert apart(other.state_dict(), net.state_dict()) > 0.5
    result = fxrebasin.transform(
        other, net, inputs, symmetry="all", method="activation", loader=[inputs]
    )
    assert apart(result.state_dict(), net.state_dict()) <= 1e-9


@pytest.mark.parametrize("name", FORMS)
def test_learning_lowers_the_loss_between_and_keeps_the_function(name: str) -> None:
    net, other = drawn(FORMS[name], 1), drawn(FORMS[name], 2)
    loader = batches(net, 6)
    given: dict[str, Any] = {"method": "learned", "loader": loader, "loss": loss}
    found = [transformed(other, net, **given, steps=steps, rate=0.02) for steps in (1, 40)]
    losses = []
    for result in found:
        report = result.meta["fxrebasin"]
        assert report.equivalence.max_rel <= 1e-10
        assert any("Loss at the midpoint" in note for note in report.notes)
        state = {k: (v + result.state_dict()[k]) / 2 for k, v in net.state_dict().items()}
        between = copy.deepcopy(net)
        between.load_state_dict(state)
        with torch.no_grad():
            losses.append(sum(float(loss(between(x), y)) for x, y in loader[:1]))
    assert losses[1] < losses[0]


def test_what_is_learned_repeats_for_a_seed_and_leaves_no_trace() -> None:
    net, other = drawn(FORMS["Llama"], 1), drawn(FORMS["Llama"], 2)
    given: dict[str, Any] = {"method": "learned", "loader": batches(net), "loss": loss, "steps": 4}
    before = copy.deepcopy(other.state_dict()), torch.get_rng_state()
    first, second, third = (transformed(other, net, **given, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert apart(third.state_dict(), first.state_dict()) > 1e-9
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in before[0].items())
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("method", ["activation", "learned"])
@pytest.mark.parametrize("at", [1, 3, 9])
def test_ctrl_c_gives_the_best_so_far(method: str, at: int) -> None:
    net, other = drawn(FORMS["GPT"], 1), drawn(FORMS["GPT"], 2)
    loader = Interrupting(batches(net, 4 if method == "learned" else 9), at)
    given = {"loss": loss, "steps": 9} if method == "learned" else {}
    with pytest.warns(UserWarning, match="matching was interrupted"):
        result = transformed(other, net, method=method, loader=loader, **given)
    assert result.meta["fxrebasin"].equivalence.passed


def test_matrices_that_lose_digits_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = drawn(FORMS["GPT"], 1), drawn(FORMS["GPT"], 2)
    given: dict[str, Any] = {"method": "learned", "loader": batches(net), "loss": loss, "steps": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(group_learned, "_FAR", float("inf"))
        notes = transformed(other, net, **given).meta["fxrebasin"].notes
    assert any("largest condition number" in note for note in notes)
    monkeypatch.setattr(group_learned, "_FAR", 1.5)
    with pytest.warns(UserWarning, match="condition number of what acts on a class is"):
        transformed(other, net, **given)


def test_a_model_with_nothing_to_learn_says_so() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(30, 3).double()
    result = fxrebasin.transform(
        copy.deepcopy(net),
        net,
        x,
        symmetry="all",
        method="learned",
        loader=[(x, x[:, 0].long().abs() % 2)],
        loss=F.cross_entropy,
    )
    assert any("Nothing was learned" in note for note in result.meta["fxrebasin"].notes)


def test_half_precision_is_learned_in_float32() -> None:
    net, other = (drawn(FORMS["GPT"], seed).bfloat16() for seed in (1, 2))
    loader = [(x, y.bfloat16()) for x, y in batches(drawn(FORMS["GPT"], 1))]
    given: dict[str, Any] = {"method": "learned", "loader": loader, "loss": loss, "steps": 3}
    result = transformed(other, net, **given)
    assert result.state_dict()["head.weight"].dtype == torch.bfloat16
    assert result.meta["fxrebasin"].equivalence.passed


def test_options_are_checked_first() -> None:
    net = drawn(FORMS["GPT"], 1)
    with pytest.raises(InputError, match="no start 'luck'"):
        transformed(net, net, method="learned", loader=batches(net), loss=loss, start="luck")
    with pytest.raises(InputError, match="needs loader and loss"):
        transformed(net, net, method="learned")


@pytest.mark.parametrize("fix_ones", [False, True])
def test_the_polar_factor_is_the_closest_rotation(fix_ones: bool) -> None:
    drawn_matrix = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()
    [found] = polar(drawn_matrix, fix_ones=fix_ones)
    one = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(found @ found.mT, one)
    if fix_ones:
        torch.testing.assert_close(found.sum(1), torch.ones(8, dtype=torch.float64))
    best = float((drawn_matrix * found).sum())
    for seed in range(5):
        skew = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)).double() / 20
        skew = skew - skew.mT
        if fix_ones:
            skew = skew - skew.mean(0)
            skew = skew - skew.mean(1, keepdim=True)
        other = torch.linalg.matrix_exp(skew) @ found
        assert float((drawn_matrix * other).sum()) < best


def test_kinds_that_data_cannot_show_are_matched_by_weights() -> None:
    """Matrices within heads: no module reads them."""
    net = drawn(FORMS["GPT"], 1)
    symmetry = fxrebasin.analyze(net, net.batch(2, 0), symmetry="all")
    kinds = {c.kind for c in symmetry.classes if c.within}
    assert GroupKind.GENERAL_LINEAR in kinds
    other = planted(net, net.batch(2, 0))
    result = transformed(other, net, method="activation", loader=batches(net, 1), max_batches=1)
    certificate = result.meta["fxrebasin"].certificate
    moved = [c.name for c in symmetry.classes if c.kind is GroupKind.GENERAL_LINEAR]
    assert all(name in certificate.elements for name in moved)


def midway(net: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """How far the mean model is from the mean of both outputs."""
    between = copy.deepcopy(net)
    both = zip(net.state_dict().items(), other.state_dict().values(), strict=True)
    between.load_state_dict({k: (v + w) / 2 if v.is_floating_point() else v for (k, v), w in both})
    with torch.no_grad():
        return float((between(inputs) - (net(inputs) + other(inputs)) / 2).norm())


@pytest.mark.parametrize("normalised", [False, True])
def test_factors_of_units_are_taken_only_where_they_help(normalised: bool) -> None:
    """Where nothing mixes units, what data show is no worse midway than the permutation is."""
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)).double()
    nets = []
    with torch.random.fork_rng():
        for seed in range(5):
            torch.manual_seed(seed)
            layers = [nn.BatchNorm1d(12)] if normalised else []
            hidden = [nn.Linear(6, 12), *layers, nn.ReLU(), nn.Linear(12, 12), nn.ReLU()]
            nets.append(randomise(nn.Sequential(*hidden, nn.Linear(12, 4)).eval(), seed).double())
    better = 0
    for other in nets[1:]:
        found = [
            fxrebasin.transform(
                other, nets[0], inputs, symmetry=kinds, method="activation", loader=[inputs]
            )
            for kinds in ("permutation", "all")
        ]
        plain, larger = (midway(nets[0], result, inputs) for result in found)
        assert larger <= plain * (1 + 1e-9)
        better += larger < plain * 0.99
    assert better  # it is not always the permutation


@pytest.mark.parametrize("name", ["ViT", "ReLU"])
def test_matrices_are_taken_only_where_they_help(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that were never trained have little in common, and often are best left alone."""
    midways: list[list[float]] = []

    def distances(*given: Any) -> list[float]:
        midways.append(distances_midway(*given))
        return midways[-1]

    monkeypatch.setattr(concluding, "distances_midway", distances)
    nets, said = [drawn(FORMS[name], seed) for seed in range(1, 5)], 0
    for other in nets[1:]:
        result = transformed(other, nets[0], method="activation", loader=batches(nets[0]))
        report = result.meta["fxrebasin"]
        permuted, alone, mixed = midways[-1]
        note = any("left as they are" in note for note in report.notes)
        assert note is (min(permuted, alone) < mixed)
        assert note is not bool(report.certificate.elements)
        said += note
    assert 0 < said < len(nets) - 1


def test_signs_that_a_norm_does_not_show_are_found() -> None:
    """The scale of a norm stays where the units that it reads change their sign."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        layers = [nn.Linear(5, 16), nn.Tanh(), nn.RMSNorm(16, eps=1e-6), nn.Linear(16, 4)]
        net = randomise(nn.Sequential(*layers), 3).double()
        inputs = torch.randn(40, 5).double()
    other = planted(net, inputs)
    assert apart(other.state_dict(), net.state_dict()) > 0.5
    result = fxrebasin.transform(
        other, net, inputs, symmetry="all", method="activation", loader=[inputs]
    )
    assert apart(result.state_dict(), net.state_dict()) <= 1e-9
