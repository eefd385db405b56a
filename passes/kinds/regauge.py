"""Other choices of the numbers that a model leaves free: its function stays exactly as it is.

Each function takes a state in double precision and returns another one; none is written to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxrebasin.acting import factors_of, numbers_of, refactored
from fxrebasin.groups import Centring, Groups, Reading, Shift
from fxrebasin.layout import PermutationClass
from fxrebasin.passes.kinds.absorbing import changed
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.shifts import Shifts
from fxrebasin.places import positions_of, rows_of, with_rows

State = Mapping[str, Tensor]


def with_factors(
    state: State, groups: Groups, classes: Sequence[PermutationClass], reference: State | None
) -> dict[str, Tensor]:
    """The state with the factors of a reference, or with ones, which what reads them makes up for.

    See `refactored`, also for what is done about zeros.

    Args:
        state: of the model.
        groups: that act on it.
        classes: of its symmetry.
        reference: of another model of the same architecture; None for ones.

    Raises:
        InputError: a factor is zero where something is added behind it that nothing can take back.
    """
    wanted = {} if reference is None else factors_of(reference, groups, classes)
    return refactored(state, groups, classes, wanted)


def with_shifts(
    state: State, reference: State | None, *, graph: FunctionalGraph, groups: Groups
) -> dict[str, Tensor]:
    """The state with the biases of a reference, or with zeros, which others make up for.

    Of an embedding it is the mean of all rows, since the same may be added to each of them; so it
    is of whatever may be shifted by rows only.

    Biases of a reference are those that it has once what comes before them is zero. A bias that
    makes up for an earlier one is then one number less a weight times another, and not a product of
    weights: what lies midway between the reference and the result is what lies midway between both
    without biases.

    Args:
        state: of the model.
        reference: of another model of the same architecture; None for zeros.
        graph: of the model.
        groups: that act on it.
    """
    order = _in_order(groups.shifts, graph)
    found, _ = _without(state, order, graph)
    if reference is None:
        return found
    _, values = _without(reference, order, graph)
    for shift, value in reversed([*zip(order, values, strict=True)]):
        found = _added(found, shift, value, graph)
    return found


def _without(
    state: State, order: Sequence[Shift], graph: FunctionalGraph
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The state with zeros for shifts, and what each was when those before it were zeros."""
    found, values = dict(state), []
    for shift in order:
        values.append(_value(found[shift.parameter], shift))
        found = _added(found, shift, -values[-1], graph)
    return found, values


def _value(own: Tensor, shift: Shift) -> Tensor:
    """What of a tensor a shift is, of a shape that can be added to it."""
    if shift.positions:
        at = torch.tensor(shift.positions)
        return torch.zeros_like(own).index_put((at,), own[at])
    if shift.dimension != own.numel():
        return own.mean(tuple(range(own.dim() - 1)), keepdim=True)
    return own


def _added(state: State, shift: Shift, value: Tensor, graph: FunctionalGraph) -> dict[str, Tensor]:
    """The state with another value of a shift, and what makes up for it."""
    found = dict(state)
    taken = Shifts(graph, found).follow(changed(graph, shift.parameter, value))
    for name, change in ((shift.parameter, value), *taken.items()):
        found[name] = found[name] + change
    return found


def _in_order(shifts: Sequence[Shift], graph: FunctionalGraph) -> list[Shift]:
    """Shifts so that what takes others back is chosen itself after that."""
    left = sorted(shifts, key=lambda shift: _depth(graph, shift.parameter))
    found: list[Shift] = []
    while left:
        taking = [{*shift.takers} - {shift.parameter} for shift in left]
        chosen = next((s for s in left if not any(s.parameter in t for t in taking)), left[0])
        left.remove(chosen)
        found.append(chosen)
    return found


def _depth(graph: FunctionalGraph, name: str) -> int:
    """How far down in the model a parameter is read first: what takes it back comes later."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    return min(order[user] for user in graph.state[name].users)


def centred(
    state: State,
    groups: Groups,
    classes: Sequence[PermutationClass],
    reference: State | None = None,
) -> dict[str, Tensor]:
    """The state without means that nothing sees: of what writes, and of what reads centred values.

    Readers whose norm has a shift are left as they are, since they read the mean of that.

    Args:
        state: of the model.
        groups: that act on it.
        classes: of its symmetry.
        reference: with the same factors, whose means are taken; None for zeros.
    """
    found = dict(state)
    sizes = {c.name: c.size for c in classes}
    for c in (*classes, *groups.still):
        own, layout = groups.centring.get(c.name, Centring()), groups.layout_of(c.name)
        for place in (*own.writers, *own.readers):
            group = layout[place.state][place.group]
            positions = positions_of(layout, place, c, sizes)
            rows = rows_of(found[place.state], group, positions)
            reading = own.readings.get(place, Reading())
            if reading.shift is not None and bool(found[reading.shift.state].any()):
                continue
            scale = torch.ones_like(rows[:, :, :1, :1])
            for factor in reading.factors:
                scale = scale * numbers_of(found, groups, factor, c, sizes)[:, :, None, None]
            mean = (rows * scale).mean(1, keepdim=True)
            if reference is not None:
                other = rows_of(reference[place.state].to(rows), group, positions)
                mean = mean - (other * scale).mean(1, keepdim=True)
            found[place.state] = with_rows(
                found[place.state], group, positions, rows - mean / scale
            )
    return found
