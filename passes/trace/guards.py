"""What PyTorch relied on about sizes of axes while it traced a model with torch.export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from torch.utils._sympy.numbers import int_oo


@dataclass(frozen=True)
class Guard:
    """Something that PyTorch relied on when it traced a model.

    Attributes:
        condition: of sizes of axes.
        place: in whose code it was asked for.
    """

    condition: sympy.Basic
    place: str


_RANGE = "in torch.export"


def guards_of(environment: Any) -> tuple[Guard, ...]:
    """All that PyTorch relied on, ranges of sizes among it.

    Args:
        environment: of the symbols, in which the model was traced.
    """
    asked = [Guard(guard.expr, str(guard.sloc).strip("()")) for guard in environment.guards]
    return (*asked, *(guard for item in environment.var_to_range.items() for guard in _of(*item)))


def _of(symbol: sympy.Symbol, interval: Any) -> list[Guard]:
    """The ends of a range; a tracer that takes sizes of 0 and 1 for special begins it at 2."""
    ends = []
    if interval.lower > 1:
        ends.append(Guard(sympy.Ge(symbol, interval.lower), _RANGE))
    if interval.upper < int_oo:
        ends.append(Guard(sympy.Le(symbol, interval.upper), _RANGE))
    return ends


def now(size: Any) -> sympy.Basic:
    """What stands for a symbolic size, after all that was found out about it."""
    found: sympy.Basic = size.node.shape_env.replace(size.node._expr)
    return found


def objection(
    guards: Sequence[Guard], labels: Mapping[sympy.Symbol, str], sizes: Mapping[str, int]
) -> str | None:
    """PyTorch's reason why a graph may not hold for sizes of its axes; None if it has none.

    Args:
        guards: of the trace.
        labels: of axes, by what stands for their size.
        sizes: by label.
    """
    values = {
        symbol: sympy.Integer(sizes[label]) for symbol, label in labels.items() if label in sizes
    }
    for guard in guards:
        if guard.condition.xreplace(values) == sympy.false:
            return described(guard, labels)
    return None


def closing(
    symbol: sympy.Symbol, guards: Sequence[Guard], labels: Mapping[sympy.Symbol, str]
) -> str:
    """Why a size was fixed, in words: the guard that says so."""
    fixing = [
        guard
        for guard in guards
        if guard.condition.free_symbols == {symbol} and isinstance(guard.condition, sympy.Eq)
    ]
    asked = [guard for guard in guards if guard.place != _RANGE]
    about = fixing or [guard for guard in asked if symbol in guard.condition.free_symbols]
    return described(about[-1], labels) if about else "PyTorch fixes it"


def described(guard: Guard, labels: Mapping[sympy.Symbol, str]) -> str:
    """A guard with labels in the places of symbols, as PyTorch writes it otherwise."""
    named = {symbol: sympy.Symbol(label, integer=True) for symbol, label in labels.items()}
    return f"PyTorch relies on {guard.condition.xreplace(named)} ({guard.place})"


def compared(guards: Sequence[Guard]) -> Iterator[tuple[sympy.Symbol, sympy.Symbol]]:
    """Pairs of sizes that PyTorch relied on not being larger or smaller than each other.

    Args:
        guards: of a trace.

    Example:
        >>> a, b = sympy.symbols("a b")
        >>> list(compared([Guard(a <= b, ""), Guard(a * b < 9, ""), Guard(b < 9, "")]))
        [(a, b)]
    """
    for guard in guards:
        condition: Any = guard.condition
        if condition.is_Relational and len(condition.free_symbols) == 2:
            one, two = sorted(condition.free_symbols, key=str)
            parts = (condition.lhs - condition.rhs).as_coefficients_dict()
            if parts.keys() == {one, two} and parts[one] == -parts[two]:
                yield one, two
