"""Whether two gauges are one, and whether a state is the one that a gauge was worked out for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxrebasin.errors import InputError
from fxrebasin.storage.alignment_file import GaugeValues
from fxrebasin.wording import listed

_LISTED = 5
_KNOWN = 1e-6
"""A state may be stored in another precision than it was aligned in; this is that of float32."""
_SAME = 1e-9
"""Relative error up to which two gauges are one."""


def marks_of(state: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Two numbers for each tensor, by which a state is known again after rounding.

    Args:
        state: by name.
    """
    found = {}
    for name, tensor in state.items():
        flat = tensor.detach().to(torch.float64).reshape(-1)
        fixed = torch.arange(flat.numel(), dtype=torch.float64, device=flat.device).cos()
        found[name] = (float(flat.norm()), float(flat @ fixed))
    return found


def check_marks(gauge: GaugeValues, held: Mapping[str, Tensor]) -> None:
    """Check that a state is the one for which the additions of a gauge were worked out.

    Args:
        gauge: of the alignment.
        held: the state, by name.

    Raises:
        InputError: it is another one.
    """
    other = sorted(gauge.marks.keys() - held.keys())
    own = marks_of({name: held[name] for name in gauge.marks if name in held})
    for name, found in own.items():
        precision = max(torch.finfo(held[name].dtype).eps, _KNOWN)
        room = precision * held[name].numel() ** 0.5 * max(gauge.marks[name][0], found[0])
        if any(abs(a - b) > room for a, b in zip(found, gauge.marks[name], strict=True)):
            other.append(name)
    if other:
        raise InputError(
            "this alignment moves biases through the weights of the model that it was found on, "
            f"and this is another state: {listed(other, _LISTED)} are others. Apply it to that "
            "model, or align this one anew"
        )


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    return one.shape == two.shape and torch.allclose(one, two, rtol=_SAME, atol=_SAME)


def equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same names and numbers."""
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def same_gauge(one: GaugeValues, two: GaugeValues) -> bool:
    """Whether two gauges are one, bit for bit."""
    factors = one.factors.keys() == two.factors.keys() and all(
        len(own) == len(two.factors[name]) and all(map(torch.equal, own, two.factors[name]))
        for name, own in one.factors.items()
    )
    return factors and equal(one.added, two.added) and one.marks == two.marks


def difference(one: GaugeValues, two: GaugeValues) -> str:
    """How two gauges differ, in words; empty if they are the same up to rounding."""
    for name in one.factors.keys() | two.factors.keys():
        mine, theirs = one.factors.get(name, ()), two.factors.get(name, ())
        if len(mine) != len(theirs) or not all(map(same, mine, theirs)):
            return f"The factors of class {name!r} differ."
    for name in one.added.keys() | two.added.keys():
        if name not in one.added or name not in two.added:
            return f"Only one of them adds something to {name!r}."
        if not same(one.added[name], two.added[name]):
            return f"They add other numbers to {name!r}."
    return ""
