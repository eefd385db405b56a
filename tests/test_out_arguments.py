"""Operators that write to `out` arguments: tensors of another size are given the right one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

import fxrebasin
from fxrebasin.passes.rules.registry import RULES, without_out
from tests.support.oracle.sample import Sample, p, program
from tests.support.oracle.samples import OPERATORS
from tests.support.oracle.trial import Trial, analysed, described, incorrect
from tests.support.randomise import log10_factorial as f

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of elements that a resize lets go


def variants() -> dict[str, tuple[OpOverload, Sample]]:
    """Each overload with `out` arguments that has a rule, and a call of the one without them."""
    found: dict[str, tuple[OpOverload, Sample]] = {}
    for item in OPERATORS:
        if item.overload.namespace != "aten":
            continue
        packet = getattr(torch.ops.aten, str(item.overload._schema.name).removeprefix("aten::"))
        arguments = [(a.name, str(a.type)) for a in item.overload._schema.arguments]
        for name in packet.overloads():
            other = getattr(packet, name)
            if other in RULES and without_out(other) == arguments:
                found.setdefault(str(other), (other, item))
    return found


VARIANTS = variants()
ELSEWHERE = {"aten.cudnn_batch_norm.out", "aten.miopen_batch_norm.out"}
"""Overloads of which there is no kernel here."""

NO_SIZES_BY_THEMSELVES = {
    "aten._embedding_bag.out",
    "aten._embedding_bag_forward_only.out",
    "aten.max_unpool3d.out",
}
"""Overloads that refuse a sample's call, as they write to tensors of the right size only."""

FEWER_RESULTS = {"aten.convolution_backward.out"}
"""Overloads that the sample asks for fewer results than they write."""

LESS = {"aten._pack_padded_sequence.out"}
"""Overloads of which a result is a constant with equal numbers: once written, it is pinned."""


def written(overload: OpOverload, item: Sample, make: Callable[[Tensor], Tensor]) -> Sample:
    """The call of a sample, written to tensors that are made from what it returns."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sizes = replace(item, call=None).real(
            {name: operand.draw(generator) for name, operand in item.operands.items()}
        )
    names = [argument.name for argument in overload._schema.arguments if argument.is_out]

    def call(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        outs = {name: make(like) for name, like in zip(names, sizes, strict=True)}
        overload(*args, **kwargs, **outs)
        return tuple(outs.values())

    return replace(item, call=call, reference=None)


def faults_of(overload: OpOverload, item: Sample, make: Callable[[Tensor], Tensor]) -> list[str]:
    trial = Trial(written(overload, item, make))
    symmetry = analysed(trial)
    found = incorrect(trial, symmetry)
    if str(overload) not in symmetry.operators:
        found.append(f"its rule was not used; these were: {', '.join(symmetry.operators)}")
    plain = analysed(Trial(replace(item, call=None)))
    less = str(overload) in LESS
    if not less and symmetry.log10_order() < plain.log10_order() - 1e-9:
        found.append(f"other classes: {described(symmetry)}; without out: {described(plain)}")
    return found


def empty(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=like.dtype)


LEFT_OUT = ELSEWHERE | NO_SIZES_BY_THEMSELVES | FEWER_RESULTS
TRIED = [name for name in VARIANTS if name not in LEFT_OUT]

ONE_OF_EACH = sorted({RULES[VARIANTS[name][1].overload]: name for name in reversed(TRIED)}.values())
"""One overload for each rule."""


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_an_empty_tensor_to_write_to_gets_the_size_of_the_result(name: str) -> None:
    assert not faults_of(*VARIANTS[name], empty)


@pytest.mark.parametrize("name", TRIED)
def test_every_overload_with_out_gives_an_empty_tensor_its_size(name: str) -> None:
    assert not faults_of(*VARIANTS[name], empty)


def larger(like: Tensor) -> Tensor:
    return torch.zeros(7, 2, dtype=like.dtype)


@pytest.mark.parametrize(
    "name", ["aten.mm.out", "aten.std.out", "aten.sort.values", "aten.avg_pool2d.out"]
)
def test_so_does_one_with_other_elements(name: str) -> None:
    assert not faults_of(*VARIANTS[name], larger)


class Pooled(nn.Module):
    """Pools into tensors that were made without a size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 6, 3), nn.Linear(6 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, places = torch.empty(0), torch.empty(0, dtype=torch.int64)
        h = self.enter(x).relu()
        torch.ops.aten.adaptive_max_pool2d.out(h, [2, 2], out=out, indices=places)
        assert out.shape == (*h.shape[:2], 2, 2)
        return self.leave(out.flatten(1))


def test_a_model_that_pools_into_tensors_without_a_size() -> None:
    model, x = Pooled(), torch.randn(2, 3, 8, 8)
    symmetry = fxrebasin.analyze(model, x)
    assert symmetry.log10_order() == pytest.approx(f(6))
    moved = Pooled()
    moved.load_state_dict(symmetry.random(1).permute_state_dict(model.state_dict()))
    assert fxrebasin.verify(model, moved, x).passed


def view_of_what_is_resized(x: Tensor, y: Tensor) -> Tensor:
    memory = torch.zeros(4)
    view = memory[:4].view(2, 2)
    torch.mul(x, 2, out=memory)
    return view * y


def part_that_grows_over_the_rest(x: Tensor, y: Tensor) -> Tensor:
    memory = torch.arange(12.0, dtype=torch.float64) + y.sum()
    torch.mul(x, 2, out=memory[:0])
    return memory.view(3, 4) * y


def activation_that_shrinks(x: Tensor, y: Tensor) -> Tensor:
    memory = y.exp()
    view = memory[0]
    torch.sum(x, 1, out=memory)
    return torch.cat([memory, view])


def rows_written_before(x: Tensor, y: Tensor) -> Tensor:
    memory = torch.zeros(2, 4, dtype=torch.float64)
    memory[1] = y[0]
    torch.mul(x, 2, out=memory)
    return memory


RESIZED: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "a view of it": (view_of_what_is_resized, (3, 4), (2, 2)),
    "a part of it": (part_that_grows_over_the_rest, (3, 4), (3, 4)),
    "an activation": (activation_that_shrinks, (3, 4), (3, 4)),
    "after other writes": (rows_written_before, (3, 4), (2, 4)),
}


@pytest.mark.parametrize("name", RESIZED)
def test_what_shares_memory_with_a_tensor_that_is_resized(name: str) -> None:
    call, *shapes = RESIZED[name]
    trial = Trial(program(name, call, *(p(*shape) for shape in shapes)))
    assert not incorrect(trial, analysed(trial))


def test_what_a_model_holds_keeps_its_size() -> None:
    model = Pooled()
    model.memory = torch.empty(0)  # type: ignore[assignment]

    def forward(x: Tensor) -> Tensor:
        torch.mul(model.enter(x), 2, out=model.memory)
        return model.memory.sum((2, 3))

    model.forward = forward  # type: ignore[method-assign]
    symmetry = fxrebasin.analyze(model, torch.randn(2, 3, 8, 8))
    assert symmetry.classes == ()  # the channels are the output
    assert model.memory.shape == (0,)
