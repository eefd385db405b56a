"""Random programs against the analysis, and the fuzzer against faults that are known."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from fxrebasin.errors import InputError, TraceError
from fxrebasin.passes.fields.fields import Elements, Labels, Value
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.movement import same
from fxrebasin.passes.rules.registry import RULES, Rule
from tests.fuzz import __main__ as command
from tests.fuzz import brute
from tests.fuzz.check import Kind, counted, decided_by_rounding
from tests.fuzz.generate import ALL, FORMS, Words
from tests.fuzz.hunt import Tally, drawn, hunt
from tests.fuzz.outputs import difference, tensors
from tests.fuzz.program import float64
from tests.support.invariants import broken

aten = torch.ops.aten
SEEDS = range(3)
PROGRAMS = 50


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_wrong_with_random_programs(seed: int) -> None:
    tally = Tally()
    found = list(hunt(seed, math.inf, tally, PROGRAMS))
    assert not found, "\n\n".join(item.text(seed) for item in found)
    assert tally.tried == PROGRAMS
    assert tally.free > PROGRAMS // 4
    assert not tally.refused


def test_every_kind_of_output_input_and_branch_is_drawn() -> None:
    programs = [drawn(3, index).program for index in range(150)]
    assert {item.form for item in programs} == set(FORMS)
    assert {bool(item.vocabulary) for item in programs} == {False, True}
    steps = {step.op for item in programs for step in item.steps}
    assert {"branch_on_data", "rows_by_data"} <= steps


@pytest.mark.parametrize("form", ["named tuple", "dataclass", "slots", "object"])
def test_units_in_an_object_that_is_returned_stay(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Words(("linear",), ("linear",), (form,))
    monkeypatch.setattr("fxrebasin.passes.propagate.runs.counted", lambda *_, **__: {})
    found = next(hunt(1, math.inf, Tally(), 60, words))
    assert found.fault.kind is Kind.WRONG


def test_a_state_with_other_buffers_has_to_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(("with_buffer", "linear"), ("mean_of_positions",), ("tensor",))
    assert not list(hunt(2, math.inf, Tally(), 20, words))
    monkeypatch.setattr("fxrebasin.permutation.contradictions", lambda *_: [])
    assert next(hunt(2, math.inf, Tally(), 100, words)).fault.kind is Kind.CONSTANTS


# Faults that it has to find -------------------------------------------------------------------


def free(call: Call) -> Sequence[Value]:
    """The wrong rule by which an output holds the same number everywhere."""
    return [Value(tuple(out.shape)) for out in call.outputs]


def first_operand(call: Call) -> Sequence[Value]:
    """The wrong rule that looks at one operand."""
    value = call.lookup(call.tensors()[0])
    return [Value(call.shape, tuple(call.broadcast(value, len(call.shape))))]


def raises(call: Call) -> Sequence[Value]:
    """A rule that fails."""
    raise KeyError("nothing is known")


def refuses(*_: object) -> None:
    """An analysis that refuses, which is no fault."""
    raise InputError("not today")


WRONG_RULES: dict[str, tuple[object, Rule, str, Kind]] = {
    "a flip that moves nothing": (aten.flip.default, same, "flip", Kind.WRONG),
    "a sum that drops its ties": (aten.sum.dim_IntList, free, "reduce", Kind.WRONG),
    "a scan without an order": (aten.cumsum.default, same, "reduce_one", Kind.WRONG),
    "an addition of one operand": (aten.add.Tensor, first_operand, "with_parameter", Kind.WRONG),
    "a rule that raises": (aten.tanh.default, raises, "one_operand", Kind.CRASH),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_a_broken_rule_is_found_and_shrunk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overload, wrong, step, kind = WRONG_RULES[name]
    words = Words((step, "linear", "transpose", "two_operands"), ("linear",), ("tensor", "dict"))
    assert not list(hunt(7, math.inf, Tally(), 10, words))
    monkeypatch.setitem(RULES, overload, wrong)
    found = next(hunt(7, math.inf, Tally(), 400, words))
    assert found.fault.kind is kind
    assert step in {item.op for item in found.built.program.steps}
    assert len(found.built.lines) <= 4
    assert math.prod(found.built.program.shape) <= 3 * 2 * 2


def test_a_refusal_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxrebasin, "analyze", refuses)
    tally = Tally()
    assert not list(hunt(1, math.inf, tally, 3))
    assert tally.refused == {"InputError: not today": 3}


def test_programs_do_not_depend_on_the_process() -> None:
    code = "from tests.fuzz.hunt import drawn\nfor i in range(12): print(drawn(3, i).source())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "".join(f"{drawn(3, i).source()}\n" for i in range(12))


def test_a_program_is_a_file_that_runs() -> None:
    built = drawn(0, 1)
    names: dict[str, object] = {}
    with float64():
        exec(built.source(), names)
        net, x = built.make()
        again = names["net"](names["x"])
        assert torch.equal(names["x"], x)
        assert difference(tensors(net(x)), tensors(again)) == 0.0


def test_the_command_says_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [name for name in ALL.steps if name not in ("flip", "two_operands", "linear")]
    options = ["--seed", "6", "--programs", "20", "--without", *others, "object"]
    assert command.main(options) == 0
    assert "20 programs" in capsys.readouterr().out
    monkeypatch.setitem(RULES, aten.flip.default, same)
    assert command.main(options) == 1
    assert "a permutation of the group changes the outputs" in capsys.readouterr().out


# The number of permutations that change nothing -----------------------------------------------


class Net(nn.Module):
    """Parameters of some shapes, and a function of them and an input."""

    def __init__(self, call: Callable[..., Tensor], *shapes: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.call = call
        self.parameters_ = nn.ParameterList(
            nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))
            for shape in shapes
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.parameters_)


CLOSED_FORMS = {
    "a hidden layer": (Net(lambda x, a, b: (x @ a).tanh() @ b, (2, 4), (4, 1)), 24),
    "two hidden layers": (
        Net(lambda x, a, b, c: ((x @ a).tanh() @ b).tanh() @ c, (2, 2), (2, 3), (3, 1)),
        2 * 6,
    ),
    "tied weights": (Net(lambda x, a: (x @ a).tanh() @ a.mT, (2, 3)), 6),
    "a residual stream": (
        Net(lambda x, a, b, c: ((x @ a) + (x @ a).tanh() @ b) @ c, (2, 2), (2, 2), (2, 1)),
        2,
    ),
    "a bias that is an output too": (
        Net(lambda x, a, b: torch.cat([(x @ a + b).tanh().sum(1), b]), (2, 3), (3,)),
        1,
    ),
    "nothing to permute": (Net(lambda x, a: x * a, (2,)), 1),
    "a scale per unit, two of which are equal": (
        Net(lambda x, a, b: ((x @ a) * torch.tensor([1.0, 1.0, 2.0])).tanh() @ b, (2, 3), (3, 1)),
        2,
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_all_permutations_are_counted(name: str) -> None:
    net, order = CLOSED_FORMS[name]
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with float64():
        symmetry = fxrebasin.analyze(net, x)
        names = brute.read_tensors(net, x, symmetry)
        assert len(names) == len(net.parameters_)
        assert brute.count(net, x, names) == order
    assert brute.found_order(symmetry) == order


def test_what_is_not_tried_is_not_counted() -> None:
    heads = Net(lambda x, a, b: (x @ a).view(-1, 3, 3).logsumexp(2) @ b, (2, 9), (3, 1))
    x = torch.randn(3, 2, dtype=torch.float64)
    with float64():
        symmetry = fxrebasin.analyze(heads, x)
        assert [(item.size, item.count) for item in symmetry.classes] == [(3, 1), (3, 3)]
        assert brute.found_order(symmetry) is None
        assert brute.count(heads, x, ["parameters_.1"], most=5) is None


def test_an_order_that_is_too_large_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """By units that random elements cannot show: they are moved back before the comparison."""
    net, _ = CLOSED_FORMS["nothing to permute"]
    wrong = fxrebasin.analyze(CLOSED_FORMS["a hidden layer"][0], torch.randn(3, 2).double())
    with float64():
        monkeypatch.setattr("tests.fuzz.brute.read_tensors", lambda *_: ["parameters_.0"])
        fault, _ = counted(net, torch.randn(3, 2), wrong)
    assert fault is not None
    assert fault.kind is Kind.ORDER


# The invariants of values ---------------------------------------------------------------------


def labels(values: Sequence[Sequence[int]], **options: object) -> Labels:
    tensor = torch.tensor(values)
    axes = tuple(axis for axis, size in enumerate(tensor.shape) if size > 1)
    return Labels(**{"values": tensor, "axes": axes, "injective": True, **options})


BROKEN: dict[str, tuple[Value, str]] = {
    "twice": (Value((2, 2), (labels([[1, 2], [2, 3]]),)), "occur twice"),
    "axes": (Value((2, 1), (labels([[1], [2]], axes=(0, 1)),)), "axes"),
    "no axis": (Value((1, 2), (labels([[1]]),)), "varies along no axis"),
    "constant": (Value((2, 2), (labels([[1, 2], [1, 2]], injective=False),)), "do not vary"),
    "rigid": (Value((2, 1), (labels([[-2], [-3]]),)), "not called rigid"),
    "not rigid": (Value((2, 1), (labels([[-2], [3]], rigid=True),)), "called rigid"),
    "shape": (Value((3, 1), (labels([[1], [2]]),)), "a field of shape (2, 1)"),
    "dtype": (
        Value((2,), (Labels(torch.tensor([1, 2], dtype=torch.int32), (0,), True),)),
        "labels of torch.int32",
    ),
    "elements": (
        Value((2, 3), (Elements("w", torch.empty(2, 1, device="meta").expand(2, 3), (0, 1)),)),
        "of elements with strides",
    ),
}


class Reading(nn.Module):
    """Reads units by a function of its own."""

    def __init__(self, reading: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.units = nn.Parameter(torch.randn(7, generator=draw, dtype=torch.float64))
        self.reading = reading

    def forward(self, x: Tensor) -> Tensor:
        return self.reading(self.units) + 0 * x.sum()


def test_outputs_that_rounding_decides_are_told_from_others() -> None:
    x, rows = torch.ones(2, dtype=torch.float64), torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])

    def which(units: Tensor) -> Tensor:
        return (units[rows].cumsum(1)[:, -1]).argmax() * 1.0

    assert decided_by_rounding(Reading(which), x)
    assert not decided_by_rounding(Reading(lambda units: units.cumsum(0).amax()), x)
    assert not decided_by_rounding(Reading(lambda units: units.argmax() * 1.0), x)


@pytest.mark.parametrize("name", BROKEN)
def test_a_value_that_is_broken_is_noticed(name: str) -> None:
    value, text = BROKEN[name]
    assert any(text in found for found in broken(value))


def test_every_rule_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    value, text = BROKEN["twice"]
    monkeypatch.setitem(RULES, aten.tanh.default, lambda call: [value])
    with pytest.raises(TraceError, match=text):
        fxrebasin.analyze(nn.Tanh(), torch.zeros(2, 2))
