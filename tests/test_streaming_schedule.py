"""Which tensors are read when is decided by shapes alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fxrebasin.streaming import schedule as schedules
from fxrebasin.streaming.problem import FileProblem
from fxrebasin.streaming.schedule import OVERHEAD, make_schedule
from tests.support.streamed import IDS, Case, Meeting, Stack, chain

STREAM = "embed.weight[1]"


@pytest.fixture(scope="module")
def stack() -> Case:
    return Case(Stack(layers=6), IDS)


def test_what_all_layers_hold_is_the_stream(stack: Case) -> None:
    found = stack.schedule()
    assert found.streams == (STREAM,)
    assert [set(visit.reads) for visit in found.visits] == [
        {f"up.{k}.weight", f"up.{k}.bias", f"down.{k}.weight"} for k in range(6)
    ]
    assert all(visit.reads == visit.settles for visit in found.visits)
    biases = {f"down.{k}.bias" for k in range(6)}
    assert {*found.pure} == {"embed.weight", "norm.weight", "norm.bias", "head.weight", *biases}
    assert found.fixed == ("head.bias",)
    assert found.shared == ()


def test_each_tensor_of_both_models_is_read_once(stack: Case) -> None:
    found = stack.schedule()
    assert found.bytes_first == 2 * stack.bytes
    assert found.bytes_again == 2 * (stack.bytes - stack.a["head.bias"].nbytes)


def test_the_peak_is_that_of_the_largest_layer(stack: Case) -> None:
    found = stack.schedule()
    layer = 2 * 4 * (24 * 40 + 40 + 40 * 24)
    assert found.bytes_largest == layer
    assert found.bytes_matrix == 40**2 * 4
    total, term = 24**2 * 8, 24**2 * 4  # the sum for the stream, and what is added to it
    at_ends = 3 * 90 * 24 * 4 + total + term
    assert found.peak == OVERHEAD + max(layer + found.bytes_matrix + total, at_ends)
    deeper = Case(Stack(layers=12), IDS).schedule()
    assert deeper.peak == found.peak


def test_a_chain_needs_two_layers_at_a_time() -> None:
    case = Case(chain(), torch.randn(2, 20))
    found = case.schedule()
    assert found.streams == ()
    inside: set[str] = set()
    for number, visit in enumerate(found.visits):
        assert set(found.carried(range(number))) == inside
        inside |= set(visit.reads)
        assert {n.split(".")[0] for n in inside if n.endswith("weight")} == {
            str(2 * number),
            str(2 * number + 2),
        }
        inside -= set(visit.settles)
    assert not inside
    assert found.bytes_first == 2 * case.bytes - 2 * case.a["12.bias"].nbytes + 2 * 5 * 4


def test_streams_that_meet_are_read_for_each_of_them() -> None:
    found = Case(Meeting(), torch.randn(2, 5)).schedule()
    assert len(found.streams) == 2
    assert {*found.shared} == {
        *(f"one.{k}.weight" for k in range(6)),
        *(f"two.{k}.weight" for k in range(5)),
        "between.weight",
    }


def test_room_that_is_left_keeps_tensors_between_sweeps(stack: Case) -> None:
    least = stack.schedule()
    layer = stack.problem().bytes_of(least.visits[0].reads)
    held = stack.schedule(least.peak + layer)  # the allocator holds some of it
    assert not {*least.visits[0].reads} <= {*held.kept}
    assert held.peak <= least.peak + layer
    found = stack.schedule(least.peak + layer * 7 // 6)
    assert found.kept == least.visits[0].reads
    assert least.peak + layer < found.peak <= least.peak + layer * 7 // 6
    assert found.bytes_again == least.bytes_again - layer
    assert dataclasses.replace(found, kept=(), peak=0, bytes_again=0) == dataclasses.replace(
        least, peak=0, bytes_again=0
    )


def test_too_little_memory_is_seen_beforehand(stack: Case) -> None:
    least = stack.schedule()
    assert stack.schedule(least.peak - 1).peak == least.peak


def test_a_class_that_is_not_to_move_is_held_by_nothing(stack: Case) -> None:
    problem = stack.problem()
    free = tuple(name for name in problem.free if name != STREAM)
    held = FileProblem(problem.classes, problem.every, problem.sides, free)
    found = make_schedule(held)
    assert found.streams == ()
    assert len(found.visits) == 6
    assert "embed.weight" in found.fixed


def test_a_few_rows_at_a_time_where_rows_do_not_move(
    stack: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = stack.problem()
    assert problem.in_rows("embed.weight")
    assert not problem.in_rows("up.0.weight")
    assert not problem.in_rows("norm.weight")
    before = stack.schedule().peak
    monkeypatch.setattr(schedules, "BLOCK", 1000)
    assert stack.schedule().peak < before
