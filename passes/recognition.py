"""Which buffers are state by their use, and the symmetry that follows.

Frozen normalisations, spectral norm and pruning keep what belongs to units in buffers: a scale, a
shift, a statistic, a mask. As state they move with their units, and the symmetry holds whatever
they contain. A buffer that is read is first taken for state. It stays state if its use shows that
it is; otherwise the model is analysed again with it as a constant.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fxrebasin.choices import Choices
from fxrebasin.errors import FxRebasinError
from fxrebasin.layout import AxisGroup
from fxrebasin.passes.fields.fields import Elements
from fxrebasin.passes.group.group import Grouping, group
from fxrebasin.passes.propagate.model_state import Held, Role, held_tensors, with_constants
from fxrebasin.passes.propagate.propagate import NeedsValuesError, propagate
from fxrebasin.passes.propagate.propagation import Propagation
from fxrebasin.symmetry import log10_order
from fxrebasin.wording import listed, spoken

_LISTED = 4
_SAME = 1e-9

_USES = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        *("view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "t", "transpose"),
        *("slice", "select"),
        *("permute", "repeat", "clone", "detach", "alias", "_to_copy", "to", "contiguous"),
        *("add", "sub", "rsub", "mul", "div", "addcmul", "addcdiv", "neg", "abs", "reciprocal"),
        *("sqrt", "rsqrt", "square", "pow", "exp", "log", "sigmoid", "softplus", "clamp_min"),
        *("mv", "dot", "vdot", "mm", "bmm", "matmul", "addmv", "addmm", "linear", "sum"),
        *("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
        *("cudnn_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update"),
        *("miopen_batch_norm", "native_layer_norm", "native_group_norm", "_fused_rms_norm"),
        *("clamp", "add_", "mul_", "div_", "sub_"),
    )
)
"""Operators that scale, shift or normalise by a buffer, or turn it into what does so."""


@dataclass(frozen=True, eq=False)
class Finding:
    """What an analysis found.

    Args:
        propagation: what was recorded, with all that follows from it.
        grouping: what follows from it.
        notes: about buffers that hold units in place, in words.
    """

    propagation: Propagation
    grouping: Grouping
    notes: tuple[str, ...] = ()


def recognised_state(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    choices: Choices,
    *,
    values: bool = True,
) -> Finding:
    """Analyse a model, with those buffers as state whose use shows that they are.

    Args:
        args: positional inputs.
        kwargs: keyword inputs.
        choices: of the user: buffers that are state in any case, outputs that count.
        values: see `propagate`.

    Raises:
        NeedsValuesError: see `propagate`.
        InputError: the model does not run on these inputs.
    """

    def run(constants: Collection[str]) -> Finding:
        taken = with_constants(held, constants)
        propagation = propagate(model, args, kwargs, choices, taken, values=values)
        grouping = group(propagation)
        return Finding(grouping.solved, grouping)

    held = held_tensors(model, choices.state_buffers)
    constants = {item.name for item in held if item.role is Role.CANDIDATE}
    possible = _with_the_shape_of_state(held)
    constants -= possible
    found = _best_effort(run, constants, constants | possible)
    holding: set[str] = set()
    idle: set[str] = set()
    while True:
        read = found.propagation.recognised
        unfit = {name for name in read if not _is_state(found, read[name])}
        if not unfit:
            break
        constants |= unfit
        before, found = found, run(constants)
        if _order(found) < _order(before) - _SAME:
            holding |= {name for name in unfit if _units_of_parameters(before, name)}
        elif not before.propagation.looked_at_data:
            idle |= unfit
    found = _without_loss(run, found, constants)
    return replace(found, notes=tuple(_notes(found, holding, idle)))


def _order(found: Finding) -> float:
    return log10_order(found.grouping.classes)


def _units_of_parameters(found: Finding, name: str) -> dict[str, float]:
    """How often a unit is in a parameter, by the classes that move a buffer and a parameter."""
    parameters = {h.name for h in found.propagation.held if isinstance(h.tensor, nn.Parameter)}
    least: dict[str, float] = {}
    for parameter in parameters & found.grouping.layout.keys():
        for counts in map(_positions_per_unit, found.grouping.layout[parameter]):
            for c, count in counts.items():
                least[c] = min(count, least.get(c, math.inf))
    own = {
        slot.class_name
        for group in found.grouping.layout.get(name, ())
        for piece in group.pieces
        for slot in piece.slots
    }
    return {c: count for c, count in least.items() if c in own}


def _best_effort(run: Any, constants: Collection[str], every: Collection[str]) -> Finding:
    """With candidates as state; as constants, if the model cannot be analysed like that."""
    try:
        found: Finding = run(constants)
    except NeedsValuesError:
        raise
    except FxRebasinError:
        if set(every) == set(constants):
            raise
        found = run(every)
    return found


def _with_the_shape_of_state(held: Sequence[Held]) -> set[str]:
    """Candidates that are vectors, or that a parameter could meet element by element."""
    shapes = {item.tensor.shape for item in held if item.role is Role.STATE}
    return {
        item.name
        for item in held
        if item.role is Role.CANDIDATE
        and (sum(size > 1 for size in item.tensor.shape) == 1 or item.tensor.shape in shapes)
    }


def _without_loss(run: Any, found: Finding, constants: Collection[str]) -> Finding:
    """The finding, or a better one with fewer buffers as state.

    A buffer that is uniform, if only in part, may lie on units of several classes: as state it
    ties them. A model that looks at data, or is not understood in part, may also be better off with
    constants.
    """
    read = found.propagation.recognised
    doubtful = set(read) if found.propagation.looked_at_data or found.propagation.unknown else set()
    doubtful |= {name for name, item in read.items() if _repeats_itself(item)}
    if not doubtful:
        return found
    other: Finding = run({*constants, *doubtful})
    return other if _order(other) > _order(found) + _SAME else found


def _repeats_itself(item: Held) -> bool:
    """Whether some numbers in a buffer are equal, but for their sign."""
    values = item.tensor.detach()
    return not values.is_meta and values.abs().unique().numel() < values.numel()


def _is_state(found: Finding, item: Held) -> bool:
    """Whether a buffer belongs to units: it has, for each, what a parameter has for it.

    A class without a parameter does not count. Nor does a unit that every parameter has at more
    positions than the buffer has it, for then it is not the buffer's own: the frequencies of rotary
    embeddings belong to pairs of dimensions, the slopes of attention biases to heads.
    """
    layout = found.grouping.layout
    if item.name not in layout or not _scales_or_shifts(found.propagation, item.name):
        return False
    own = [_positions_per_unit(group) for group in layout[item.name]]
    least = _units_of_parameters(found, item.name)
    if not all(count >= least.get(c, math.inf) for counts in own for c, count in counts.items()):
        return False
    axes = sum(size > 1 for size in item.tensor.shape)
    return axes == 1 or _meets_a_parameter(found.propagation, item.name)


def _scales_or_shifts(propagation: Propagation, name: str) -> bool:
    """Whether nothing else is done with a buffer, or with what is made of buffers alone."""
    buffers = {item.name for item in propagation.held if not isinstance(item.tensor, nn.Parameter)}
    for record in propagation.records:
        op = propagation.ledger.origins[record.origin].op
        if op is not None and op.overloadpacket in _USES:
            continue
        for _, value in record.inputs:
            states = {item.state for item in value.fields if isinstance(item, Elements)}
            if name in states and states <= buffers:
                return False
    return True


def _positions_per_unit(group: AxisGroup) -> dict[str, float]:
    """How many positions along its axes a unit of each class has."""
    found: dict[str, float] = {}
    for piece in group.pieces:
        for slot in piece.slots:
            if slot.class_name is not None:
                units = slot.size * math.prod(piece.slots[k].size for k in slot.within)
                count = piece.positions.size / units
                found[slot.class_name] = found.get(slot.class_name, 0.0) + count
    return found


def _meets_a_parameter(propagation: Propagation, name: str) -> bool:
    """Whether an operator reads a buffer and a parameter element by element."""
    parameters = {item.name for item in propagation.held if isinstance(item.tensor, nn.Parameter)}
    for record in propagation.records:
        views = [
            (field.state, (field.view.shape, field.view.stride(), field.view.storage_offset()))
            for _, value in record.inputs
            for field in value.fields
            if isinstance(field, Elements)
        ]
        own = {view for state, view in views if state == name}
        if any(view in own for state, view in views if state in parameters):
            return True
    return False


def _notes(found: Finding, holding: Collection[str], idle: Collection[str]) -> Iterator[str]:
    """What keeps units in place though it belongs to the model's state.

    Args:
        found: the result.
        holding: buffers that would have been moved, had they been taken for state.
        idle: buffers that would not have been.
    """
    held = {item.name: item for item in found.propagation.held}
    pinning = {pin.origin for pin in found.propagation.ledger.pins}
    names = set(holding)
    for origin, met in found.propagation.relied.met.items():
        names |= met if origin in pinning else set()
    names -= found.grouping.layout.keys() | set(idle)
    kept = sorted(name for name in names if held[name].persistent)
    if kept:
        yield (
            f"the values of {listed(kept, _LISTED)} pin units that meet them; buffers that belong "
            "to units, as scales, shifts and masks do, can be declared with "
            f"{spoken('state_buffers=', '--state-buffers')}"
        )
    lost = sorted(name for name in names if not held[name].persistent)
    if lost:
        yield (
            f"the values of {listed(lost, _LISTED)} pin units that meet them; no state dict holds "
            "these buffers, so they cannot be permuted"
        )
    shared = sorted(name for name, item in held.items() if item.overlaps)
    if shared:
        yield (
            f"{listed(shared, _LISTED)} share memory in different views; they are pinned, since a "
            "state dict that is loaded writes over one with the other"
        )
