"""What is declared of element-wise operators that meet a factor, held against the operators."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", SCALINGS)
def test_declarations_hold(name: str) -> None:
    assert holds(_plain(name), SCALINGS[name])


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
