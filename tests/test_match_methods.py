"""Every matching method: exact permutations that keep the function, on networks of many kinds."""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import random
import sys
from collections.abc import Iterable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.passes.match.methods import METHODS, match_states
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.representatives import find_representatives
from fxrebasin.permutation import Permutation
from fxrebasin.solvers.coordinate_descent import CoordinateDescent
from tests.support.small_nets import Attention, Residual, SelfAttention, unsettled
from tests.support.synthetic import ZOO


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 10),
        nn.LayerNorm(10),
        nn.ReLU(),
        nn.Linear(10, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


def images(seed: int, count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def vectors(seed: int, count: int = 24) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int, count: int = 8) -> torch.Tensor:
    return torch.randint(20, (count, 7), generator=torch.Generator().manual_seed(seed))


NETS = {"mlp": (mlp, vectors), "grouped conv": (Residual, images), "attention": (Attention, tokens)}


def loss(outputs: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Squared error; the targets may be left out."""
    return (outputs - (0 if targets is None else targets)).square().mean()


class Task:
    """Two networks of one kind, with data."""

    def __init__(self, name: str, planted: bool) -> None:
        build, draw = NETS[name]
        self.a = unsettled(build(), seed=1)
        self.inputs = draw(0)
        self.symmetry = fxrebasin.analyze(self.a, self.inputs)
        if planted:
            self.b = copy.deepcopy(self.a)
            self.b.load_state_dict(self.symmetry.random(5).permute_state_dict(self.a.state_dict()))
        else:
            torch.manual_seed(1)
            self.b = unsettled(build(), seed=2)
        with torch.no_grad():
            self.loader = [(draw(k), self.a(draw(k))) for k in range(3)]

    def options(self, method: str) -> dict[str, Any]:
        return {
            "weight": {"restarts": 2},
            "activation": {"loader": self.loader},
            "frank_wolfe": {"restarts": 1, "max_steps": 20},
            "sinkhorn": {"steps": 15},
            "sinkhorn, loss": {"loader": self.loader, "loss": loss, "epochs": 3},
            "straight_through": {"loader": self.loader, "loss": loss, "epochs": 2},
            "learned": {"loader": self.loader, "loss": loss, "steps": 6},
        }[method]

    def match(self, method: str, seed: int = 0, **changes: Any) -> Permutation:
        return fxrebasin.match(
            self.b,
            self.a,
            self.inputs,
            method=method.split(",")[0],
            seed=seed,
            **{**self.options(method), **changes},
        )


CASES = [*METHODS, "sinkhorn, loss"]


def test_a_method_takes_one_problem_and_no_method_imports_another() -> None:
    homes = {function.__module__ for function in METHODS.values()}
    assert len(homes) == len(METHODS)
    for name, function in METHODS.items():
        problem, *options = inspect.signature(function).parameters.values()
        assert problem.annotation == "MatchingProblem", name
        assert all(option.kind is option.KEYWORD_ONLY for option in options), name
        source = ast.parse(inspect.getsource(sys.modules[function.__module__]))
        imported = {node.module for node in ast.walk(source) if isinstance(node, ast.ImportFrom)}
        assert not imported & homes, name


def test_a_problem_is_checked_when_it_is_posed_and_stays_as_it_is() -> None:
    model = ZOO["attention"]()
    a, b = model.state(1), model.state(2)
    with pytest.raises(InputError, match="which this model does not have"):
        MatchingProblem(model, b, a, classes=["nowhere"])
    with pytest.raises(ArchitectureMismatchError, match="missing in the reference"):
        MatchingProblem(model, b, {})
    problem = MatchingProblem(model, b, a, classes=[model.classes[0].name])
    assert problem.free == (model.classes[0].name,)
    with pytest.raises(FrozenInstanceError):
        problem.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize("net", NETS)
def test_the_function_is_unchanged_and_nothing_else_either(net: str, method: str) -> None:
    task = Task(net, planted=False)
    before = [copy.deepcopy(m.state_dict()) for m in (task.a, task.b)]
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    g = fxrebasin.transform(
        task.b, task.a, task.inputs, method=method.split(",")[0], **task.options(method)
    )
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (np.random.get_state()[1] == draws[1]).all()  # noqa: NPY002
    assert random.getstate() == draws[2]
    report = g.meta["fxrebasin"]
    assert report.equivalence.passed
    assert report.equivalence.max_rel <= 1e-10
    assert not report.certificate.is_identity
    for model, state in zip((task.a, task.b), before, strict=True):
        assert not model.training
        assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    assert task.match(method) == report.certificate


@pytest.mark.parametrize("method", [m for m in CASES if m != "sinkhorn, loss"])
@pytest.mark.parametrize("net", NETS)
def test_a_planted_permutation_is_found(net: str, method: str) -> None:
    task = Task(net, planted=True)
    moved = task.match(method).permute_state_dict(task.b.state_dict())
    assert all(torch.equal(moved[n], tensor) for n, tensor in task.a.state_dict().items())


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("method", ["frank_wolfe", "sinkhorn"])
def test_a_planted_permutation_is_found_in_every_layout(name: str, method: str) -> None:
    model = ZOO[name]()
    a = model.state(0)
    b = model.random(1).permute_state_dict(a)
    options = {"steps": 15} if method == "sinkhorn" else {}
    result = match_states(model, b, a, method=method, **options)
    assert result.distance_after == 0


@pytest.mark.parametrize("name", ZOO)
def test_frank_wolfe_is_not_below_weight_and_restarts_not_below_none(name: str) -> None:
    model = ZOO[name]()
    a, b = model.state(1), model.state(2)
    plain = match_states(model, b, a).objective_after
    slack = 1e-5 * abs(plain)
    assert match_states(model, b, a, method="frank_wolfe").objective_after >= plain - slack
    more = match_states(model, b, a, restarts=4).objective_after
    assert more >= plain - slack


def test_frank_wolfe_and_restarts_find_more_where_there_is_more() -> None:
    model = ZOO["grouped conv"]()
    a, b = model.state(1), model.state(2)
    plain = match_states(model, b, a).objective_after
    assert match_states(model, b, a, method="frank_wolfe").objective_after > 1.05 * plain
    assert match_states(model, b, a, restarts=10).objective_after > 1.02 * plain


def test_a_soft_map_of_a_permutation_is_that_permutation() -> None:
    from fxrebasin.solvers.pairs import folded, unfolded
    from fxrebasin.solvers.relaxed import Relaxation, mixed
    from fxrebasin.solvers.weight_problem import WeightProblem

    for name, build in ZOO.items():
        model = build()
        a = model.state(1, torch.float64)
        names = [c.name for c in model.classes]
        relaxation = Relaxation(
            WeightProblem(model.classes, model.layout, a, a, list(model.layout), names)
        )
        p = model.random(4)
        maps = relaxation.corner(p.arrays)
        moved = p.permute_state_dict(a)
        for tensor, groups in model.layout.items():
            soft = mixed(unfolded(a[tensor], groups), groups, maps)
            torch.testing.assert_close(folded(soft, groups, a[tensor].shape), moved[tensor])
        found = relaxation.rounded(maps)
        assert all(np.array_equal(found[n], p.arrays[n]) for n in names), name


@pytest.mark.parametrize("method", ["straight_through", "sinkhorn, loss"])
def test_the_midpoint_does_not_get_worse(method: str) -> None:
    task = Task("mlp", planted=False)
    start = "weight" if method == "straight_through" else None
    first = fxrebasin.match(task.b, task.a, task.inputs) if start else task.symmetry.identity()

    def midpoint(p: Permutation) -> float:
        moved = p.permute_state_dict(task.b.state_dict())
        state = {
            n: torch.lerp(t, moved[n], 0.5) if t.is_floating_point() else t
            for n, t in task.a.state_dict().items()
        }
        between = copy.deepcopy(task.a)
        between.load_state_dict(state)
        between[4].train()
        with torch.no_grad():
            return sum(float(loss(between(x), y)) for x, y in task.loader)

    assert midpoint(task.match(method)) <= midpoint(first) * 1.0001


def test_activations_pair_units_that_weights_cannot_tell() -> None:
    """B has units of another scale, and a last layer that makes up for it."""
    torch.manual_seed(3)
    a = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    symmetry = fxrebasin.analyze(a)
    b = copy.deepcopy(a)
    scale = torch.logspace(-2, 2, 20)
    with torch.no_grad():
        b[0].weight.mul_(scale[:, None])
        b[0].bias.mul_(scale)
        b[2].weight.div_(scale)
    planted = symmetry.random(1)
    b.load_state_dict(planted.permute_state_dict(b.state_dict()))
    found = fxrebasin.match(b, a, method="activation", loader=[vectors(k) for k in range(4)])
    assert found == planted.inverse()


def test_every_class_of_the_test_networks_is_seen_by_some_module() -> None:
    from fxrebasin.running.batches import runner

    for name in NETS:
        task = Task(name, planted=False)
        with runner(task.b, 0) as running:
            (batch, *_) = running.batches([task.inputs], None)
            found = find_representatives(
                running,
                task.symmetry.classes,
                task.symmetry.layout,
                running.own(task.b.state_dict()),
                batch,
            )
        pieces = [piece for r in found for piece in r.group.pieces]
        seen = {slot.class_name for piece in pieces for slot in piece.slots}
        assert {c.name for c in task.symmetry.classes} <= seen, name


def test_classes_that_no_output_shows_are_matched_by_weights_and_named() -> None:
    a, b = (unsettled(SelfAttention(), seed=k) for k in (1, 1))
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    symmetry = fxrebasin.analyze(a, x)
    b.load_state_dict(symmetry.random(2).permute_state_dict(a.state_dict()))
    g = fxrebasin.transform(b, a, x, method="activation", loader=[x])
    (note,) = (n for n in g.meta["fxrebasin"].notes if "matched by their weights" in n)
    assert all(c.name in note for c in symmetry.classes)
    assert all(torch.equal(g.state_dict()[n], t) for n, t in a.state_dict().items())


class Tied(nn.Module):
    """Embedding and output share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.output = nn.Linear(6, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        inner = self.embedding(tokens)
        return self.output(inner + self.hidden(inner))


def test_activations_of_tied_weights() -> None:
    model = Tied().eval()
    data = torch.randint(0, 11, (40, 5), generator=torch.Generator().manual_seed(0))
    planted = fxrebasin.analyze(model, data).random(seed=0)
    moved = copy.deepcopy(model)
    moved.load_state_dict(planted.permute_state_dict(model.state_dict()))
    found = fxrebasin.match(moved, model, data, method="activation", loader=[data])
    assert found == planted.inverse()


@pytest.mark.parametrize("symmetry", ["permutation", "signed"])
def test_a_first_batch_of_equal_rows_does_not_pass_for_units(symmetry: str) -> None:
    """As many rows as units, all alike: they fit every permutation of the units."""
    model = unsettled(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), 1).double()
    planted = fxrebasin.analyze(model).random(seed=2)
    other = copy.deepcopy(model)
    other.load_state_dict(planted.permute_state_dict(model.state_dict()))
    rows = torch.randn(45, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loader = [rows[:1].repeat(8, 1), rows[:40], rows[40:]]
    moved = fxrebasin.transform(
        model, other, rows, method="activation", loader=loader, symmetry=symmetry
    )
    for name, tensor in other.state_dict().items():
        assert torch.equal(moved.state_dict()[name], tensor)


class Interrupting:
    """A loader that is interrupted by Ctrl-C at a batch."""

    def __init__(self, batches: Iterable[Any], at: int) -> None:
        self._batches, self._left = list(batches), at

    def __iter__(self) -> Any:
        for batch in self._batches:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            yield batch


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("method", ["activation", "straight_through", "sinkhorn, loss", "learned"])
def test_ctrl_c_in_the_loader_gives_the_best_so_far(method: str, at: int) -> None:
    task = Task("attention", planted=True)
    loader = Interrupting([*task.loader, *task.loader], at)
    with pytest.warns(UserWarning, match="interrupted: the best permutation so far is used"):
        found = task.match(method, loader=loader)
    moved = copy.deepcopy(task.b)
    moved.load_state_dict(found.permute_state_dict(task.b.state_dict()))
    assert fxrebasin.verify(task.b, moved, task.inputs).passed
    assert not task.b.training


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("frank_wolfe", "fxrebasin.solvers.frank_wolfe.FrankWolfe._step"),
        ("sinkhorn", "fxrebasin.solvers.sinkhorn.SinkhornAscent.step"),
    ],
)
def test_ctrl_c_in_an_ascent_gives_the_best_so_far(
    method: str, where: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxrebasin.solvers import frank_wolfe, sinkhorn

    owner = frank_wolfe.FrankWolfe if method == "frank_wolfe" else sinkhorn.SinkhornAscent
    name = where.rpartition(".")[2]
    original, count = getattr(owner, name), itertools.count()

    def interrupted(self: Any, *args: Any) -> Any:
        if next(count) == at:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(owner, name, interrupted)
    model = ZOO["attention"]()
    a, b = model.state(1), model.state(2)
    with pytest.warns(UserWarning, match="interrupted: the best permutation so far is used"):
        result = match_states(model, b, a, method=method)
    assert result.objective_after >= result.objective_before


def test_ctrl_c_in_a_projection_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = CoordinateDescent.descend, itertools.count()

    def interrupted(self: CoordinateDescent, *args: Any) -> None:
        if next(count) == 3:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(CoordinateDescent, "descend", interrupted)
    task = Task("attention", planted=False)
    with pytest.warns(UserWarning, match="interrupted: the best permutation so far") as told:
        task.match("straight_through")
    assert next(count) == 4
    assert len(told) == 1


def test_only_the_classes_that_may_move_do() -> None:
    task = Task("attention", planted=False)
    (kept, *moving) = [c.name for c in task.symmetry.classes if not c.within]
    still = task.symmetry.identity().arrays
    for method in CASES:
        found = task.match(method, classes=moving)
        assert np.array_equal(found.arrays[kept], still[kept]), method


def test_what_is_missing_is_said_with_what_to_pass() -> None:
    net = mlp().eval()

    def match(method: str, **options: Any) -> None:
        fxrebasin.match(net, net, method=method, **options)

    with pytest.raises(InputError, match=r"'activation' needs loader; pass loader=\.\.\., any it"):
        match("activation")
    with pytest.raises(
        InputError, match=r"needs loader and loss; pass loader=.*; and loss=.*cross"
    ):
        match("straight_through")
    with pytest.raises(InputError, match=r"needs loss; pass loss="):
        match("straight_through", loader=[vectors(0)])
    with pytest.raises(InputError, match="needs a loss as well"):
        match("sinkhorn", loader=[vectors(0)])
    with pytest.raises(InputError, match="needs a loader as well"):
        match("sinkhorn", loss=loss)
    with pytest.raises(InputError, match="an iterator, which can be gone through only once"):
        match("straight_through", loader=iter([vectors(0)]), loss=loss)
    with pytest.raises(InputError, match="of type int, not iterable"):
        match("activation", loader=3)
    with pytest.raises(InputError, match="gives no batches"):
        match("activation", loader=[])
    with pytest.raises(InputError, match="batch 0 of the loader has 3 parts"):
        match("activation", loader=[(1, 2, 3)])
    with pytest.raises(InputError, match="does not run on batch 1 of the loader: RuntimeError"):
        match("activation", loader=[vectors(0), torch.zeros(2, 5)])
    with pytest.raises(InputError, match="one finite number"):
        match("straight_through", loader=[vectors(0)], loss=lambda x, y: x.sum() * torch.nan)
    for option in ("budget", "rate"):
        for value in (0, -1.0, float("nan"), "1", True):
            method = "frank_wolfe" if option == "budget" else "sinkhorn"
            with pytest.raises(InputError, match=f"{option} is"):
                match(method, **{option: value})


def test_a_budget_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ZOO["residual"]()
    a, b = model.state(1), model.state(2)
    for method in ("weight", "frank_wolfe"):
        result = match_states(model, b, a, method=method, budget=0.3)
        assert 0.25 < result.seconds < 5


def test_batches_come_as_tensors_tuples_and_dicts_in_any_dtype() -> None:
    task = Task("mlp", planted=True)
    forms = [
        [x for x, _ in task.loader],
        [(x,) for x, _ in task.loader],
        [[x, y] for x, y in task.loader],
        [((x,), y) for x, y in task.loader],
        [({"input": x}, y) for x, y in task.loader],
        [{"input": x} for x, _ in task.loader],
        [x.double() for x, _ in task.loader],
        iter([x for x, _ in task.loader]),
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(vectors(3)), batch_size=8, shuffle=True
        ),
    ]
    found = [task.match("activation", loader=form, max_batches=3) for form in forms]
    assert all(p == found[0] for p in found)


def test_a_shuffling_loader_is_repeatable_and_draws_nothing() -> None:
    task = Task("mlp", planted=False)
    data = torch.utils.data.TensorDataset(vectors(1, 60), F.one_hot(torch.arange(60) % 4).float())
    loader = torch.utils.data.DataLoader(data, batch_size=20, shuffle=True)
    before = torch.get_rng_state()
    first = task.match("straight_through", loader=loader)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert task.match("straight_through", loader=loader) == first
