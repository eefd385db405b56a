"""What is declared of element-wise operators that meet a factor, held against the operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import fxrebasin.passes.rules  # noqa: F401  (importing it fills the registry)
from fxrebasin.passes.rules.pointwise import pointwise
from fxrebasin.passes.rules.registry import RULES, overloads
from fxrebasin.passes.rules.scaling import SCALINGS, Parity, Scaling, scaling_of
from fxrebasin.running.operators import bind

FACTOR = 1.75


def _elements(op: Any, others: tuple[Any, ...]) -> Tensor:
    """Numbers of both signs for which the operator has a value, also once they are multiplied."""
    gen = torch.Generator().manual_seed(0)
    drawn = torch.randn(400, generator=gen, dtype=torch.float64)
    drawn = drawn * torch.tensor([0.2, 1.0, 4.0, 30.0], dtype=torch.float64).repeat(100)
    found = torch.isfinite(op(drawn, *others)) & torch.isfinite(op(FACTOR * drawn, *others))
    return drawn[found & torch.isfinite(op(-drawn, *others))]


def holds(op: Any, scaling: Scaling, others: tuple[Any, ...] = ()) -> bool:
    """Whether an operator answers to a factor as declared."""
    elements = _elements(op, others)
    one = torch.rand(50, dtype=torch.float64) * 5 + 0.1 if not len(elements) else elements
    if scaling.degree is not None:
        expected = FACTOR ** float(scaling.degree) * op(one, *others)
        if not torch.allclose(op(FACTOR * one, *others), expected, rtol=1e-12, equal_nan=True):
            return False
    if scaling.parity is None:
        return True
    sign = -1 if scaling.parity is Parity.ODD else 1
    return torch.allclose(op(-one, *others), sign * op(one, *others), rtol=1e-12, equal_nan=True)


def _plain(name: str) -> Any:
    """The overload of an operator that takes a tensor, and defaults."""
    return next(
        item
        for item in overloads(name)
        if [str(a.type) for a in item._schema.arguments if not a.has_default_value()] == ["Tensor"]
    )


_OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "round.decimals": ({"decimals": 1}, {"decimals": -1}),
    "leaky_relu.default": ({}, {"negative_slope": 0.3}, {"negative_slope": -0.5}),
    "hardshrink.default": ({}, {"lambd": 1.5}),
    "softshrink.default": ({}, {"lambd": 1.5}),
}
"""Other arguments than defaults, by the overload; those in place take the same."""


def broken(names: Iterable[str]) -> list[str]:
    """Overloads that do not do what is declared of their operator, out= and in place included."""
    found = []
    for name in names:
        for op in (*overloads(name), *overloads(f"{name}_")):
            if RULES.get(op) is not pointwise:
                continue
            plain = f"{name}.{op._overloadname}"
            for others in _OTHERS.get(plain, ({},)):
                scaling = scaling_of(name, bind(op, (torch.zeros(1),), others))
                if scaling is None or not all(holds(run, scaling) for run in _forms(op, others)):
                    found.append(f"{op} {others}")
    return found


def _forms(op: Any, others: dict[str, Any]) -> list[Any]:
    """An overload on a copy, and the one that writes its result into another tensor."""

    def on_copy(x: Tensor) -> Tensor:
        found: Tensor = op(x.clone(), **others)
        return found

    packet = getattr(torch.ops.aten, op._schema.name.removeprefix("aten::"))
    name = "out" if op._overloadname == "default" else f"{op._overloadname}_out"
    if name not in packet.overloads():
        return [on_copy]

    def written(x: Tensor) -> Tensor:
        found: Tensor = getattr(packet, name)(x, **others, out=torch.empty_like(x))
        return found

    return [on_copy, written]


@pytest.mark.parametrize("name", SCALINGS)
def test_declarations_hold_for_all_overloads(name: str) -> None:
    assert not broken([name])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("neg", Scaling(SCALINGS["abs"].degree, Parity.EVEN)),
        ("relu", Scaling(SCALINGS["relu"].degree, Parity.ODD)),
        ("hardshrink", Scaling(SCALINGS["relu"].degree, Parity.ODD)),
        ("round", Scaling(SCALINGS["relu"].degree, Parity.ODD)),
        ("gelu", SCALINGS["relu"]),
    ],
)
def test_a_wrong_declaration_is_found_for_all_overloads(
    name: str, wrong: Scaling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCALINGS, name, wrong)
    found = broken([name])
    assert found
    assert len(found) >= len([op for op in overloads(f"{name}_") if RULES.get(op) is pointwise])


@pytest.mark.parametrize("name", ["clamp", "clamp_", "clamp_min", "clamp_max", "pow"])
def test_arguments_that_are_tensors_allow_nothing(name: str) -> None:
    for op in overloads(name):
        tensors = [a.name for a in op._schema.arguments if "Tensor" in str(a.type)]
        if len(tensors) > 1 or tensors == ["exponent"]:
            given = {a: torch.ones(1) for a in tensors}
            others = {a.name: 2 for a in op._schema.arguments if a.name not in tensors}
            assert scaling_of(name.removesuffix("_"), bind(op, (), {**others, **given})) is None


def test_wrong_declarations_are_found() -> None:
    wrong = {
        "gelu": Scaling(None, Parity.ODD),
        "silu": Scaling(None, Parity.EVEN),
        "sigmoid": Scaling(None, Parity.ODD),
        "tanh": Scaling(SCALINGS["relu"].degree, Parity.ODD),
        "relu": Scaling(None, Parity.ODD),
        "square": Scaling(SCALINGS["abs"].degree, Parity.EVEN),
    }
    assert not [name for name, scaling in wrong.items() if holds(_plain(name), scaling)]


_FORMS = (
    *(Scaling(SCALINGS[name].degree, None) for name in ("relu", "square", "sqrt", "rsqrt")),
    Scaling(None, Parity.ODD),
    Scaling(None, Parity.EVEN),
)
_WITHOUT_NUMBERS = {
    *("bitwise_not", "logical_not", "isnan", "isinf", "isfinite", "clamp", "clip"),
}
"""What takes other numbers or bounds, or tells only where numbers are none."""
_ROUNDS = {"isposinf", "isneginf", "nan_to_num", "signbit", "angle", "ceil", "floor", "digamma"}
"""What says little of finite numbers, or has kinks that a declaration would not repay."""


def test_what_is_free_is_declared() -> None:
    missing = []
    for op, rule in RULES.items():
        name = op._schema.name.removeprefix("aten::")
        needed = [str(a.type) for a in op._schema.arguments if not a.has_default_value()]
        skipped = name in _WITHOUT_NUMBERS | _ROUNDS or name.endswith("_")
        if rule is not pointwise or needed != ["Tensor"] or skipped:
            continue
        if op.namespace != "aten" or len(op._schema.returns) != 1 or not len(_elements(op, ())):
            continue
        found = scaling_of(name, bind(op, (torch.zeros(1),), {})) or Scaling(None, None)
        for form in _FORMS:
            degree = form.degree is not None and form.degree != found.degree
            parity = form.parity is not None and form.parity is not found.parity
            if (degree or parity) and holds(op, form):
                missing.append((name, form))
    assert not missing


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("hardtanh", (-2.0, 2.0)),
        ("clamp", (-0.5, 0.5)),
        ("clamp", (0, None)),
        ("clamp", (None, 0)),
        ("clamp_min", (0,)),
        ("clamp_max", (0,)),
        ("pow", (2,)),
        ("pow", (3.0,)),
        ("pow", (-1,)),
    ],
)
def test_declarations_that_go_by_arguments_hold(name: str, args: tuple[Any, ...]) -> None:
    op = getattr(torch.ops.aten, name).Tensor_Scalar if name == "pow" else None
    op = op or getattr(torch.ops.aten, name).default
    found = scaling_of(name, bind(op, (torch.zeros(1), *args), {}))
    assert found is not None
    assert holds(op, found, args)


@pytest.mark.parametrize(
    ("name", "args"),
    [("hardtanh", (-1.0, 2.0)), ("clamp", (0, 6)), ("clamp", (-1, None)), ("clamp_min", (0.5,))],
)
def test_arguments_that_allow_nothing(name: str, args: tuple[Any, ...]) -> None:
    op = getattr(torch.ops.aten, name).default
    assert scaling_of(name, bind(op, (torch.zeros(1), *args), {})) is None
