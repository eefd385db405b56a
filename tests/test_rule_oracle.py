"""Every operator rule is held against the real operator; see `tests.support.oracle`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import fxrebasin.passes.rules
from fxrebasin.analysis import symmetry_of
from fxrebasin.passes.fields import aligning
from fxrebasin.passes.fields.fields import Labels, Value
from fxrebasin.passes.fields.patterns import pattern
from fxrebasin.passes.rules import registry
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.movement import same
from fxrebasin.passes.rules.registry import BLOCKED, RULES, pin_everything
from tests.support.oracle.forms import form_faults, forms
from tests.support.oracle.freedom import contains, missing
from tests.support.oracle.sample import Sample, given, indices, p, program, sample
from tests.support.oracle.samples import OPERATORS, PROGRAMS
from tests.support.oracle.trial import Trial, analysed, incorrect
from tests.support.oracle.verdict import faults

aten = torch.ops.aten


def numbered(samples: Sequence[Sample]) -> list[str]:
    """Names of samples, numbered where several have the same."""
    counts: dict[str, int] = {}
    names = []
    for item in samples:
        counts[item.name] = counts.get(item.name, 0) + 1
        names.append(f"{item.name}-{counts[item.name]}")
    return names


# The rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", OPERATORS, ids=numbered(OPERATORS))
def test_a_rule_agrees_with_its_operator(item: Sample) -> None:
    assert not faults(item), "\n".join(faults(item))


DRAWN = 4
"""Every how manieth sample is tried in another form; all are among the slow tests."""


@pytest.mark.parametrize("number", range(0, len(OPERATORS), DRAWN))
def test_a_rule_agrees_with_another_form_of_its_operator(number: int) -> None:
    found = forms(OPERATORS[number])
    for form in found[number % len(found) :][:1] if found else ():
        assert not form_faults(form), f"{form.name}: {form_faults(form)}"


@pytest.mark.slow
@pytest.mark.parametrize("item", OPERATORS, ids=numbered(OPERATORS))
def test_a_rule_agrees_with_all_forms_of_its_operator(item: Sample) -> None:
    for form in forms(item):
        assert not form_faults(form), f"{form.name}: {form_faults(form)}"


@pytest.mark.parametrize("item", PROGRAMS, ids=numbered(PROGRAMS))
def test_rules_agree_with_operators_that_work_together(item: Sample) -> None:
    assert not faults(item), "\n".join(faults(item))


def test_every_rule_has_a_sample() -> None:
    tried = {item.overload for item in OPERATORS}
    untried = [
        str(overload)
        for overload in RULES
        if overload not in (*tried, *BLOCKED)
        and not any(item.is_out for item in overload._schema.arguments)  # has another's rule
    ]
    assert not untried, f"add samples to tests/support/oracle/samples for {', '.join(untried)}"


def rule_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """File and name of all operators that the rule files register or block."""
    found: list[str] = []

    def rule(*names: str) -> Callable[[registry.Rule], registry.Rule]:
        found.extend(names)
        return lambda function: function

    def block(reason: str, *names: str) -> None:
        found.extend(names)

    monkeypatch.setattr(registry, "rule", rule)
    monkeypatch.setattr(registry, "block", block)
    for path in sorted(Path(fxrebasin.passes.rules.__path__[0]).glob("*.py")):
        if path.stem in ("__init__", "registry"):
            continue
        found.clear()
        run_again(path, monkeypatch)
        yield from ((path.name, name) for name in found)


def run_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Run a module's file under another name, so that the module itself stays as it is."""
    spec = importlib.util.spec_from_file_location(f"again_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_name_in_the_rule_files_is_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(rule_names(monkeypatch))
    assert len(names) > 300
    unknown = [f"{file}: {name}" for file, name in names if not registry.overloads(name)]
    assert not unknown, f"this version of torch does not have {', '.join(unknown)}"


def test_no_operator_has_two_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[object, str] = {}
    twice = []
    for file, name in rule_names(monkeypatch):
        for overload in registry.overloads(name):
            if overload in seen:
                twice.append(f"{overload}: {seen[overload]} and {file} ({name})")
            seen[overload] = f"{file} ({name})"
    assert not twice, "\n".join(twice)


# Operators without a rule ---------------------------------------------------------------------


@torch.library.custom_op("fxrebasin_oracle::mystery", mutates_args=())
def mystery(x: Tensor, others: list[Tensor]) -> Tensor:
    return x * sum(other.sum() for other in others)


@mystery.register_fake
def _(x: Tensor, others: list[Tensor]) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxrebasin_oracle::scramble", mutates_args=("x",))
def scramble(x: Tensor, y: Tensor) -> None:
    x.copy_(x.cumsum(-1) * y)


@scramble.register_fake
def _(x: Tensor, y: Tensor) -> None:
    return None


UNKNOWN = {
    "an output": (
        lambda x, y, z: mystery(x.relu(), [y.relu(), z]),
        "fxrebasin_oracle.mystery.default",
    ),
    "a write": (
        lambda x, y, z: scramble(copy := x.relu(), y.relu()) or copy * z,
        "fxrebasin_oracle.scramble.default",
    ),
    "an operator that torch has": (
        lambda x, y, z: torch.linalg.cross(x[:, :3], y[:, :3]) * z[:, :3],
        "aten.linalg_cross.default",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_operator_without_a_rule_pins_every_axis_it_touches(name: str) -> None:
    call, overload = UNKNOWN[name]
    trial = Trial(program(name, call, p(3, 4), p(3, 4), p(3, 4)))
    symmetry = analysed(trial)
    assert symmetry.unknown_operators == (overload,)
    touched = [key for key in symmetry.pins if key[0] in ("x0", "x1", "out0")]
    assert sorted(touched) == [(x, axis) for x in ("out0", "x0", "x1") for axis in (0, 1)]
    assert "unknown operator" in symmetry.pins["x0", 0]
    assert overload in symmetry.pins["x0", 0]
    assert not incorrect(trial, symmetry)


def test_what_an_operator_without_a_rule_does_not_touch_stays_free() -> None:
    def call(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return mystery(x, []) + (w.relu() @ v)

    trial = Trial(program("beside", call, p(3, 4), p(3, 5), p(5, 4)))
    symmetry = analysed(trial)
    assert [(c.size, c.axes[0]) for c in symmetry.classes] == [(5, ("x1", 1))]


# Operators that are blocked -------------------------------------------------------------------


def test_the_operators_that_are_blocked() -> None:
    names = {overload._schema.name.removeprefix("aten::") for overload in BLOCKED}
    assert names == {
        *("nonzero", "nonzero_static", "masked_select", "_unique2", "unique_consecutive"),
        *("bincount", "searchsorted", "bucketize", "where"),
        *("masked_scatter", "masked_scatter_", "put", "put_", "take"),
        *("rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_", "multinomial"),
        *("poisson", "binomial", "_standard_gamma", "_sample_dirichlet", "normal", "normal_"),
        *("uniform", "uniform_", "exponential", "exponential_", "cauchy", "cauchy_", "geometric"),
        *("geometric_", "log_normal", "log_normal_", "random", "random_"),
    }
    for overload, reason in BLOCKED.items():
        drawn = torch.Tag.nondeterministic_seeded in overload.tags
        assert (reason == "random numbers") is drawn, overload
        assert drawn or "order" in reason, overload
        assert overload in RULES


BLOCKED_CALLS = {
    "masked_select": lambda x: torch.masked_select(x, x > -9),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0)[0],
}


@pytest.mark.parametrize("name", BLOCKED_CALLS)
def test_an_operator_that_is_blocked_pins_its_axes_and_is_not_unknown(name: str) -> None:
    call = BLOCKED_CALLS[name]

    class Blocked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(3, 4))

        def forward(self) -> Tensor:
            return call(self.x.relu()).sum()

    symmetry = symmetry_of(Blocked(), (), {})
    assert symmetry.classes == ()
    assert symmetry.unknown_operators == ()
    assert "order" in symmetry.pins["x", 0]


# The oracle itself ----------------------------------------------------------------------------


def free(call: Call) -> Sequence[Value]:
    """The wrong rule by which an output holds the same number everywhere."""
    return [Value(tuple(out.shape)) for out in call.outputs]


def untied(text: str) -> registry.Rule:
    """The wrong rule that an operator on two tensors follows another factor string."""

    def apply(call: Call) -> Sequence[Value]:
        operands = [call.lookup(tensor) for tensor in call.tensors()[:2]]
        return [call.follow(pattern(text), *operands)]

    return apply


def without_segments(sizes: Sequence[int], ndim: int, dim: int) -> list[Labels]:
    return []


WRONG_RULES = {
    "a scan as an element-wise operator": (sample(aten.cumsum.default, p(3, 4), 1), same),
    "a sum that forgets what it sums": (sample(aten.sum.dim_IntList, p(3, 4), [1]), free),
    "softmax without its sums": (sample(aten._softmax.default, p(3, 4), 1, False), same),
    "layer norm without its statistics": (
        sample(aten.native_layer_norm.default, p(3, 4), [4], None, None, 1e-5),
        lambda call: [call.value("input"), *free(call)[1:]],
    ),
    "a matrix product that ties the wrong axes": (
        sample(aten.mm.default, p(4, 4), p(4, 4)),
        untied("n k, m k -> n m"),
    ),
    "a matrix product that ties nothing": (
        sample(aten.mm.default, p(3, 4), p(4, 2)),
        untied("n k, l m -> n m"),
    ),
    "a product that does not know its bias": (
        sample(aten.addmm.default, p(2), p(3, 4), p(4, 2)),
        lambda call: [
            call.follow(pattern("n k, k m -> n m"), call.value("mat1"), call.value("mat2"))
        ],
    ),
    "grouped convolution as dense": (
        sample(
            *(aten.convolution.default, p(1, 3, 1), p(3, 1, 1), None),
            *([1], [0], [1], False, [0], 3),
        ),
        untied("n i !s, o j !k -> n o !t"),
    ),
    "an extremum that forgets its index": (
        sample(aten.max.dim, p(3, 4), 1),
        lambda call: RULES[aten.amax.default](call),
    ),
    "a shift as an element-wise operator": (sample(aten.roll.default, p(3, 4), [1], [1]), same),
    "a mask as an element-wise operator": (sample(aten.tril.default, p(4, 4)), same),
    "an addition of one operand": (sample(aten.add.Tensor, p(3, 4), p(3, 4)), same),
    "rows that are looked up but free": (
        sample(aten.embedding.default, p(5, 4), indices(2, below=5)),
        free,
    ),
    "a gather that forgets the index": (
        sample(aten.gather.default, p(3, 4), 1, indices(3, 4, below=4)),
        same,
    ),
    "a product with an input that ties nothing": (
        sample(aten.mul.Tensor, p(3, 4), given(3, 4)),
        same,
    ),
}


@pytest.mark.parametrize("name", WRONG_RULES)
def test_the_oracle_reports_an_incorrect_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    item, wrong = WRONG_RULES[name]
    assert not any(text.startswith("incorrect") for text in faults(item))
    monkeypatch.setitem(RULES, item.overload, wrong)
    assert any(text.startswith("incorrect") for text in faults(item))


def test_the_oracle_reports_a_concatenation_without_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item = program("both", lambda x: torch.cat([x.relu(), x.square()], 1), p(3, 4))
    assert not faults(item)
    monkeypatch.setattr(aligning, "_segments", without_segments)
    assert any(text.startswith("incorrect") for text in faults(item))


def test_the_oracle_reports_a_selection_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    item = program("first", lambda x: x * x[:1], p(4))
    assert not faults(item)
    remember = "fxrebasin.passes.fields.ledger.Ledger.remember_units"
    monkeypatch.setattr(remember, lambda ledger, units: None)
    assert any(text.startswith("incorrect") for text in faults(item))


def test_the_oracle_reports_a_missing_freedom(monkeypatch: pytest.MonkeyPatch) -> None:
    item = sample(aten.relu.default, p(3, 4))
    monkeypatch.setitem(RULES, aten.relu.default, pin_everything("too careful"))
    found = [text for text in faults(item) if text.startswith("missing")]
    assert "missing: self[0], out0[0], at 0 and 1" in found
    assert "missing: self[1], out0[1], at 0 and 1" in found


def test_the_oracle_reports_a_rule_that_is_not_used() -> None:
    item = sample(aten.relu.default, p(3, 4), call=lambda x: x.clamp(min=0))
    assert any("not used" in text for text in faults(item))


def test_the_oracle_reports_what_is_no_longer_missing() -> None:
    item = sample(aten.relu.default, p(3, 4), missing={"self[0], out0[0]": "once"})
    assert faults(item)[0] == "no longer missing, take it off the list: self[0], out0[0]"


def test_the_oracle_knows_the_elements_of_a_group() -> None:
    trial = Trial(sample(aten.mm.default, p(3, 4), p(4, 2)))
    symmetry, state = analysed(trial), trial.draw(torch.Generator().manual_seed(0))
    rows, columns = torch.tensor([1, 0, 2]), torch.tensor([3, 1, 2, 0])

    def moved(shape: tuple[int, int], axis: int, order: Tensor) -> Tensor:
        return torch.arange(shape[0] * shape[1]).view(shape).index_select(axis, order).reshape(-1)

    inner = {name: moved((3, 4), 1, columns) for name in ("self", "self_gain")}
    inner |= {name: moved((4, 2), 0, columns) for name in ("mat2", "mat2_gain")}
    assert contains(symmetry, state, inner)
    assert contains(symmetry, state, {})
    assert not contains(symmetry, state, {"self": inner["self"]})
    outer = {name: moved((3, 4), 0, rows) for name in ("self", "self_gain")}
    assert not contains(symmetry, state, outer)
    outer |= {name: moved((3, 2), 0, rows) for name in ("out0", "out0_gain")}
    assert contains(symmetry, state, outer)
    assert not missing(trial, symmetry)
