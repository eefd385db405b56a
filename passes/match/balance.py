"""Balanced states: what matrices and factors leave open is chosen so that both sides are alike.

Where any invertible matrix may act, let P be the sum of products of the rows that it acts on, and Q
that of the rows that the transpose of its inverse acts on. The matrix whose square is the geometric
mean of P⁻¹ and Q makes both sums equal. Two states that differ by an element of the group differ by
an orthogonal one once they are balanced, and that is what Procrustes finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxrebasin.kinds import ClassKind, GroupKind
from fxrebasin.passes.match.group_problem import Element, GroupProblem
from fxrebasin.passes.match.seats import Seat, Seats, seats_of

_ROUNDS = 500
_STILL, _CLOSE = 1e-13, 1e-9
"""Changes of a round after which none follows; from the second on, if they do not fall any more: it
is then that they are rounding, while layers one behind the other may close in slowly."""
_NEWTON_STEPS = 60
_SETTLED = 1e-15
"""A step of a logarithm that rounding alone explains."""
_TINY = 1e-14
"""Share of the largest direction below which a direction is taken as empty."""


def balanced(problem: GroupProblem, seats: Seats, state: Mapping[str, Tensor]) -> Element:
    """The element that balances a state.

    Args:
        problem: whose groups.
        seats: of its classes.
        state: canonical.
    """
    start = found = problem.identity()
    current = dict(state)
    classes = [c for c in problem.classes if _may_scale(problem.groups.kinds[c.name].kind)]
    classes = [c for c in classes if problem.free(c)]
    last = float("inf")
    for _ in range(_ROUNDS):
        change = 0.0
        for c in classes:
            element = _element(problem.groups.kinds[c.name], seats[c.name], current)
            if element is not None:
                change = max(change, _size(element))
                step = Element(start.permutation, {c.name: element})
                current = current | problem.moved(step, problem.touched(current, [c.name]))
                found = problem.combined(step, found)
        if change <= _STILL or (change <= _CLOSE and change >= last):
            break
        last = change
    return found


@dataclass(frozen=True, eq=False)
class Balanced:
    """A problem between balanced states.

    Attributes:
        problem: the same with both states balanced.
        to_a: what balanced that of the reference.
        to_b: what balanced that of the model.
    """

    problem: GroupProblem
    to_a: Element
    to_b: Element

    @classmethod
    def of(cls, problem: GroupProblem) -> Balanced:
        """Balance both states of a problem.

        Args:
            problem: between states as they are.
        """
        seats = seats_of(problem)
        to_a, to_b = (balanced(problem, seats, s) for s in (problem.state_a, problem.state_b))
        a = problem.moved(to_a, problem.state_a)
        there = replace(problem, state_a=a, state_b=problem.moved(to_b))
        return cls(there, to_a, to_b)

    def back(self, element: Element) -> Element:
        """What an element between balanced states is between the states as they were.

        Args:
            element: of the balanced problem.
        """
        problem = self.problem
        return problem.combined(problem.inverse(self.to_a), problem.combined(element, self.to_b))

    def there(self, element: Element) -> Element:
        """What an element between the states as they were is between balanced ones.

        Args:
            element: of the problem as it was.
        """
        problem = self.problem
        return problem.combined(self.to_a, problem.combined(element, problem.inverse(self.to_b)))


def _may_scale(kind: GroupKind) -> bool:
    return kind >= GroupKind.POSITIVE or kind is GroupKind.COMPLEX_PAIRS


def _size(element: Tensor) -> float:
    one = torch.eye(element.shape[-1]).to(element) if element.dim() == 3 else 1.0
    return float((element - one).abs().max())


def _element(own: ClassKind, seats: tuple[Seat, ...], state: Mapping[str, Tensor]) -> Tensor | None:
    if own.kind.has_matrices:
        sides = [_products(seats, state, side) for side in (1, -1)]
        if sides[0] is None or sides[1] is None:
            return None
        if own.kind is GroupKind.COMPLEX_PAIRS:
            return _sizes_of_pairs(sides[0], sides[1], own)
        return _mean_root(sides[0], sides[1])
    return _factors(seats, state)


def _products(seats: tuple[Seat, ...], state: Mapping[str, Tensor], side: int) -> Tensor | None:
    """The sum of the products of rows on one side, of shape (copies, units, units)."""
    found: Tensor | None = None
    for seat in seats:
        if seat.variance == side:
            rows = seat.rows(state)
            found = rows @ rows.mT if found is None else found + rows @ rows.mT
    return found


def _mean_root(p: Tensor, q: Tensor) -> Tensor:
    """The positive matrix M with M P M = M⁻¹ Q M⁻¹; ones where a side has empty directions."""
    full = (_is_full(p) & _is_full(q))[:, None, None]
    one = torch.eye(p.shape[-1], dtype=p.dtype)
    p, q = torch.where(full, p, one), torch.where(full, q, one)
    root, inverse = _root(p)
    inner, _ = _root(root @ q @ root)
    mean = inverse @ inner @ inverse
    return _root((mean + mean.mT) / 2)[0]


def _is_full(p: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(p)
    return values[:, 0] > _TINY * values[:, -1]


def _root(p: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of positive matrices, and its inverse."""
    values, vectors = torch.linalg.eigh(p)
    root = values.clamp_min(0).sqrt()
    inverse = torch.where(root > 0, 1 / root, torch.inf)
    return (vectors * root[:, None]) @ vectors.mT, (vectors * inverse[:, None]) @ vectors.mT


def _sizes_of_pairs(p: Tensor, q: Tensor, own: ClassKind) -> Tensor:
    partner = torch.tensor(own.partner)
    one, two = (item.diagonal(dim1=1, dim2=2) for item in (p, q))
    one, two = one + one[:, partner], two + two[:, partner]
    known = (one > 0) & (two > 0)
    size = torch.where(known, (two / torch.where(known, one, 1.0)) ** 0.25, 1.0)
    return torch.diag_embed(size)


def _factors(seats: tuple[Seat, ...], state: Mapping[str, Tensor]) -> Tensor | None:
    """Positive numbers that make the sum of all squares of each unit the least."""
    scaled = [seat for seat in seats if seat.scale]
    if {seat.scale > 0 for seat in scaled} != {True, False}:
        return None
    powers = torch.tensor([2.0 * seat.scale for seat in scaled], dtype=torch.float64)
    squares = torch.stack([seat.rows(state).square().sum(-1) for seat in scaled], -1)
    rising = (squares * (powers > 0)).sum(-1) > 0
    open_units = rising & ((squares * (powers < 0)).sum(-1) > 0)
    log = torch.zeros(squares.shape[:-1], dtype=torch.float64)
    for _ in range(_NEWTON_STEPS):
        terms = squares * (log[..., None] * powers).exp()
        slope, bend = (terms * powers).sum(-1), (terms * powers.square()).sum(-1)
        step = torch.where(open_units, -slope / torch.where(open_units, bend, 1.0), 0.0)
        log = log + step.clamp(-1, 1)
        if bool((step.abs() <= _SETTLED).all()):
            break
    return log.exp()
