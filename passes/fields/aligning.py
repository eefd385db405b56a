"""Fields of tensors that lie side by side along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fxrebasin.passes.fields.fields import Field, Labels, Value, free_labels, onto_axes
from fxrebasin.passes.fields.joining import join
from fxrebasin.passes.fields.labels import NONE, rigid_labels
from fxrebasin.passes.fields.ledger import Ledger
from fxrebasin.passes.fields.moving import materialised


def concatenate_values(
    ledger: Ledger, values: Sequence[Value], dim: int, shape: Sequence[int]
) -> Value:
    """Pieces along an axis; their other axes stay independent of each other.

    Fields of different pieces that vary along the same other axes become one field that also
    varies along `dim`; a piece without such a field gets `NONE`, which is what zeros need.
    """
    if len(values) == 1:
        return Value(tuple(shape), values[0].fields)
    pieces = [materialised(ledger, value, set(range(len(value.shape)))) for value in values]
    labels = [[item for item in piece if isinstance(item, Labels)] for piece in pieces]
    common, rest = _split_common(ledger, labels, dim)
    fields: list[Field] = [*common]
    for row in _rows_of_fields(rest, dim):
        fields.append(_concatenate_row(ledger, row, values, dim))
    sizes = [value.shape[dim] for value in values]
    if not any(isinstance(f, Labels) and f.axes == (dim,) and f.injective for f in fields):
        fields += _segments(sizes, len(shape), dim)
    return Value(tuple(shape), join(ledger, fields))


def _split_common(
    ledger: Ledger, pieces: Sequence[Sequence[Labels]], dim: int
) -> tuple[list[Labels], list[list[Labels]]]:
    """Fields off the concatenated axis that all pieces share, and what remains of each piece."""
    common = []
    rest = [list(piece) for piece in pieces]
    for item in pieces[0]:
        if dim in item.axes:
            continue
        partners = [next((o for o in piece if _equal(ledger, item, o)), None) for piece in rest]
        if all(partner is not None for partner in partners):
            common.append(item)
            for piece, partner in zip(rest, partners, strict=True):
                if partner is not None:
                    piece.remove(partner)
    return common, rest


def _equal(ledger: Ledger, first: Labels, second: Labels) -> bool:
    if first.values.shape != second.values.shape or first.rigid != second.rigid:
        return False
    if first.rigid and first.injective and second.injective and len(first.axes) == 1:
        return True  # positions along one axis, whatever they were called
    one, two = first.values.numpy(), second.values.numpy()
    return bool((ledger.find(one) == ledger.find(two)).all())


def _rows_of_fields(pieces: Sequence[Sequence[Labels]], dim: int = -1) -> list[list[Labels | None]]:
    """Rows of fields, one per piece, that vary along the same axes besides `dim`."""
    keys: dict[tuple[tuple[int, ...], int], None] = {}
    keyed: list[dict[tuple[tuple[int, ...], int], Labels]] = []
    for piece in pieces:
        seen: dict[tuple[tuple[int, ...], int], Labels] = {}
        for item in piece:
            axes = tuple(axis for axis in item.axes if axis != dim)
            count = sum(1 for key in seen if key[0] == axes)
            seen[(axes, count)] = item
        keys.update(dict.fromkeys(seen))
        keyed.append(seen)
    return [[piece.get(key) for piece in keyed] for key in sorted(keys)]


def _concatenate_row(
    ledger: Ledger, row: Sequence[Labels | None], values: Sequence[Value], dim: int
) -> Labels:
    ndim = len(values[0].shape)
    shape = [1] * ndim
    for item in row:
        if item is not None:
            shape = [max(a, b) for a, b in zip(shape, item.values.shape, strict=True)]
    parts = []
    for item, value in zip(row, values, strict=True):
        shape[dim] = value.shape[dim]
        filler = torch.full([1] * ndim, NONE)
        parts.append((filler if item is None else item.values).expand(shape))
    joined = torch.cat(parts, dim)
    found = [item for item in row if item is not None]
    rigid = all(item.rigid for item in found)
    reason = next((item.reason for item in found if item.reason), "")
    result = free_labels(joined)
    if result is None:
        return Labels(joined, (), False, rigid, reason)
    return replace(result, rigid=rigid, reason=reason)


def _segments(sizes: Sequence[int], ndim: int, dim: int) -> list[Field]:
    """Which piece a position of a concatenated axis comes from."""
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = Labels(rigid_labels(index), (0,), len(sizes) == index.numel(), True, "segment")
    return onto_axes([labels], [dim], ndim)
