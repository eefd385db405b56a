"""Merging many models: planted copies, consistency, objective, weights, files, interrupts."""

from __future__ import annotations

import copy
import itertools
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxrebasin
import fxrebasin.merge.many
import fxrebasin.merge.sources
from fxrebasin.demo.networks import DigitsMLP, DigitsResNet
from fxrebasin.errors import ArchitectureMismatchError, CheckpointError, InputError
from fxrebasin.merge import align_many, merge_many
from fxrebasin.merge.alignment import MeanAlignment
from fxrebasin.permutation import Permutation
from fxrebasin.solvers.frank_wolfe import FrankWolfe
from fxrebasin.solvers.joint import JointRelaxation
from fxrebasin.solvers.weight_problem import WeightProblem
from fxrebasin.solvers.weight_search import Start, WeightSearch
from fxrebasin.storage.checkpoint import save_state_dict
from tests.support.small_nets import Attention, Residual, unsettled
from tests.support.synthetic import ZOO


class Transformer(nn.Module):
    """Token embeddings, a block with heads, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 4, 12, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.tokens(ids)))


NETS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "mlp": (lambda: DigitsMLP(12), torch.ones(2, 1, 8, 8)),
    "resnet": (lambda: DigitsResNet(6), torch.ones(2, 1, 8, 8)),
    "grouped": (Residual, torch.ones(2, 3, 8, 8)),
    "transformer": (Transformer, torch.arange(14).reshape(2, 7)),
}
METHODS = ("merge_many", "cycle_consistent")
SHORT: dict[str, dict[str, int]] = {"merge_many": {}, "cycle_consistent": {"max_steps": 5}}


def models_of(name: str, count: int) -> list[nn.Module]:
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append(unsettled(NETS[name][0](), seed))
    return found


def copies_of(name: str, count: int) -> list[nn.Module]:
    """A model and copies of it with their units in random orders."""
    (model,) = models_of(name, 1)
    symmetry = fxrebasin.analyze(model, NETS[name][1])
    copies = [copy.deepcopy(model) for _ in range(count - 1)]
    for seed, planted in enumerate(copies):
        planted.load_state_dict(symmetry.random(seed).permute_state_dict(model.state_dict()))
    return [model, *copies]


def permuted(models: list[nn.Module], permutations: Any) -> list[dict[str, torch.Tensor]]:
    pairs = zip(permutations, models, strict=True)
    return [p.permute_state_dict(model.state_dict()) for p, model in pairs]


def agreement(models: list[nn.Module], permutations: Any = None) -> float:
    """Sum over all pairs of the inner product of their parameters, in float64."""
    states = [model.state_dict() for model in models]
    if permutations is not None:
        states = permuted(models, permutations)
    names = [name for name, _ in models[0].named_parameters()]
    return sum(
        float((one[name].double() * other[name].double()).sum())
        for one, other in itertools.combinations(states, 2)
        for name in names
    )


def assert_same(model: nn.Module, other: nn.Module) -> None:
    assert list(model.state_dict()) == list(other.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_planted_copies_merge_back_to_their_model(name: str, method: str) -> None:
    models = copies_of(name, 3)
    before = [copy.deepcopy(m.state_dict()) for m in models]
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    merged = merge_many(models, method, example_inputs=NETS[name][1], **SHORT[method])
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (np.random.get_state()[1] == draws[1]).all()  # noqa: NPY002
    assert random.getstate() == draws[2]
    assert_same(merged, models[0])
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_planted_permutations_are_found(method: str) -> None:
    models, inputs = copies_of("transformer", 3), NETS["transformer"][1]
    symmetry = fxrebasin.analyze(models[0], inputs)
    permutations = align_many(models, method, example_inputs=inputs, **SHORT[method])
    assert permutations[0].is_identity
    for seed, p in enumerate(permutations[1:]):
        assert p.compose(symmetry.random(seed)).is_identity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_aligned_models_compute_what_they_did_and_agree_more(name: str, method: str) -> None:
    models = models_of(name, 3)
    inputs = NETS[name][1]
    permutations = align_many(models, method, example_inputs=inputs, **SHORT[method])
    assert permutations[0].is_identity
    assert agreement(models, permutations) > 1.05 * agreement(models)
    for model, p in zip(models, permutations, strict=True):
        assert fxrebasin.verify(model, fxrebasin.apply(model, p, inputs), inputs).passed


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_permutations(method: str) -> None:
    models = models_of("mlp", 3)
    torch.manual_seed(1)
    first = align_many(models, method, seed=3, **SHORT[method])
    torch.manual_seed(2)
    assert align_many(models, method, seed=3, **SHORT[method]) == first


@pytest.mark.parametrize("method", METHODS)
def test_maps_between_models_are_consistent_around_every_cycle(method: str) -> None:
    models = models_of("transformer", 3)
    to_all = align_many(models, method, example_inputs=NETS["transformer"][1], **SHORT[method])

    def between(i: int, j: int) -> Permutation:
        return to_all[j].inverse().compose(to_all[i])

    for i, j, k in itertools.permutations(range(3), 3):
        assert between(j, k).compose(between(i, j)) == between(i, k)
        assert between(i, j).compose(between(j, i)).is_identity


def test_pairwise_matches_are_not_consistent_by_themselves() -> None:
    """What the maps through one order have and single matches lack."""
    models = models_of("mlp", 3)
    a, b, c = models
    direct = fxrebasin.match(c, a)
    around = fxrebasin.match(b, a).compose(fxrebasin.match(c, b))
    assert around != direct


@pytest.mark.parametrize("options", [{"restarts": 2, "max_steps": 3}, {"max_steps": 1}])
def test_cycle_consistent_is_not_below_merge_many(options: dict[str, int]) -> None:
    models = models_of("mlp", 3)
    one = align_many(models, "merge_many")
    two = align_many(models, "cycle_consistent", **options)
    assert agreement(models, two) >= agreement(models, one) * (1 - 1e-9)


def test_frank_wolfe_finds_more_where_there_is_more() -> None:
    models = models_of("resnet", 3)
    inputs = NETS["resnet"][1]
    one, two = (align_many(models, method, example_inputs=inputs) for method in METHODS)
    assert agreement(models, two) > 1.005 * agreement(models, one)


@pytest.mark.parametrize("method", METHODS)
def test_no_model_can_be_aligned_better_with_the_others(method: str) -> None:
    models = models_of("mlp", 3)
    options: dict[str, Any] = {"max_steps": 3}
    if method == "merge_many":
        options = {"init": "identity"}
    states = permuted(models, align_many(models, method, **options))
    for index, model in enumerate(models):
        others = [state for k, state in enumerate(states) if k != index]
        mean = {name: sum(state[name] for state in others) / 2 for name in states[0]}
        moved = copy.deepcopy(model)
        moved.load_state_dict(states[index])
        assert fxrebasin.match(moved, mean, init="identity").is_identity


def test_the_joint_objective_is_the_sum_over_pairs_and_its_slopes_are_right() -> None:
    for name in ("attention", "grouped conv"):
        model = ZOO[name]()
        states = [model.state(k, torch.float64) for k in range(3)]
        weights = [0.5, 0.3, 0.2]
        names = [c.name for c in model.classes]
        problems = [
            WeightProblem(model.classes, model.layout, states[0], state, list(model.layout), names)
            for state in states
        ]
        joint = JointRelaxation(problems, weights)
        drawn = [model.random(k) for k in (1, 2)]
        moved = [states[0]] + [
            p.permute_state_dict(s) for p, s in zip(drawn, states[1:], strict=True)
        ]
        expected = sum(
            weights[i] * weights[j] * float((moved[i][n] * moved[j][n]).sum())
            for i, j in itertools.combinations(range(3), 2)
            for n in model.layout
        )
        corner = joint.corner([p.arrays for p in drawn])
        assert joint.value(corner) == pytest.approx(expected, rel=1e-12)
        assert abs(expected) < joint.scale
        rounded = joint.rounded(corner)
        for p, arrays in zip(drawn, rounded, strict=True):
            assert all(np.array_equal(arrays[n], p.arrays[n]) for n in names)
        centre = joint.centre()
        way = {n: corner[n] - m for n, m in centre.items()}
        value, slopes = joint.gradient(centre)
        step = 1e-5
        ahead, behind = (
            joint.value({n: m + sign * step * way[n] for n, m in centre.items()})
            for sign in (1, -1)
        )
        slope = sum(float((slopes[n] * way[n]).sum()) for n in way)
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-6)
        lengths = np.linspace(0, 1, joint.degree + 3)
        values = [joint.value({n: m + t * way[n] for n, m in centre.items()}) for t in lengths]
        fitted = np.polynomial.Polynomial.fit(lengths[:-2], values[:-2], joint.degree)
        assert fitted(lengths) == pytest.approx(values, rel=1e-8)
        assert value == pytest.approx(values[0])


def test_frank_wolfe_climbs_at_every_step() -> None:
    model = ZOO["attention"]()
    states = [model.state(k, torch.float64) for k in range(3)]
    names = [c.name for c in model.classes]
    problems = [
        WeightProblem(model.classes, model.layout, states[0], state, list(model.layout), names)
        for state in states
    ]
    joint = JointRelaxation(problems, [1 / 3] * 3)
    ascent = FrankWolfe(joint, joint.centre())
    values = [joint.value(ascent.maps)]
    ascent.run(8, float("inf"), lambda step: values.append(joint.value(ascent.maps)))
    assert len(values) > 3
    assert all(later >= earlier for earlier, later in itertools.pairwise(values))
    for m in ascent.maps.values():
        torch.testing.assert_close(m.sum(-1), torch.ones_like(m.sum(-1)))
        torch.testing.assert_close(m.sum(-2), torch.ones_like(m.sum(-2)))


def test_the_mean_is_weighted_and_keeps_what_is_no_number() -> None:
    models = models_of("resnet", 3)
    for k, model in enumerate(models):
        model.stem[1].num_batches_tracked.fill_(10 + k)
    models[0].train()
    merged = merge_many(models, weights=[1, 1, 6])
    assert type(merged) is type(models[0])
    assert merged.training
    for name, tensor in merged.state_dict().items():
        values = [model.state_dict()[name] for model in models]
        if tensor.is_floating_point():
            expected = (values[0] + values[1] + 6 * values[2]) / 8
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    assert merged.stem[1].num_batches_tracked == 12
    assert merge_many(models).stem[1].num_batches_tracked == 10
    assert_same(merge_many(models[1:2]), models[1])
    options: dict[str, Any] = {"weights": [2, 1, 1], "example_inputs": NETS["resnet"][1]}
    aligned = merge_many(models, "merge_many", **options)
    permutations = align_many(models, **options)
    states = permuted(models, permutations)
    for name, tensor in aligned.state_dict().items():
        if tensor.is_floating_point():
            expected = states[0][name] / 2 + states[1][name] / 4 + states[2][name] / 4
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_ties_masks_and_half_precision_survive() -> None:
    class Masked(Transformer):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
            self.register_buffer("scratch", torch.rand(3), persistent=False)

    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(Masked().half().eval())
    merged = merge_many(models, "merge_many", example_inputs=NETS["transformer"][1])
    assert merged.head.weight is merged.tokens.weight
    assert torch.equal(merged.mask, models[0].mask)
    assert torch.equal(merged.scratch, models[0].scratch)
    assert merged.scratch.data_ptr() != models[0].scratch.data_ptr()
    exact = sum(model.head.weight.double() for model in models) / 3
    mean = merge_many(models)
    assert mean.head.weight.dtype == torch.float16
    assert (mean.head.weight - exact).abs().max() <= exact.abs().max() * 2**-11


def test_weights_decide_whom_the_others_follow() -> None:
    """With all the weight on one model, the others are matched to it alone."""
    models = models_of("mlp", 3)
    permutations = align_many(models, weights=[1, 1, 1000.0])
    for index in (0, 1):
        found = permutations[2].inverse().compose(permutations[index])
        moved = copy.deepcopy(models[index])
        moved.load_state_dict(found.permute_state_dict(models[index].state_dict()))
        assert fxrebasin.match(moved, models[2], init="identity").is_identity
    even = align_many(models)
    assert even != permutations


@pytest.mark.parametrize("method", ["mean", *METHODS])
def test_files_give_what_modules_give(method: str, tmp_path: Path) -> None:
    models = models_of("grouped", 3)
    paths: list[Any] = []
    for k, model in enumerate(models):
        paths.append(tmp_path / f"{k}{('.safetensors', '.pt', '.pth')[k]}")
        save_state_dict(paths[-1], model.state_dict())
    inputs = NETS["grouped"][1]
    options: dict[str, Any] = {"weights": [1, 2, 3], **SHORT.get(method, {})}
    expected = merge_many(models, method, example_inputs=inputs, **options)
    architecture = unsettled(Residual(), 9)
    found = merge_many(paths, method, example_inputs=inputs, model=architecture, weights=[1, 2, 3])
    assert_same(found, expected)
    mixed = merge_many([models[0], str(paths[1]), paths[2]], method, **options)
    assert_same(mixed, expected)


@pytest.mark.parametrize("count", [2, 7])
def test_files_are_read_once_and_again_for_each_sweep(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of("mlp", count)
    paths = [tmp_path / f"{k}.safetensors" for k in range(count)]
    for path, model in zip(paths, models, strict=True):
        save_state_dict(path, model.state_dict())
    loaded: list[weakref.ref[torch.Tensor]] = []
    most = aligned = 0
    read, align = fxrebasin.merge.sources.states_of, MeanAlignment._align

    def watched(*args: Any) -> Any:
        nonlocal most
        states = read(*args)
        loaded.append(weakref.ref(states[1]["head.weight"]))
        most = max(most, sum(ref() is not None for ref in loaded))
        return states

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal aligned
        aligned += 1
        return align(*args, **options)

    monkeypatch.setattr(fxrebasin.merge.sources, "states_of", watched)
    monkeypatch.setattr(MeanAlignment, "_align", counted)
    architecture, inputs = DigitsMLP(12), NETS["mlp"][1]
    merge_many(paths, "mean", model=architecture)
    assert len(loaded) == count
    loaded.clear()
    merge_many(paths, "merge_many", model=architecture, example_inputs=inputs)
    # to look at their constants, in each sweep, and for the proof and the mean
    assert len(loaded) <= (count if count == 2 else aligned + 2 * count)
    assert aligned >= count
    assert most == 2


def test_an_architecture_is_analysed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    analyses = []
    analyse = fxrebasin.merge.many.symmetry_of

    def counted(*args: Any) -> Any:
        analyses.append(1)
        return analyse(*args)

    monkeypatch.setattr(fxrebasin.merge.many, "symmetry_of", counted)
    for method in METHODS:
        align_many(models_of("mlp", 3), method, **SHORT[method])
    assert len(analyses) == 2
    merge_many(models_of("mlp", 2))
    assert len(analyses) == 2


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_gives_the_best_so_far(
    method: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of("mlp", 4)
    count = itertools.count()
    start = WeightSearch.start

    def interrupted(self: WeightSearch, name: Start) -> None:
        if next(count) == at:
            raise KeyboardInterrupt
        start(self, name)

    monkeypatch.setattr(WeightSearch, "start", interrupted)
    with pytest.warns(UserWarning, match="interrupted: the best permutation so far is used"):
        permutations = align_many(models, method)
    assert next(count) == at + 1
    assert agreement(models, permutations) >= agreement(models)
    for model, p in zip(models, permutations, strict=True):
        assert fxrebasin.verify(model, fxrebasin.apply(model, p)).passed


@pytest.mark.parametrize("at", [0, 2])
def test_ctrl_c_in_frank_wolfe_is_not_below_what_was_known(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of("mlp", 3)
    known = agreement(models, align_many(models, "merge_many"))
    count = itertools.count()
    step = FrankWolfe._step

    def interrupted(self: FrankWolfe) -> bool:
        if next(count) == at:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(FrankWolfe, "_step", interrupted)
    with pytest.warns(UserWarning, match="interrupted: the best permutation so far is used"):
        permutations = align_many(models, "cycle_consistent", restarts=3)
    assert next(count) == at + 1
    assert agreement(models, permutations) >= known * (1 - 1e-9)


def test_what_cannot_be_merged_is_refused_before_any_work(tmp_path: Path) -> None:
    models = models_of("mlp", 2)
    with pytest.raises(InputError, match=r"no method 'median'; there are: cycle_consistent, mean,"):
        merge_many(models, "median")
    with pytest.raises(InputError, match="no method 'mean'"):
        align_many(models, "mean")
    with pytest.raises(InputError, match="'mean' has no option 'init'; its options are: none"):
        merge_many(models, init="identity")
    with pytest.raises(InputError, match="has no option 'init'; its options are: max_steps, rest"):
        merge_many(models, "cycle_consistent", init="identity")
    with pytest.raises(InputError, match="no start 'best'"):
        merge_many(models, "merge_many", init="best")
    for option in ("max_steps", "restarts"):
        with pytest.raises(InputError, match=f"{option} is -1"):
            merge_many(models, "cycle_consistent", **{option: -1})
    with pytest.raises(InputError, match="max_sweeps is 0"):
        merge_many(models, "merge_many", max_sweeps=0)
    with pytest.raises(InputError, match="models is empty"):
        merge_many([])
    with pytest.raises(InputError, match="models is a DigitsMLP; pass a list"):
        merge_many(models[0])
    with pytest.raises(InputError, match="weights has 1 numbers for 2 models"):
        merge_many(models, weights=[1])
    for weights in (["a", 1], [None, 1], 3):
        with pytest.raises(InputError, match="pass one number for each model"):
            merge_many(models, weights=weights)
    for weights in ([1, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(InputError, match="they have to be numbers above 0"):
            merge_many(models, weights=weights)
    with pytest.raises(ArchitectureMismatchError, match=r"models\[1\]"):
        merge_many([models[0], Attention()])
    with pytest.raises(CheckpointError, match="does not exist"):
        merge_many([models[0], tmp_path / "nothing.pt"])
    with pytest.raises(InputError, match="pass model=, a module of their architecture"):
        merge_many([tmp_path / "nothing.pt"])
    with torch.no_grad():
        models[1].head.bias[0] = torch.nan
    with pytest.raises(InputError, match=r"models\[1\] cannot be used.*head\.bias"):
        merge_many(models)
