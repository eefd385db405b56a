"""Matching: exact where a permutation was planted, never worse than before elsewhere."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from rich.console import Console

import fxrebasin
from fxrebasin import progress, terminal
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.match.methods import MatchResult, match_states
from fxrebasin.permutation import Permutation
from fxrebasin.solvers import coordinate_descent
from fxrebasin.solvers.families import make_families
from fxrebasin.solvers.pairs import joined, make_pairs
from fxrebasin.solvers.placement import Placement
from tests.support.synthetic import (
    ZOO,
    Synthetic,
    attention,
    deep,
    grouped_conv,
    grouped_query,
    mlp,
    recurrent,
    residual_mlp,
    tied,
    two_selectors,
)

State = dict[str, torch.Tensor]


def noisy(state: State, share: float, seed: int) -> State:
    """The state with normal noise of a share of each tensor's standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor
        + share * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        for name, tensor in state.items()
    }


def recovered(found: Permutation, planted: Permutation) -> float:
    """The share of units that are back in their place."""
    wanted = planted.inverse().arrays
    right = sum(int((found.arrays[n] == a).sum()) for n, a in wanted.items())
    return right / sum(a.size for a in wanted.values())


def objective(state_a: State, state_b: State) -> float:
    """The sum of inner products, in float64."""
    return sum(float((state_a[n].double() * state_b[n].double()).sum()) for n in state_a)


def assert_same(first: State, second: State) -> None:
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_is_undone_bit_for_bit(name: str, seed: int) -> None:
    model = ZOO[name]()
    a, planted = model.state(seed), model.random(seed + 100)
    b = planted.permute_state_dict(a)
    result = match_states(model, b, a, seed=seed)
    assert_same(result.permutation.permute_state_dict(b), a)
    assert result.distance_after == 0
    assert recovered(result.permutation, planted) == 1


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_noise_does_not_hide_a_planted_permutation(name: str, share: float) -> None:
    model = ZOO[name]()
    a, planted = model.state(1), model.random(7)
    b = noisy(planted.permute_state_dict(a), share, seed=3)
    assert recovered(match_states(model, b, a).permutation, planted) >= 0.99


@pytest.mark.parametrize("name", ZOO)
def test_unrelated_models_come_closer_and_never_less_than_from_the_identity(name: str) -> None:
    model = ZOO[name]()
    a, b = model.state(1), model.state(2)
    result = match_states(model, b, a)
    plain = match_states(model, b, a, init="identity")
    assert result.objective_before < plain.objective_after <= result.objective_after + 1e-4
    assert result.distance_after < result.distance_before


@pytest.mark.parametrize("name", ZOO)
def test_the_result_says_what_the_permutation_does(name: str) -> None:
    model = ZOO[name]()
    a, b = model.state(1), model.state(2)
    result = match_states(model, b, a)
    moved = result.permutation.permute_state_dict(b)
    counted = [n for n in a if n not in model.ties]
    a, b, moved = ({n: s[n] for n in counted} for s in (a, b, moved))
    assert result.objective_before == pytest.approx(objective(a, b), rel=1e-5, abs=1e-4)
    assert result.objective_after == pytest.approx(objective(a, moved), rel=1e-5)
    square = sum(float((a[n] - moved[n]).double().square().sum()) for n in a)
    assert result.distance_after == pytest.approx(math.sqrt(square), rel=1e-5)
    assert result.sweeps >= 0
    assert result.seconds > 0


@pytest.mark.parametrize("name", ["mlp", "attention", "grouped conv", "two selectors"])
def test_the_result_is_repeatable_and_touches_nothing(name: str) -> None:
    model = ZOO[name]()
    a, b = model.state(1), model.state(2)
    copies = [{n: t.clone() for n, t in s.items()} for s in (a, b)]
    draws = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (match_states(model, b, a, seed=5).permutation for _ in range(2))
    assert first == second
    assert_same(a, copies[0])
    assert_same(b, copies[1])
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (np.random.get_state()[1] == draws[1]).all()  # noqa: NPY002


def test_one_class_is_solved_exactly() -> None:
    model = mlp(3, 6, 2)
    for seed in range(5):
        a, b = model.state(seed), model.state(seed + 10)
        best = max(
            objective(
                a,
                Permutation(model.classes, {"h1": np.array(p)}, model.layout).permute_state_dict(b),
            )
            for p in itertools.permutations(range(6))
        )
        result = match_states(model, b, a, init="identity")
        assert result.objective_after == pytest.approx(best, rel=1e-5)


def test_heads_are_solved_exactly_with_what_is_inside() -> None:
    """All pairings of 3 heads, each at its best inside, by brute force."""
    s = Synthetic()
    h = s.declare("h", 3)
    d = s.declare("d", 3, (h,))
    s.linear("v", s.axis(0, (h, d)), 5)
    s.linear("o", 4, s.axis(1, (h, d)))
    a, b = s.state(0), s.state(1)
    gains = sum(
        torch.einsum("aik,bjk->abij", *(x.reshape(3, 3, -1).double() for x in sides))
        for sides in (
            (a["v.weight"], b["v.weight"]),
            (a["v.bias"], b["v.bias"]),
            (a["o.weight"].T, b["o.weight"].T),
        )
    )
    orders = list(itertools.permutations(range(3)))
    inside = [
        [max(sum(g[i, p[i]] for i in range(3)) for p in orders) for g in row] for row in gains
    ]
    best = max(sum(inside[i][p[i]] for i in range(3)) for p in orders)
    fixed = float((a["o.bias"] * b["o.bias"]).sum())
    result = match_states(s, b, a)
    assert result.objective_after == pytest.approx(float(best + fixed), rel=1e-5)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("init", ["evidence", "identity"])
def test_no_step_lowers_the_objective(
    name: str, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ZOO[name]()
    a, b = model.state(3), model.state(4)
    values = []
    original = coordinate_descent.CoordinateDescent._step

    def watched(self, k, *rest):
        original_set = original(self, k, *rest)
        if not rest:
            p = Permutation(model.classes, self.placement.arrays, model.layout)
            values.append(objective(a, p.permute_state_dict(b)))
        return original_set

    monkeypatch.setattr(coordinate_descent.CoordinateDescent, "_step", watched)
    match_states(model, b, a, init=init)
    slack = 1e-4 * max(map(abs, values), default=0)
    assert all(later >= earlier - slack for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("name", ZOO)
def test_gains_kept_up_to_date_are_those_computed_anew(name: str) -> None:
    model = ZOO[name]()
    a, b = model.state(1, torch.float64), model.state(2, torch.float64)
    names = [c.name for c in model.classes]
    pairs = joined(make_pairs(model.layout, a, b, list(model.layout)))
    families = make_families(model.classes, pairs, names)
    placement = Placement(model.identity().arrays, [])
    generator = np.random.default_rng(0)
    for seed, name_now in enumerate([*generator.permutation(names), *generator.permutation(names)]):
        placement.set({name_now: model.random(seed).arrays[name_now]})
        for family in families:
            for gram in family.all_grams():
                kept = gram.update(placement).clone()
                gram.forget()
                torch.testing.assert_close(kept, gram.update(placement), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ZOO)
def test_no_order_collects_more_than_what_is_within_reach(name: str) -> None:
    model = ZOO[name]()
    a = model.state(1, torch.float64)
    twin = model.random(3).permute_state_dict(a)
    pairs = make_pairs(model.layout, a, twin, list(model.layout))
    together = joined(pairs)
    for seed in range(20):
        arrays = model.random(seed).arrays
        placement = Placement(arrays, list(arrays))
        apart = [pair.agreement(placement) for pair in pairs]
        assert sum(pair.agreement(placement) for pair in together) == pytest.approx(sum(apart))
        for pair, found in zip(pairs, apart, strict=True):
            assert abs(found - pair.reach[0]) <= pair.reach[1] * (1 + 1e-9) + 1e-9
    reach = sum(pair.reach[1] for pair in pairs)
    assert sum(pair.reach[1] for pair in together) == pytest.approx(reach)
    home = Placement(model.random(3).inverse().arrays, list(arrays))
    found = sum(pair.agreement(home) - pair.reach[0] for pair in pairs)
    assert found == pytest.approx(reach)


def test_narrow_tensors_of_one_class_are_matched_together() -> None:
    layers = (torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    model = torch.nn.Sequential(*layers)
    symmetry = fxrebasin.analyze(model, torch.zeros(2, 5))
    state = {n: torch.randn(t.shape) for n, t in model.state_dict().items() if t.dim()}
    state["1.bias"] = torch.zeros(8)
    names = [n for n in symmetry.parameters if n != "2.bias"]
    pairs = joined(make_pairs(symmetry.layout, state, state, names))
    assert [pair.name for pair in pairs] == ["0.weight, 0.bias, 1.weight, 1.bias, 2.weight"]
    constant = ["1.bias"]
    assert pairs[0].telling_columns == pairs[0].a.shape[1] - len(constant)


def test_a_model_and_itself_are_left_alone_even_if_units_are_alike() -> None:
    model = residual_mlp()
    a = model.state(0)
    for name, tensor in a.items():
        if name.startswith("blocks.0.up"):
            tensor[3:9] = tensor[2]
            tensor[20:] = 0
    a["blocks.0.down.weight"][:, 3:9] = a["blocks.0.down.weight"][:, 2:3]
    a["blocks.0.down.weight"][:, 20:] = 0
    for init in ("auto", "identity"):
        assert match_states(model, a, a, init=init).permutation.is_identity


def test_constant_weights_say_nothing_and_move_nothing() -> None:
    for model in (attention(), grouped_conv(), residual_mlp()):
        ones = {name: torch.ones_like(tensor) for name, tensor in model.state(0).items()}
        assert match_states(model, ones, ones).permutation.is_identity
        zeros = {name: torch.zeros_like(tensor) for name, tensor in ones.items()}
        assert match_states(model, zeros, ones).permutation.is_identity


def test_units_that_are_nearly_dead_are_found_as_well() -> None:
    for model in (mlp(10, 30, 40, 6), attention(), residual_mlp(square=False)):
        a = model.state(0)
        for name, tensor in a.items():
            if any(g.axes == (0,) for g in model.layout.get(name, ())) and len(tensor) > 8:
                tensor[: len(tensor) // 4] *= 1e-5
        b = model.random(3).permute_state_dict(a)
        found = match_states(model, b, a).permutation
        assert_same(found.permute_state_dict(b), a)


def test_default_norm_weights_and_zero_heads_do_not_hide_a_permutation() -> None:
    model = residual_mlp(square=False)
    a = model.state(0)
    for name, tensor in a.items():
        if "norm" in name:
            tensor.fill_(1)
        if "bias" in name or "head" in name:
            tensor.zero_()
    b = model.random(3).permute_state_dict(a)
    assert_same(match_states(model, b, a).permutation.permute_state_dict(b), a)


def test_tied_tensors_count_once() -> None:
    model = tied()
    a, b = model.state(0), model.state(1)
    once = {n: t for n, t in a.items() if n != "unembed"}
    result = match_states(model, b, a)
    assert result.objective_before == pytest.approx(objective(once, b), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_every_floating_dtype_is_matched(dtype: torch.dtype) -> None:
    model = attention(blocks=1)
    a = model.state(0, dtype)
    b = model.random(1).permute_state_dict(a)
    moved = match_states(model, b, a).permutation.permute_state_dict(b)
    assert all(moved[n].dtype == dtype for n in a)
    assert all(torch.equal(moved[n].view(torch.uint8), a[n].view(torch.uint8)) for n in a)


def test_complex_weights_are_matched() -> None:
    s = Synthetic()
    s.declare("c", 20)
    s.add("w", (20, 3), s.axis(0, "c"))
    a = {"w": torch.randn(20, 3, dtype=torch.complex64)}
    b = s.random(1).permute_state_dict(a)
    assert_same(match_states(s, b, a).permutation.permute_state_dict(b), a)


def test_mixed_precision_is_matched() -> None:
    model = mlp(6, 20, 3)
    a = model.state(0)
    b = model.random(1).permute_state_dict({n: t.double() for n, t in a.items()})
    result = match_states(model, b, a)
    assert result.distance_after == 0


def with_buffers() -> Synthetic:
    """An MLP with running statistics and counters."""
    model = mlp(3, 12, 2)
    model.add("mean", (12,), model.axis(0, "h1"))
    model.add("steps", (12,), model.axis(0, "h1"))
    return model


def test_buffers_are_permuted_and_only_matched_if_asked() -> None:
    model = with_buffers()
    a, b = model.state(0), model.state(1)
    for state in (a, b):
        state["steps"] = torch.arange(12)
    # The statistics alone ask for the reverse order, and loudly.
    a["mean"], b["mean"] = torch.arange(12.0) * 100, torch.arange(12.0).flip(0) * 100
    parameters = [n for n in a if n.startswith("layers")]
    found = match_states(model, b, a, parameters=parameters)
    same = {n: (torch.zeros_like(t) if n == "mean" else t) for n, t in b.items()}
    assert found.permutation == match_states(model, same, a, parameters=parameters).permutation
    asked = match_states(model, b, a, parameters=parameters, match_buffers=True).permutation
    assert list(asked.arrays["h1"]) == list(range(11, -1, -1))
    assert list(asked.permute_state_dict(b)["steps"]) == list(range(11, -1, -1))
    assert asked == match_states(model, b, a).permutation


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        (residual_mlp(), ["h1"]),
        (residual_mlp(), ["r", "h0"]),
        (attention(), ["b0.h"]),
        (attention(), ["b0.qk", "b1.v"]),
        (grouped_conv(), ["b0.ci"]),
        (grouped_conv(), ["b0.g", "b0.co"]),
        (grouped_query(), ["kv", "e"]),
        (grouped_query(), ["g"]),
        (deep(), ["z"]),
        (deep(), ["x", "z"]),
        (deep(), ["y", "w"]),
        (two_selectors(), ["d"]),
        (two_selectors(), ["x", "d"]),
        (recurrent(), []),
    ],
)
def test_only_the_classes_that_may_move_do(model: Synthetic, allowed: list[str]) -> None:
    a, b = model.state(1), model.state(2)
    for init in ("auto", "identity"):
        result = match_states(model, b, a, classes=allowed, init=init)
        still = model.identity().arrays
        for name, array in result.permutation.arrays.items():
            assert name in allowed or np.array_equal(array, still[name])
        assert result.objective_after > result.objective_before or not allowed
    arrays = {c.name: model.random(3).arrays[c.name] for c in model.classes}
    planted = Permutation(
        model.classes, {n: arrays[n] if n in allowed else still[n] for n in arrays}, model.layout
    )
    b = planted.permute_state_dict(a)
    found = match_states(model, b, a, classes=allowed).permutation
    assert_same(found.permute_state_dict(b), a)


def test_few_pairs_of_many_groups_are_looked_at_and_the_right_ones_found() -> None:
    model = grouped_conv(width=24, groups=24, inner=3, blocks=1)
    a, planted = model.state(0), model.random(2)
    b = noisy(planted.permute_state_dict(a), 0.1, seed=0)
    assert recovered(match_states(model, b, a).permutation, planted) == 1
    other = model.state(1)
    assert match_states(model, other, a).objective_after > objective(a, other)


def test_a_class_in_no_tensor_is_left_alone() -> None:
    model = mlp(3, 5, 2)
    model.classes += (PermutationClass("ghost", 4), PermutationClass("inner", 2, ("ghost",)))
    a = model.state(0)
    b = model.random(1).permute_state_dict(a)
    found = match_states(model, b, a).permutation
    assert_same(found.permute_state_dict(b), a)
    assert list(found.arrays["ghost"]) == [0, 1, 2, 3]


def test_a_model_without_symmetry_gives_the_identity() -> None:
    model = Synthetic()
    model.add("w", (3, 3))
    result = match_states(model, model.state(0), model.state(1))
    assert result.permutation.is_identity
    assert result.objective_after == result.objective_before


def test_a_limit_on_sweeps_is_kept() -> None:
    model = residual_mlp()
    a, b = model.state(0), model.state(1)
    assert match_states(model, b, a, init="identity").sweeps > 1
    assert match_states(model, b, a, init="identity", max_sweeps=1).sweeps == 1


@pytest.mark.parametrize("after", [0, 1, 3, 9])
def test_an_interrupt_gives_the_best_so_far(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual_mlp()
    a, b = model.state(0), model.state(1)
    steps = itertools.count()
    original = coordinate_descent.assign

    def interrupted(*args):
        if next(steps) == after:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(coordinate_descent, "assign", interrupted)
    with pytest.warns(UserWarning, match="interrupted: the best permutation so far is used"):
        result = match_states(model, b, a)
    assert (result.objective_after > result.objective_before) == (after > 0)


def test_methods_and_options_are_checked_with_those_that_exist() -> None:
    model = mlp(3, 5, 2)
    a = model.state(0)
    assert isinstance(match_states(model, a, a, max_sweeps=3), MatchResult)
    with pytest.raises(InputError, match=r"no method 'psychic'; there are: .*weight"):
        match_states(model, a, a, method="psychic")
    with pytest.raises(InputError, match=r"no option 'sweep'; its options are: .*max_sweeps"):
        match_states(model, a, a, sweep=3)
    for sweeps in (0, -1, 1.5, True, "3"):
        with pytest.raises(InputError, match="max_sweeps is"):
            match_states(model, a, a, max_sweeps=sweeps)
    with pytest.raises(InputError, match="no start 'luck'; init is one of: auto"):
        match_states(model, a, a, init="luck")
    with pytest.raises(InputError, match="'h7', which this model does not have"):
        match_states(model, a, a, classes=["h1", "h7"])
    with pytest.raises(InputError, match="pass a list"):
        match_states(model, a, a, classes="h1")


def test_states_that_do_not_fit_are_refused_with_all_that_is_wrong() -> None:
    model = mlp(3, 5, 2)
    a, b = model.state(0), model.state(1)
    del a["layers.1.bias"]
    b["layers.2.weight"] = torch.zeros(2, 6)
    with pytest.raises(ArchitectureMismatchError) as caught:
        match_states(model, b, a)
    assert "layers.1.bias: missing in the reference" in str(caught.value)
    assert "layers.2.weight: model (2, 6), reference (2, 5)" in str(caught.value)
    short = {n: t[..., :1] for n, t in model.state(0).items()}
    with pytest.raises(ArchitectureMismatchError, match=r"layers.1.bias: has shape \(1,\); axes"):
        match_states(model, short, short)


def test_states_without_values_are_refused() -> None:
    model = mlp(3, 5, 2)
    a = model.state(0)
    with pytest.raises(InputError, match=r"layers.1.weight is on the meta device"):
        match_states(model, {n: t.to("meta") for n, t in a.items()}, a)
    for value in (math.nan, math.inf):
        broken = {**a, "layers.2.weight": torch.full((2, 5), value)}
        with pytest.raises(InputError, match=r"layers.2.weight holds values that are not finite"):
            match_states(model, broken, a)


def test_progress_is_silent_without_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)
    model = residual_mlp()
    match_states(model, model.state(0), model.state(1))
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_on_a_terminal_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    shown = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "progress_bar", lambda: terminal.progress_bar(shown))
    model = residual_mlp()
    match_states(model, model.state(0), model.state(1))
    assert screen.getvalue() == ""
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.0)
    match_states(model, model.state(0), model.state(1))
    assert "matching from evidence" in screen.getvalue()
    assert "4/4" in screen.getvalue()
