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
from fxrebasin.passes.match.joint_scales import joint_scales
from fxrebasin.passes.match.seats import Seat, Seats, seats_of

_ROUNDS = 500
_STILL, _CLOSE = 1e-13, 1e-9
"""Changes of a round after which none follows; from the second on, if they do not fall any more: it
is then that they are rounding, while layers one behind the other may close in slowly."""
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
    kinds = problem.groups.kinds
    free = [c for c in problem.classes if _may_scale(kinds[c.name].kind) and problem.free(c)]
    scaled = [c.name for c in free if not kinds[c.name].kind.has_matrices]
    mixed = [c.name for c in free if kinds[c.name].kind.has_matrices]
    last = float("inf")
    for _ in range(_ROUNDS):
        change = 0.0
        for names in (scaled, *([name] for name in mixed)):
            elements = _elements(problem, names, seats, current)
            if elements:
                change = max(change, *(_size(element) for element in elements.values()))
                step = Element(start.permutation, elements)
                touched = problem.touched(current, elements)
                current = current | problem.moved(step, touched)
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

    @classmethod
    def already(cls, problem: GroupProblem) -> Balanced:
        """What is balanced as it is.

        Args:
            problem: between balanced states.
        """
        return cls(problem, problem.identity(), problem.identity())

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


def _elements(
    problem: GroupProblem, names: list[str], seats: Seats, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What balances classes, by their names: all of them at once where matrices do not act."""
    if not any(problem.groups.kinds[name].kind.has_matrices for name in names):
        return joint_scales(names, seats, state)
    found = ((name, _element(problem.groups.kinds[name], seats[name], state)) for name in names)
    return {name: element for name, element in found if element is not None}


def _element(own: ClassKind, seats: tuple[Seat, ...], state: Mapping[str, Tensor]) -> Tensor | None:
    sides = [_products(seats, state, side) for side in (1, -1)]
    if sides[0] is None or sides[1] is None:
        return None
    if own.kind is GroupKind.COMPLEX_PAIRS:
        return _sizes_of_pairs(sides[0], sides[1], own)
    return _mean_root(sides[0], sides[1])


def _products(seats: tuple[Seat, ...], state: Mapping[str, Tensor], side: int) -> Tensor | None:
    """The sum of the products of rows on one side, of shape (copies, units, units)."""
    found: Tensor | None = None
    for seat in seats:
        if seat.variance == side:
            rows = seat.rows(state)
            found = rows @ rows.mT if found is None else found + rows @ rows.mT
    return found


def _mean_root(p: Tensor, q: Tensor) -> Tensor:
    """The positive matrix M with M P M = M⁻¹ Q M⁻¹.

    Where one side has empty directions there is none: then M makes the other side a multiple of
    ones, as large as the first. Where both have, it is one.
    """
    one = torch.eye(p.shape[-1], dtype=p.dtype).expand_as(p)
    one_is, two_is = (_is_full(item)[:, None, None] for item in (p, q))
    p_full, q_full = torch.where(one_is, p, one), torch.where(two_is, q, one)
    root, inverse = _root(p_full)
    inner, _ = _root(root @ q_full @ root)
    mean = inverse @ inner @ inverse
    found = torch.where(one_is & two_is, _root((mean + mean.mT) / 2)[0], one)
    size = ((p * q).sum((1, 2), keepdim=True) / p.shape[-1]) ** 0.25
    size = torch.where(size > 0, size, 1.0)
    found = torch.where(one_is & ~two_is, inverse * size, found)
    return torch.where(two_is & ~one_is, _root(q_full)[0] / size, found)


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
