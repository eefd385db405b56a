"""Formulas of merging, held against closed forms and against other libraries' code."""

from __future__ import annotations

import math

import pytest
import torch

from fxrebasin.errors import InputError
from fxrebasin.merge import formulas
from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.combinations import Combination, Formula, combine
from fxrebasin.merge.views import StateView

NAMES = ("body.weight", "body.bias", "head.weight")


def states(count: int, dtype: torch.dtype = torch.float64) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(count)
    shapes = ((5, 4), (5,), (3, 5))
    return [
        {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in zip(NAMES, shapes, strict=True)
        }
        for _ in range(count)
    ]


def same(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance)


def test_mean_is_the_weighted_mean_and_weights_need_no_sum():
    a, b, c = states(3)
    found = formulas.mean([a, b, c], [1, 2, 5])
    same(found, {name: (a[name] + 2 * b[name] + 5 * c[name]) / 8 for name in NAMES})


def test_weights_by_pattern_and_the_last_that_fits_counts():
    a, b = states(2)
    weights = ByPattern((1.0, 1.0), (("body.*", (1.0, 0.0)), ("*.bias", (0.0, 1.0))))
    found = formulas.mean([a, b], weights)
    middle = (a["head.weight"] + b["head.weight"]) / 2
    expected = {"body.weight": a["body.weight"], "body.bias": b["body.bias"], "head.weight": middle}
    same(found, expected)


def test_weights_by_class_reach_all_tensors_that_the_class_moves():
    a, b = states(2)
    moved = {"body.weight": ("body.weight[0]",), "head.weight": ("body.weight[0]",)}
    weights = ByPattern((1.0, 0.0), (("class:body.weight[0]", (0.0, 1.0)),), moved)
    found = formulas.mean([a, b], weights)
    same(found, {**b, "body.bias": a["body.bias"]})
    weights.check(NAMES, "weights")
    with pytest.raises(InputError, match="no tensor fits 'class:body'"):
        ByPattern(0.0, (("class:body", 1.0),), moved).check(NAMES, "t")


def test_slerp_keeps_the_length_of_vectors_of_equal_length_and_turns_evenly():
    angle = 1.2
    a = {"w": torch.tensor([[3.0, 0.0]], dtype=torch.float64)}
    turned = [[3 * math.cos(angle), 3 * math.sin(angle)]]
    b = {"w": torch.tensor(turned, dtype=torch.float64)}
    for t in (0.0, 0.3, 0.5, 1.0):
        expected = [[3 * math.cos(t * angle), 3 * math.sin(t * angle)]]
        same(formulas.slerp(a, b, t), {"w": torch.tensor(expected, dtype=torch.float64)})


def test_slerp_of_vectors_in_line_is_the_straight_line():
    a = {"w": torch.tensor([1.0, 2.0]), "zero": torch.zeros(2)}
    b = {"w": torch.tensor([2.0, 4.0]), "zero": torch.tensor([1.0, 0.0])}
    found = formulas.slerp(a, b, ByPattern(0.5, (("zero", 0.25),)))
    same(found, {"w": torch.tensor([1.5, 3.0]), "zero": torch.tensor([0.25, 0.0])})


def test_slerp_takes_complex_tensors_as_vectors_of_their_parts():
    a, b = ({"w": torch.tensor([z], dtype=torch.complex128)} for z in (2, 2j))
    half = torch.tensor([math.sqrt(2) * (1 + 1j)], dtype=torch.complex128)
    same(formulas.slerp(a, b, 0.5), {"w": half})


def test_task_arithmetic_adds_differences():
    a, b, base = states(3)
    found = formulas.task_arithmetic([a, b], base, [0.5, -2], scale=0.3)
    expected = {n: base[n] + 0.3 * (0.5 * (a[n] - base[n]) - 2 * (b[n] - base[n])) for n in NAMES}
    same(found, expected)
    same(formulas.task_arithmetic([a], base, [1]), a)
    same(formulas.task_arithmetic([a], base, [0]), base, rtol=0, atol=0)


def test_ties_on_the_example_of_its_steps():
    """Trim to 3 of 4, elect by the larger sum, mean of those that agree, scaled."""
    base = {"w": torch.tensor([10.0, 10.0, 10.0, 10.0])}
    tasks = ([6.0, -2.0, 1.0, 3.0], [2.0, 5.0, -4.0, 0.5], [-3.0, 1.0, -2.0, 4.0])
    tuned = [{"w": base["w"] + torch.tensor(task)} for task in tasks]
    # trimmed:  [6, -2, 0, 3]   [2, 5, -4, 0]   [-3, 0, -2, 4]
    # signs:    +               +               -               +
    # means:    4               5               -3              3.5
    found = formulas.ties(tuned, base, [1, 1, 1], density=0.75, scale=2)
    same(found, {"w": torch.tensor([18.0, 20.0, 4.0, 17.0])})


def test_ties_with_weights_elects_and_averages_by_them():
    base = {"w": torch.zeros(2)}
    tuned = [{"w": torch.tensor([4.0, 2.0])}, {"w": torch.tensor([-3.0, 6.0])}]
    found = formulas.ties(tuned, base, [1, 3], density=1)
    same(found, {"w": torch.tensor([-3.0, 5.0])})


def test_ties_agrees_with_peft():
    merging = pytest.importorskip("peft.utils.merge_utils")
    a, b, c, base = states(4)
    found = formulas.ties([a, b, c], base, [1, 1, 1], density=0.4)
    for name in NAMES:
        tasks = [state[name] - base[name] for state in (a, b, c)]
        weights = torch.ones(3, dtype=torch.float64)
        merged = merging.ties(tasks, weights, density=0.4)
        torch.testing.assert_close(found[name], base[name] + merged)


def test_dare_keeps_the_expected_share_and_rescales_it():
    base = {"w": torch.full((200, 200), 1.5, dtype=torch.float64)}
    tuned = {"w": base["w"] + torch.arange(1, 40001, dtype=torch.float64).reshape(200, 200)}
    found = formulas.dare([tuned], base, [1], density=0.25, scale=0.5, seed=3)["w"] - base["w"]
    kept = found != 0
    torch.testing.assert_close(found[kept], 0.5 * 4 * (tuned["w"] - base["w"])[kept])
    assert abs(float(kept.double().mean()) - 0.25) < 0.01


def test_dare_draws_by_seed_place_and_name():
    a, b, base = states(3)
    first = formulas.dare([a, b], base, [1, 1], density=0.5, seed=1)
    same(formulas.dare([a, b], base, [1, 1], density=0.5, seed=1), first, rtol=0, atol=0)
    fewer = [{"head.weight": state["head.weight"]} for state in (a, b, base)]
    alone = formulas.dare(fewer[:2], fewer[2], [1, 1], density=0.5, seed=1)
    assert torch.equal(alone["head.weight"], first["head.weight"])
    other = formulas.dare([a, b], base, [1, 1], density=0.5, seed=2)
    assert any(not torch.equal(other[name], first[name]) for name in NAMES)
    same(
        formulas.dare([a, b], base, [1, 1], density=1),
        formulas.task_arithmetic([a, b], base, [1, 1]),
    )


@pytest.mark.parametrize("formula", Formula)
def test_half_precision_is_computed_in_single_and_rounded_once(formula):
    own = states(3, torch.bfloat16)
    wide = [{name: tensor.float() for name, tensor in state.items()} for state in own]
    how = Combination(formula, density=ByPattern(0.6), scale=0.7, t=ByPattern(0.3))
    (*models, base), (*wide_models, wide_base) = (own, wide)
    found = combine(models, how, base)
    expected = combine(wide_models, how, wide_base)
    same(found, {n: t.to(torch.bfloat16) for n, t in expected.items()}, rtol=0, atol=0)


@pytest.mark.parametrize("formula", Formula)
def test_ties_stay_ties_buffers_are_averaged_and_infinities_stay(formula):
    base, a, b = (
        {
            "w": state["body.weight"],
            "again": state["body.weight"],
            "mask": torch.tensor([0.0, -torch.inf]),
            "running_var": state["body.bias"].abs(),
            "count": torch.tensor(k),
        }
        for k, state in enumerate(states(3))
    )
    how = Combination(formula, density=ByPattern(1.0), scale=3.0)
    found = combine([a, b], how, base, buffers=["running_var"], ties=[("w", "again")])
    assert found["w"] is found["again"]
    assert list(found) == list(a)
    torch.testing.assert_close(found["running_var"], (a["running_var"] + b["running_var"]) / 2)
    assert torch.equal(found["mask"], a["mask"])
    assert found["count"] == 1
    assert not torch.equal(found["w"], a["w"])


def test_what_is_kept_is_that_of_the_first_model_whatever_the_others_have():
    a, b = states(2)
    del b["head.weight"]
    found = combine([a, b], Combination(), kept=["head.weight"])
    assert torch.equal(found["head.weight"], a["head.weight"])
    assert found["head.weight"] is not a["head.weight"]


def test_nothing_is_modified():
    own = states(3)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in own]
    for formula in Formula:
        combine(own[:2], Combination(formula), own[2])["body.weight"].add_(1)
    for state, old in zip(own, before, strict=True):
        same(state, old, rtol=0, atol=0)


def test_a_view_permutes_what_is_looked_up():
    import fxrebasin

    net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    order = fxrebasin.analyze(net, torch.ones(1, 2)).random(0)
    state = {**net.state_dict(), "extra": torch.ones(1)}
    view = StateView(state, permutation=order)
    same(dict(view), {**order.permute_state_dict(net.state_dict()), "extra": torch.ones(1)})


@pytest.mark.parametrize(
    ("how", "count", "base", "message"),
    [
        (Combination(Formula.TIES), 2, False, "base model: name it"),
        (Combination(Formula.MEAN), 2, True, "no use for a base"),
        (Combination(Formula.SLERP), 3, False, "between two models; there are 3"),
        (Combination(Formula.SLERP, ByPattern((1.0, 1.0))), 2, False, "position t"),
        (Combination(weights=ByPattern((1.0,))), 2, False, "1 numbers for 2 models"),
        (Combination(weights=ByPattern((1.0, -1.0))), 2, False, "none below 0"),
        (Combination(weights=ByPattern((0.0, 0.0))), 2, False, "not only 0"),
        (Combination(weights=ByPattern((math.nan, 0.0))), 2, False, "finite"),
        (Combination(Formula.TIES, ByPattern((1.0, -1.0))), 2, True, "TIES takes none below 0"),
        (Combination(Formula.DARE, density=ByPattern(0.0)), 2, True, "above 0"),
        (Combination(Formula.DARE, density=ByPattern(1.5)), 2, True, "at most 1"),
        (Combination(Formula.TIES, scale=math.inf), 2, True, "no usable number"),
        (Combination(Formula.SLERP, t=ByPattern(1.5)), 2, False, "t is 1.5"),
        (Combination(Formula.SLERP, t=ByPattern(-0.1)), 2, False, "t is -0.1"),
        (Combination(Formula.SLERP, t=ByPattern(math.nan)), 2, False, "t is nan"),
        (Combination(Formula.SLERP, t=ByPattern(0.5, (("w", 2.0),))), 2, False, "t is 2.0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(how, count, base, message):
    with pytest.raises(InputError, match=message):
        how.check(count, base)


def test_numbers_are_looked_at_wherever_states_are_combined():
    with pytest.raises(InputError, match=r"t is 1\.5"):
        combine(states(2), Combination(Formula.SLERP, t=ByPattern(1.5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e5m2])
@pytest.mark.parametrize("formula", [Formula.TASK_ARITHMETIC, Formula.TIES, Formula.DARE])
def test_numbers_that_get_too_large_for_their_dtype_are_refused(formula, dtype):
    a, b = states(2, dtype)
    usual = Combination(formula, ByPattern((2.0, 0.5)), density=ByPattern(0.5), scale=3.0)
    found = combine([a, b], usual, {name: torch.zeros_like(tensor) for name, tensor in a.items()})
    assert all(torch.isfinite(tensor.float()).all() for tensor in found.values())
    large = Combination(formula, ByPattern((2.0, 0.5)), density=ByPattern(0.5), scale=1e39)
    with pytest.raises(InputError, match=r"body\.weight would hold infinities or NaN"):
        combine([a, b], large, {name: torch.zeros_like(tensor) for name, tensor in a.items()})


@pytest.mark.parametrize("formula", [Formula.MEAN, Formula.SLERP])
def test_numbers_that_one_model_alone_does_not_have_are_refused(formula):
    a, b = states(2)
    b["body.bias"][2] = math.nan
    with pytest.raises(InputError, match=r"body\.bias would hold infinities or NaN"):
        combine([a, b], Combination(formula))
    a["body.bias"][2] = math.nan
    assert combine([a, b], Combination(formula))["body.bias"].isnan().any()
