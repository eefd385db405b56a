"""What holds of groups beyond permutations whatever the model: unknowns, balance, inputs, ties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from click.testing import CliRunner
from torch import Tensor, nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.cli import main
from fxrebasin.kinds import GroupKind
from fxrebasin.models.untying import untied
from fxrebasin.passes.match.balance import Balanced
from fxrebasin.passes.match.group_problem import GroupProblem
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.seats import seats_of
from tests.support.elements import elements_of
from tests.support.randomise import randomise
from tests.support.tiny_transformers import Form, Transformer, drawn

LLAMA = Form(
    layers=1, width=8, hidden=6, heads=2, centred=False, biases=False, rotary=True, gate=True
)
GPT = Form(width=8, hidden=6, heads=2)


@torch.library.custom_op("fxrebasin_tests::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    """Nothing is known of it."""
    return x.flip(-1).cumsum(-1)


@opaque.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Between(nn.Module):
    """Three layers of units, of which something unusual is done to the second."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 5)
        self.third, self.last = nn.Linear(5, 7), nn.Linear(7, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        made = self.function(self.second(self.first(x).relu()))
        found: Tensor = self.last(self.third(made).relu())
        return found


def test_an_unknown_operator_pins_units_and_says_so() -> None:
    symmetry = fxrebasin.analyze(Between(opaque), torch.randn(3, 4), symmetry="all")
    assert {c.size: c.kind for c in symmetry.classes} == dict.fromkeys((6, 7), GroupKind.POSITIVE)
    assert ("second.weight", 0) in symmetry.pins
    assert "unknown operator of fxrebasin_tests.opaque" in symmetry.explain("second.weight", 0)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("median", lambda x: x.median(0, keepdim=True)[0] + x),
        ("logcumsumexp", lambda x: torch.logcumsumexp(x, 0)),
        ("sort", lambda x: x.sort(0)[0]),
    ],
)
def test_an_operator_that_no_group_is_known_of_leaves_permutations(
    name: str, function: Callable[[Tensor], Tensor]
) -> None:
    symmetry = fxrebasin.analyze(Between(function), torch.randn(3, 4), symmetry="all")
    kinds = {c.size: c.kind for c in symmetry.classes}
    assert kinds == dict.fromkeys((6, 7), GroupKind.POSITIVE) | {5: GroupKind.PERMUTATION}
    text = symmetry.explain("second.weight", 0)
    assert f"No larger one: aten.{name}." in text
    assert "test_larger_groups.py" in text


class Experts(nn.Module):
    """A matrix for each row of the inputs, picked by the largest of its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.matrices = nn.Parameter(torch.randn(4, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        own = self.matrices[x.argmax(-1)]
        found: Tensor = self.last((own @ self.first(x).unsqueeze(-1)).squeeze(-1))
        return found


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (Experts(), GroupKind.GENERAL_LINEAR),
        (Between(lambda x: x[torch.arange(6).flip(0)]), GroupKind.GENERAL_LINEAR),
        (Between(lambda x: x[:, [4, 2, 0, 1, 3]]), GroupKind.GENERAL_LINEAR),
        (Between(lambda x: x[:, x.new_tensor([4, 2, 0, 1, 3]).long()]), GroupKind.PERMUTATION),
    ],
)
def test_units_are_followed_where_indices_pick(net: nn.Module, expected: GroupKind) -> None:
    net, inputs = net.double().eval(), torch.randn(6, 4).double()
    symmetry = fxrebasin.analyze(net, inputs, symmetry="all")
    assert all(c.kind is expected for c in symmetry.classes if c.size == 5)
    assert symmetry.groups is not None
    element = Alignment(symmetry.random(3), symmetry.groups, elements_of(symmetry))
    other = copy.deepcopy(net)
    other.load_state_dict(element.apply(net.state_dict()))
    torch.testing.assert_close(other(inputs), net(inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", [GPT, LLAMA])
def test_both_sides_of_balanced_heads_have_equal_moments(form: Form) -> None:
    net = drawn(form, 1)
    symmetry = fxrebasin.analyze(net, net.batch(3, 0), symmetry="all")
    groups = symmetry.groups
    assert groups is not None
    state = {k: v.detach().double() for k, v in net.state_dict().items()}
    plain = MatchingProblem(symmetry, state, state, list(state), net, 0)
    problem = GroupProblem(plain, (*symmetry.permuted, *groups.turned), groups, state, state)
    there = Balanced.of(problem).problem.state_b

    def moments(held: Any, own: Any) -> list[Tensor]:
        found = []
        for side in (1, -1):
            rows = [seat.rows(held) for seat in own if seat.variance == side]
            found.append(sum(item @ item.mT for item in rows))
        return found

    kinds = set()
    for c in problem.classes:
        kind, own = groups.kinds[c.name].kind, seats_of(problem)[c.name]
        if kind not in (GroupKind.GENERAL_LINEAR, GroupKind.COMPLEX_PAIRS):
            continue
        (one, two), before = moments(there, own), moments(state, own)
        if kind is GroupKind.COMPLEX_PAIRS:  # sizes of pairs are what may be chosen
            partner = torch.tensor(groups.kinds[c.name].partner)
            items = (*before, one, two)
            *before, one, two = (d + d[:, partner] for d in (m.diagonal(0, 1, 2) for m in items))
        assert not torch.allclose(before[0], before[1], rtol=0.1)
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9 * float(one.abs().max()))
        kinds.add(kind)
    wanted = {GroupKind.GENERAL_LINEAR, *([GroupKind.COMPLEX_PAIRS] if form.rotary else [])}
    assert kinds == wanted


def bits(net: nn.Module) -> dict[str, bytes]:
    """All numbers of a model, bit for bit."""
    return {k: v.numpy().tobytes() for k, v in net.state_dict().items()}


def loss(outputs: Tensor, targets: Any) -> Tensor:
    """Of no meaning."""
    return outputs.square().mean()


@pytest.mark.parametrize("method", ["weight", "activation", "learned"])
def test_models_are_left_as_they_are_also_with_threads(method: str) -> None:
    one, two = drawn(GPT, 1), drawn(GPT, 2)
    inputs = one.batch(3, 0)
    before = bits(one), bits(two)
    given: dict[str, Any] = {} if method == "weight" else {"loader": [(inputs, inputs)] * 2}
    given |= {"loss": loss, "steps": 3} if method == "learned" else {}

    def aligned(models: tuple[Transformer, Transformer]) -> dict[str, bytes]:
        options = {"example_inputs": inputs, "symmetry": "all", "method": method}
        return bits(fxrebasin.transform(*models, **options, **given))

    with ThreadPoolExecutor(2) as threads:
        there, back = threads.map(aligned, [(two, one), (one, two)])
    assert (bits(one), bits(two)) == before
    assert there != before[1]
    assert back != before[0]
    state = {k: v.clone() for k, v in two.state_dict().items()}
    fxrebasin.match(two, one, inputs, symmetry="all").apply(state)
    assert {k: v.numpy().tobytes() for k, v in state.items()} == before[1]


def perceptron() -> nn.Sequential:
    """Units whose sign may change."""
    return nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def test_merge_on_the_command_line_takes_larger_groups(tmp_path: Path) -> None:
    """B is A in another order with other signs: the mean is A, which permutations do not reach."""
    torch.manual_seed(0)
    net, other = perceptron(), perceptron()
    order, sign = torch.randperm(9), torch.tensor([1.0, -1, 1, -1, 1, 1, -1, 1, -1])
    state = net.state_dict()
    moved = {
        "0.weight": state["0.weight"][order] * sign[:, None],
        "0.bias": state["0.bias"][order] * sign,
        "2.weight": state["2.weight"][:, order] * sign,
        "2.bias": state["2.bias"],
    }
    other.load_state_dict(moved)
    files = [tmp_path / name for name in ("a.pt", "b.pt")]
    for path, item in zip(files, (state, moved), strict=True):
        torch.save(item, path)

    def merged(symmetry: str) -> dict[str, Tensor]:
        out = tmp_path / f"{symmetry}.pt"
        common = ["merge", "tests.test_larger_groups:perceptron", *map(str, files), "--out"]
        given = [*common, str(out), "--input-shape", "2,4", "--symmetry", symmetry]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 0, result.output
        found: dict[str, Tensor] = torch.load(out)
        return found

    def apart(found: dict[str, Tensor]) -> float:
        return max(float((found[k] - v).abs().max()) for k, v in state.items())

    assert apart(merged("all")) <= 1e-12
    assert apart(merged("permutation")) > 0.1


def test_a_copy_of_the_head_makes_a_tied_transformer_whole() -> None:
    """An element of the untied model, planted, is found where ties are given up."""
    torch.manual_seed(0)
    config = t.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=6, vocab_size=20)
    net = randomise(t.GPT2LMHeadModel(config).eval()).double()
    inputs = torch.randint(0, 20, (2, 6))
    small, whole = (
        fxrebasin.analyze(m, inputs, symmetry="all") for m in (net, untied(copy.deepcopy(net)))
    )
    assert small.classes[0].kind is not GroupKind.ORTHOGONAL_FIXING_ONES
    assert whole.dimension() > small.dimension()
    assert whole.groups is not None
    element = Alignment(whole.random(3), whole.groups, elements_of(whole))
    other = untied(copy.deepcopy(net))
    other.load_state_dict(element.apply(other.state_dict()))
    result = fxrebasin.transform(other, net, inputs, symmetry="all", untie=True)
    for key, value in net.state_dict().items():
        moved = result.state_dict()[key]
        assert float((moved - value).norm()) <= 1e-9 * float(value.norm()), key
    plain = fxrebasin.transform(copy.deepcopy(net), net, inputs, symmetry="all")
    assert any("with tensors tied (lm_head.weight to" in n for n in plain.meta["fxrebasin"].notes)


class Shared(nn.Module):
    """Two parameters over one memory, as a whole or in part, that no module ties."""

    def __init__(self, part: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.again = nn.Parameter(self.last.weight.data[:part])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        back = nn.functional.linear(self.last(h)[:, : len(self.again)].tanh(), self.again.t())
        found: Tensor = self.last(h) + self.last(back)
        return found


@pytest.mark.parametrize("part", [3, 2])
def test_parameters_over_one_memory_are_one(part: int) -> None:
    a, b = Shared(part).double(), Shared(part).double()
    for seed, model in enumerate((a, b)):
        model.again = nn.Parameter(model.last.weight.data[:part])
        randomise(model, seed)
    inputs = torch.randn(4, 5, dtype=torch.float64)
    data = [(torch.randn(8, 5).double(), torch.randn(8, 3).double()) for _ in range(4)]
    options = {"loader": data, "loss": nn.functional.mse_loss, "steps": 20}
    for method in ("weight", "learned"):
        own = options if method == "learned" else {}
        found = fxrebasin.transform(b, a, inputs, symmetry="all", method=method, **own)
        loaded = Shared(part).double()
        loaded.again = nn.Parameter(loaded.last.weight.data[:part])
        loaded.load_state_dict(found.state_dict())
        assert torch.allclose(loaded(-inputs), b(-inputs), rtol=0, atol=1e-10)
    classes = fxrebasin.analyze(b, inputs, symmetry="all").classes
    assert [c.kind for c in classes] == [GroupKind.PERMUTATION] * (part == 3)


class Complex(nn.Module):
    """Complex numbers that are of no class, beside units that are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.fixed = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        turned = x.softmax(-1).to(torch.complex128) @ self.fixed
        return torch.view_as_real(turned), self.last(self.first(x).tanh())


@pytest.mark.parametrize("symmetry", ["signed", "all"])
def test_complex_numbers_that_no_unit_has_stay(symmetry: str) -> None:
    a, b = Complex().double(), Complex().double()
    inputs = torch.randn(4, 5, dtype=torch.float64)
    found = fxrebasin.transform(b, a, inputs, symmetry=symmetry)
    assert torch.equal(found.get_parameter("fixed"), b.fixed)
    assert not torch.equal(found.get_parameter("first.weight"), b.first.weight)
    for own, other in zip(found(-inputs), b(-inputs), strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["activation", "learned"])
def test_signs_within_heads_are_none_of_the_heads(method: str) -> None:
    form = Form(layers=1, width=8, hidden=6, heads=2, centred=False, biases=True, rotary=False)
    a, b = (drawn(form, seed) for seed in (3, 13))
    inputs = torch.randint(0, form.inputs, (4, form.length))
    data = [(inputs.roll(k, 0), inputs.roll(k, 0)) for k in range(4)]
    options = {"loader": data}
    if method == "learned":
        options |= {"loss": lambda out, target: out.square().mean(), "steps": 2}
    symmetry = fxrebasin.analyze(b, inputs, symmetry="signed")
    assert {GroupKind.SIGNED, GroupKind.PERMUTATION} == {c.kind for c in symmetry.classes}
    found = fxrebasin.transform(b, a, inputs, symmetry="signed", method=method, **options)
    other = torch.randint(0, form.inputs, (3, 5))
    assert torch.allclose(found(other), b(other), rtol=1e-4, atol=1e-5)


class Elsewhere(nn.Module):
    """Reads a weight by another way than its name."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        weight = self.last.weight
        self.way, self.kept = way, [self.first.weight]
        self.read = lambda h: nn.functional.linear(h, weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "closure":
            return self.read(self.first(x).relu())
        return self.last(nn.functional.linear(x, self.kept[0], self.first.bias).relu())


@pytest.mark.parametrize("way", ["closure", "list"])
def test_weights_that_are_read_by_another_way_are_no_constants(way: str) -> None:
    a, b = (randomise(Elsewhere(way).double(), seed) for seed in (1, 2))
    inputs = torch.randn(4, 5, dtype=torch.float64)
    symmetry = fxrebasin.analyze(b, inputs, symmetry="all")
    assert [c.kind for c in symmetry.classes] == [GroupKind.PERMUTATION]
    assert any("by another way than its name" in note for note in symmetry.notes)
    found = fxrebasin.transform(b, a, inputs, symmetry="all")
    assert torch.allclose(found(-inputs), b(-inputs), rtol=0, atol=1e-12)


def test_units_are_summed_on_a_tensor_with_one_axis() -> None:
    class Penalised(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), self[0].bias.pow(2).sum()

    model = randomise(Penalised(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), 1)
    [units] = fxrebasin.analyze(model, torch.randn(2, 5), symmetry="all").classes
    assert units.kind is GroupKind.SIGNED
