"""Writes to positions that indices name: scatter, index_add, index_put and their kin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from fxrebasin.passes.fields.fields import Field, Labels, Value, onto_axes
from fxrebasin.passes.fields.labels import NONE
from fxrebasin.passes.fields.moving import part_of_axis
from fxrebasin.passes.rules.call import Call
from fxrebasin.passes.rules.indexing import MASKS, result_axes
from fxrebasin.passes.rules.numbers import units_on
from fxrebasin.passes.rules.registry import block, pin_everything, rule

_CHOSEN = "position chosen by index"


@rule("index_add", "index_add_", "index_reduce", "index_reduce_")
def add_slices(call: Call) -> Sequence[Value]:
    """Slices of an axis take on what is written to them, in addition to what they held."""
    return _slices(call, keeps=True)


@rule("index_copy", "index_copy_", "index_fill", "index_fill_")
def replace_slices(call: Call) -> Sequence[Value]:
    """Slices of an axis hold what is written to them, in place of what they held."""
    return _slices(call, keeps=False)


def _slices(call: Call, keeps: bool) -> list[Value]:
    """The other axes are those of the source."""
    dim = call.args["dim"] % max(len(call.shape), 1)
    source = call.args.get("source", call.args.get("value"))
    written = [call.lookup(source)] if isinstance(source, Tensor) and source.ndim else []
    find = _places if written else _places_of_one
    known = find(call.constant(call.args["index"]), call.shape[dim]) if call.shape else None
    if known is not None:
        return [_written_at(call, written, dim, known, keeps)]
    call.pin_axes(call.value("index"), [0], _CHOSEN)
    return [_written(call, [call.value("self"), *written], dim)]


def _places(index: Tensor | None, size: int, dim: int = 0) -> Tensor | None:
    """The places of an axis that a constant names, if it names each once, and in all rows alike."""
    if index is None or index.dtype in MASKS or not size:
        return None
    rows = index.movedim(dim, 0).flatten(1) if index.ndim > 1 else index.reshape(-1, 1)
    places = rows[:, 0] % size if rows.numel() else rows.reshape(-1)
    alike = rows.numel() > 0 and bool((rows == rows[:, :1]).all())
    return places if alike and places.unique().numel() == places.numel() else None


def _places_of_one(index: Tensor | None, size: int) -> Tensor | None:
    """The places of an axis that a constant names, however often: all get the same number."""
    if index is None or index.dtype in MASKS or index.numel() == 0:
        return None
    places: Tensor = (index.reshape(-1) % size).unique()
    return places


def _written_at(
    call: Call, written: Sequence[Value], dim: int, places: Tensor, keeps: bool
) -> Value:
    """Places along an axis take on slices of a source, in place of the old ones or beside them.

    Places that are written to are told apart from those that are not.
    """
    fields: list[Field] = []
    for item in call.materialised(call.value("self"), {dim}):
        if keeps or not isinstance(item, Labels) or dim not in item.axes:
            fields.append(item)
        else:
            fields += call.chosen(item.values.index_fill(dim, places, NONE), item)
    for value in written:
        fields += call.put_at(value, dim, places)
    return call.join([*fields, *part_of_axis(call.shape, dim, places, "part that is written to")])


@rule("scatter", "scatter_")
def scatter(call: Call) -> Sequence[Value]:
    """Elements hold what is written to them, combined with what they held if `reduce` is given."""
    return _scattered(call, keeps=call.args.get("reduce") is not None)


@rule("scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter_beside(call: Call) -> Sequence[Value]:
    """Elements take on what is written to them, in addition to what they held."""
    return _scattered(call, keeps=True)


def _scattered(call: Call, keeps: bool) -> Sequence[Value]:
    """Elements are written to along one axis; along the others everything is aligned."""
    dim, index = call.args["dim"] % max(call.rank, 1), call.args["index"]
    written = [call.value("src")] if isinstance(call.args.get("src"), Tensor) else []
    named = call.named(index)
    operands = [call.value("self"), call.lookup(index) if named is None else named, *written]
    if len({(*value.shape[:dim], *value.shape[dim + 1 :]) for value in operands}) > 1:
        return pin_everything("a write to a part of the other axes")(call)
    known = _places(call.constant(index), call.shape[dim], dim) if call.shape else None
    if known is not None and all(item.shape[dim] == known.numel() for item in written):
        return [_written_at(call, written, dim, known, keeps)]
    units = units_on(named, call.shape[dim]) if call.shape else None
    if units is not None:
        return [_written_to_units(call, operands, dim, units)]
    call.lookup(index)
    return [_written(call, operands, dim)]


def _written_to_units(call: Call, operands: Sequence[Value], dim: int, units: Labels) -> Value:
    """The places along the axis that is written to are those of units, which the index names."""
    ndim = len(call.shape)
    target, *written = operands
    fields: list[Field] = [*target.fields, *onto_axes([units], [dim], ndim)]
    for value in written:
        held = call.pin_axes(value, [dim], _CHOSEN)
        fields += call.reduce(held, set(range(ndim)) - {dim})
    return call.join(fields)


def _written(call: Call, operands: Iterable[Value], dim: int) -> Value:
    """Operands of one rank meet everywhere but along the axis whose positions are chosen."""
    ndim = len(call.shape)
    others = set(range(ndim)) - {dim}
    fields: list[Field] = []
    for value in operands:
        fields += call.reduce(call.pin_axes(value, [dim], _CHOSEN), others)
    return call.join([*fields, *call.positions([dim], _CHOSEN)])


@rule("index_put", "index_put_", "_unsafe_index_put")
def index_put(call: Call) -> Sequence[Value]:
    """The indexed axes are pinned; the others are the last axes of what is written."""
    value, indices = call.value("self"), list(call.args["indices"])
    written, mask = call.value("values"), indices[0] if len(indices) == 1 else None
    if mask is not None and mask.dtype in MASKS and call.args["values"].numel() == 1:
        chosen = onto_axes(call.lookup(mask).fields, range(mask.ndim), len(value.shape))
        return [call.join([*value.fields, *chosen])]
    axes = _indexed_axes(indices)
    if axes is None:
        return pin_everything("a write by several indices, one of them a mask")(call)
    given = [index for index in indices if index is not None]
    known = _put_at_constants(call, written, axes, given)
    return [known or _put_by_data(call, written, axes, given)]


def _put_at_constants(
    call: Call, written: Value, axes: Sequence[int], given: Sequence[Tensor]
) -> Value | None:
    """As `index_put`, at places along one axis that are known; None if they are not."""
    one = call.constant(given[0]) if len(given) == 1 and given[0].ndim == 1 else None
    axis, adds = axes[0], bool(call.args["accumulate"])
    if call.args["values"].numel() == 1 and not adds:
        named = _places_of_one(one, call.shape[axis])
        if named is not None:
            return _written_at(call, [], axis, named, keeps=False)
    known = _places(one, call.shape[axis])
    if known is None or written.shape != _with_size(call.shape, axis, known.numel()):
        return None
    return _written_at(call, [written], axis, known, adds)


def _put_by_data(call: Call, written: Value, axes: Sequence[int], given: Sequence[Tensor]) -> Value:
    """As `index_put`, at places that nothing is known of."""
    for index in given:
        call.pin_axes(call.lookup(index), range(index.ndim), _CHOSEN)
    others = [axis for axis in range(call.rank) if axis not in axes]
    fields = call.reduce(call.pin_axes(call.value("self"), axes, _CHOSEN), others)
    inner = 1 if given[0].dtype in MASKS else max(index.ndim for index in given)
    start = result_axes(axes, inner).start
    target = [*others[:start], *[-1] * inner, *others[start:]]
    target = target[len(target) - len(written.shape) :]
    kept = [axis for axis, place_of in enumerate(target) if place_of >= 0]
    source = call.pin_axes(written, set(range(len(target))) - set(kept), _CHOSEN)
    onto = [target[axis] for axis in kept]
    fields += onto_axes(call.reduced(source, kept), onto, call.rank)
    return call.join([*fields, *call.positions(axes, _CHOSEN)])


def _with_size(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _indexed_axes(indices: Sequence[Tensor | None]) -> list[int] | None:
    """The axes that indices choose positions of; None if a mask is one of several."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if not given:
        return None
    axis, index = given[0]
    if len(given) == 1 and index.dtype in MASKS:
        return list(range(axis, axis + index.ndim))
    if any(index.dtype in MASKS for _, index in given):
        return None
    return [axis for axis, _ in given]


block(
    "it deals out values in the order of positions, which depends on data",
    *("masked_scatter", "masked_scatter_", "put", "put_", "take"),
)
