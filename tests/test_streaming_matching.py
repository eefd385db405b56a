"""Matching of checkpoints that pass through memory is coordinate descent, exactly."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.solvers.weight_search import WeightSearch
from fxrebasin.streaming import dealing, matching
from fxrebasin.streaming.matching import FileMatch
from fxrebasin.streaming.states import Progress
from tests.support.streamed import IDS, Case, Counting, Meeting, Stack, chain, matched

VECTORS = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
MODELS: dict[str, tuple[Callable[[], nn.Module], torch.Tensor]] = {
    "stack": (Stack, IDS),
    "meeting": (Meeting, VECTORS),
    "chain": (chain, torch.randn(2, 20, generator=torch.Generator().manual_seed(0))),
}


def attention() -> tuple[nn.Module, torch.Tensor]:
    """Units within heads, all of which are visited together."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=90, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), IDS


def case_of(name: str, **more: Any) -> Case:
    make = MODELS.get(name)
    model, inputs = attention() if make is None else (make[0](), make[1])
    return Case(model, inputs, **more)


@pytest.mark.parametrize("name", [*MODELS, "attention"])
def test_a_planted_permutation_is_found(name: str) -> None:
    case = case_of(name)
    found, _ = matched(case)
    assert found.settled
    moved = case.in_memory().permuted(found.arrays)
    assert all(torch.equal(moved[n], t) for n, t in case.a.items())
    assert found.distance_before > 1
    assert found.distance_after == 0


@pytest.mark.parametrize("name", [*MODELS, "attention"])
def test_nothing_is_left_to_gain_for_a_single_class(name: str) -> None:
    case = case_of(name, noise=0.6)
    found, _ = matched(case)
    assert found.settled
    problem = case.in_memory()
    search = WeightSearch(problem.weights, 0)
    polished = search.polish(found.arrays)
    for key, array in found.arrays.items():
        assert np.array_equal(polished.arrays[key], array)
    search.start_all(search.usual_starts())
    best = problem.result(problem.permutation(search.solution().arrays), 0)
    assert found.objective_after >= best.objective_after - 1e-4 * abs(best.objective_after)


@pytest.mark.parametrize("name", [*MODELS, "attention"])
def test_figures_that_were_summed_on_the_way_are_those_of_the_result(name: str) -> None:
    case = case_of(name, noise=0.6)
    found, _ = matched(case)
    problem = case.in_memory()
    expected = problem.result(problem.permutation(found.arrays), found.sweeps)
    assert found.objective_before == pytest.approx(expected.objective_before, rel=1e-6, abs=1e-6)
    assert found.objective_after == pytest.approx(expected.objective_after, rel=1e-6)
    assert found.distance_before == pytest.approx(expected.distance_before, rel=1e-6)
    assert found.distance_after == pytest.approx(expected.distance_after, rel=1e-6)


def test_one_sweep_is_enough_for_what_is_clear_and_reads_each_tensor_once() -> None:
    case = case_of("stack", dtype=torch.bfloat16)
    found, counting = matched(case)
    assert found.sweeps == 1
    look = case.a["embed.weight"].nbytes  # at the stream, before the sweep
    assert counting.read == {"a": case.bytes + look, "b": case.bytes + look}


def test_no_more_is_in_memory_than_the_schedule_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dealing, "BLOCK", 2048)
    case = Case(Stack(layers=5), IDS, noise=0.6)
    schedule = case.schedule()
    gc.collect()
    _, counting = matched(case, schedule)
    assert 0 < counting.most_alive <= schedule.bytes_largest < case.bytes / 2


def test_parts_of_tensors_lead_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("stack", noise=0.6)
    whole, _ = matched(case)
    monkeypatch.setattr(dealing, "BLOCK", 500)
    parts, _ = matched(case)
    assert all(np.array_equal(parts.arrays[k], array) for k, array in whole.arrays.items())
    assert parts.objective_after == pytest.approx(whole.objective_after)


def test_what_there_is_room_for_is_read_once() -> None:
    case = case_of("meeting", noise=0.6)
    least, counting = matched(case)
    assert least.sweeps > 1
    chained = case_of("chain", noise=0.6)
    first, rereading = matched(chained)
    schedule = chained.schedule(2**40)
    second, keeping = matched(chained, schedule)
    assert first.sweeps > 1
    assert second.sweeps == first.sweeps
    assert all(np.array_equal(second.arrays[k], a) for k, a in first.arrays.items())
    assert keeping.read["a"] == chained.bytes
    assert rereading.read["a"] > 1.9 * chained.bytes
    assert counting.read["a"] == counting.read["b"]


def test_double_precision_is_kept() -> None:
    case = case_of("stack", dtype=torch.float64)
    found, _ = matched(case)
    assert found.distance_after == 0


@pytest.mark.parametrize("name", [*MODELS, "attention"])
def test_a_match_goes_on_from_wherever_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_SIXTEENTH", 0)
    case = case_of(name, noise=0.6)
    kept: list[Progress] = []
    whole, _ = matched(case, keep=kept.append)
    assert len(kept) > 4
    for progress in kept[:: max(1, len(kept) // 5)]:
        again, _ = matched(case, since=progress)
        assert again.sweeps == whole.sweeps
        for key, array in whole.arrays.items():
            assert np.array_equal(again.arrays[key], array)
        assert again.objective_after == pytest.approx(whole.objective_after, rel=1e-9)
        assert again.distance_before == whole.distance_before


def test_little_is_written_down_while_little_was_read() -> None:
    case = Case(Stack(layers=6), IDS, noise=0.6)
    kept: list[Progress] = []
    _, counting = matched(case, keep=kept.append)
    written = sum(progress.bytes for progress in kept)
    assert written <= (counting.read["a"] + counting.read["b"]) / 8


@pytest.mark.parametrize("name", ["embed.weight", "up.1.weight", "head.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    case = case_of("stack")
    case.b[name].view(-1)[3] = value
    with pytest.raises(InputError, match=rf"{name} holds values that are not finite"):
        matched(case)


def test_sweeps_can_be_limited() -> None:
    case = case_of("meeting", noise=0.6)
    counting = Counting(case)
    match = FileMatch(case.problem(), case.schedule(), counting.side("a"), counting.side("b"))
    found = match.run(1)
    assert (found.sweeps, found.settled) == (1, False)
    problem = case.in_memory()
    expected = problem.result(problem.permutation(found.arrays), 1)
    assert found.objective_after == pytest.approx(expected.objective_after, rel=1e-6)
    assert found.distance_after == pytest.approx(expected.distance_after, rel=1e-6)
