"""Samples of look-ups: embeddings, gathers and advanced indexing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.support.oracle.sample import Operand, Sample, bools, indices, ints, p, sample

aten = torch.ops.aten

UNREAD = {"*": "elements that no index chooses stay where they are"}


def at(*positions: int) -> Tensor:
    """Constant indices."""
    return torch.tensor(positions)


def per_unit(*shape: int, below: int) -> Operand:
    """Indices whose positions may move: a parameter holds them."""
    return ints(*shape, low=0, high=below - 1)


_EMBEDDINGS = [
    sample(aten.embedding.default, p(5, 4), per_unit(2, 3, below=5)),
    sample(aten.embedding.default, p(3, 4), per_unit(below=3)),
    sample(aten.embedding.default, p(5, 4), indices(2, 3, below=5)),
    sample(aten.embedding.default, p(5, 4), indices(3, below=5), 0),
    sample(aten.embedding.default, p(5, 4), indices(below=5)),
    sample(aten.embedding.default, p(3, 4), at(2, 0, 1)),
    sample(aten.embedding_renorm.default, p(3, 4), at(2, 0), 0.5, 2.0, search=False),
    sample(aten.embedding_renorm.default, p(3, 4), per_unit(4, below=3), 0.5, 1.0, search=False),
    sample(aten.embedding_renorm_.default, p(3, 4), at(2, 0), 0.5, 2.0, search=False),
]


POOLED = {"*": "positions of an index that is divided into bags are pinned"}


def _bags(
    overload: OpOverload, mode: int, *rest: Any, rows: Operand | None = None, **options: Any
) -> Sample:
    """Three bags of six rows in all; the outputs after the first are counts."""
    rows, starts = rows or indices(6, below=5), at(0, 2, 3)
    call = None if mode == 2 else lambda *args: overload(*args)[0]
    return sample(overload, p(5, 4), rows, starts, False, mode, False, *rest, call=call, **options)


_BAGS = [
    item
    for packet in (aten._embedding_bag, aten._embedding_bag_forward_only)
    for item in (
        _bags(packet.default, 0),
        _bags(packet.default, 1),
        _bags(packet.default, 0, p(6)),
        _bags(packet.default, 0, rows=per_unit(6, below=5), missing=POOLED),
        _bags(
            packet.default,
            2,
            missing={"out1[0]": "to which bag an index belongs is pinned"},
        ),
    )
]

_ALONG_ONE_AXIS = [
    sample(aten.index_select.default, p(3, 4), 1, at(2, 0, 2), missing=UNREAD),
    sample(aten.index_select.default, p(3, 4), -2, at(1), missing=UNREAD),
    sample(
        *(aten.index_select.default, p(3, 4), 1, indices(2, below=4)),
        missing={"*": "positions chosen by data are pinned"},
    ),
    sample(aten.index_select.default, p(3, 4), -2, per_unit(2, below=3), missing=UNREAD),
    sample(aten.index_select.default, p(), 0, at(0)),
    sample(aten.gather.default, p(3, 4), 1, indices(3, 2, below=4)),
    sample(aten.gather.default, p(3, 4), 1, per_unit(3, 2, below=4)),
    sample(
        *(aten.gather.default, p(3, 4), 0, at(2, 0, 1, 1).view(1, 4)),
        missing={"*": "an index that is a constant pins the axes along which it varies"},
    ),
    sample(
        *(aten.gather.default, p(3, 4), 0, at(0, 0, 1, 1).view(2, 2)),
        missing={"*": "an index that covers a part of the other axes pins all of them"},
    ),
]

TWICE = {"*": "positions that hold the same element are exchanged with nothing else"}

_ADVANCED = [
    sample(aten.index.Tensor, p(3, 4), [at(2, 0)], missing=UNREAD),
    sample(aten.index.Tensor, p(3, 4), [None, at(2, 0, 3, 1)]),
    sample(aten.index.Tensor, p(3, 4), [None, at(1)], missing=UNREAD),
    sample(aten.index.Tensor, p(3, 4), [at(0, 1, 2), at(1, 1, 3)], missing=UNREAD),
    sample(aten.index.Tensor, p(2, 3, 4), [None, at(2, 0).view(2, 1), at(1, 1, 3)], missing=UNREAD),
    sample(aten.index.Tensor, p(2, 3, 4), [at(1, 0), None, at(1, 3)], missing=UNREAD),
    sample(aten.index.Tensor, p(5, 4), [at(0, 1, 1, 2, 0, 3).view(2, 3)]),
    sample(aten.index.Tensor, p(3, 4), [torch.tensor([True, False, True])], missing=UNREAD),
    sample(aten.index.Tensor, p(5, 4), [indices(3, below=5)]),
    sample(aten.index.Tensor, p(2, 5, 4), [None, indices(2, 3, below=5)]),
    sample(aten.index.Tensor, p(5, 4), [per_unit(2, 3, below=5)]),
    sample(aten.index.Tensor, p(2, 5, 4), [None, per_unit(2, 3, below=5)]),
    sample(aten.index.Tensor, p(2, 3, 4), [None, None, per_unit(2, below=4)]),
    sample(aten.index.Tensor, p(4), [at(0, 1, 2, 3, 1, 0).view(2, 3)], missing=TWICE),
    sample(aten.index.Tensor, p(4), [at(0, 1, 2, 3, 3, 2, 1, 0)], missing=TWICE),
    sample(
        *(aten.index.Tensor, p(3, 5, 4), [indices(2, below=3), indices(2, below=5)]),
        missing={"*": "several indices that depend on data pin all axes"},
    ),
    sample(aten._unsafe_index.Tensor, p(3, 4), [at(2, 0)], missing=UNREAD),
    sample(aten._unsafe_index.Tensor, p(3, 4), [None, at(1, 1, 0)], missing=UNREAD),
]


def _turned(source: Any) -> Any:
    return p(4, 2) if isinstance(source, Operand) else source


OVERWRITTEN = {"*": "elements that are overwritten stay where they are"}
WRITTEN = {"*": "positions that are written to by index are pinned, also by a constant one"}

_WRITES = [
    item
    for name, source in (("index_add", p(2, 4)), ("index_copy", p(2, 4)), ("index_fill", 0.5))
    for packet in (getattr(aten, name), getattr(aten, f"{name}_"))
    for overload in [
        packet.int_Scalar if name == "index_fill" else packet.default,
    ]
    for item in (
        sample(overload, p(3, 4), 0, indices(2, below=3), source, search=False),
        sample(overload, p(3, 4), 0, at(2, 0), source, missing=OVERWRITTEN),
        sample(overload, p(4, 2), -2, at(3, 0, 2, 1), _turned(source)),
        sample(overload, p(3, 4), 0, at(2, 2), source, missing=WRITTEN),
    )
]

_REDUCED = [
    sample(overload, p(3, 4), 0, index, p(2, 4), mode, include_self=own, **options)
    for overload in (aten.index_reduce.default, aten.index_reduce_.default)
    for index, mode, own, options in (
        (indices(2, below=3), "mean", False, {"search": False}),
        (at(0, 0), "amax", True, {"missing": WRITTEN}),
        (at(0, 2), "prod", True, {}),
        (at(0, 2), "mean", False, {"missing": OVERWRITTEN}),
    )
]

_FILLED = [
    sample(overload, p(3, 4), 0, at(*places), p(), missing=OVERWRITTEN)
    for overload in (aten.index_fill.int_Tensor, aten.index_fill_.int_Tensor)
    for places in ((2, 0), (2, -1, 2))
]

_SCATTERED = [
    item
    for packet in (aten.scatter, aten.scatter_)
    for item in (
        sample(packet.src, p(3, 4), 0, indices(2, 4, below=3), p(2, 4), search=False),
        sample(packet.src, p(3, 4), 1, at(0, 2, 1).view(3, 1), p(3, 1)),
        sample(packet.src, p(3, 4), 1, at(0, 2).view(2, 1), p(2, 1), missing=WRITTEN),
        sample(packet.value, p(3, 4), 1, at(0, 2, 1).view(3, 1), 0.5),
        sample(
            *(packet.reduce, p(3, 4), 1, at(0, 2, 1).view(3, 1), p(3, 1)),
            reduce="add",
        ),
        sample(
            *(packet.value_reduce, p(3, 4), 1, at(0, 2, 1).view(3, 1), 0.5),
            reduce="multiply",
        ),
    )
] + [
    item
    for add, reduce in (
        (aten.scatter_add, aten.scatter_reduce),
        (aten.scatter_add_, aten.scatter_reduce_),
    )
    for item in (
        sample(add.default, p(3, 4), 1, at(0, 2, 1).view(3, 1), p(3, 1)),
        sample(reduce.two, p(3, 4), 1, at(0, 2, 1).view(3, 1), p(3, 1), "amax"),
    )
]

_PUT = [
    item
    for overload in (
        aten.index_put.default,
        aten.index_put_.default,
        aten._unsafe_index_put.default,
    )
    for item in (
        sample(overload, p(3, 4), [at(2, -3)], p(2, 4), missing=OVERWRITTEN),
        sample(overload, p(3, 4), [None, at(2, -1, 2)], p(), missing=OVERWRITTEN),
        sample(overload, p(3, 4), [at(2, 0)], p(1, 1), missing=OVERWRITTEN),
        sample(overload, p(3, 4), [at(2, 0, 2)], p(), True, search=False),
        sample(overload, p(3, 4), [at(2, 0)], p(4), True, missing=WRITTEN),
        sample(overload, p(3, 4), [at(2, 0)], p(2, 4), True),
        sample(overload, p(3, 4), [None, at(2, 0, 1, 3)], p(3, 4)),
        sample(overload, p(3, 5, 4), [at(2, 0), at(1, 1)], p(2, 4), missing=WRITTEN),
        sample(overload, p(3, 4), [None, at(1)], p(3, 1), missing=OVERWRITTEN),
        sample(overload, p(3, 4), [torch.tensor([True, False, True])], p(2, 4), missing=WRITTEN),
        sample(overload, p(3, 4), [bools(3, 4)], p()),
        sample(overload, p(3, 4, 2), [bools(3, 4)], p()),
    )
]

OFFSETS = torch.tensor([2, 3, 6], dtype=torch.int32)


def _products(rows: Tensor, stack: Tensor, offsets: Tensor | None = None) -> Tensor:
    if offsets is None:
        return rows @ stack
    ends = [0, *offsets.tolist()]
    return torch.cat([rows[a:b] @ m for a, b, m in zip(ends, ends[1:], stack, strict=False)])


_GROUPED = [
    sample(
        aten._grouped_mm.default,
        *(p(6, 4), p(3, 4, 8), OFFSETS),
        call=lambda *operands: aten._grouped_mm.default(*map(_narrow, operands)).double(),
        reference=_products,
        missing={"*": "rows are chosen by data"},
    ),
]


def _narrow(operand: Tensor) -> Tensor:
    return operand.float() if operand.is_floating_point() else operand


SAMPLES = [
    *(*_EMBEDDINGS, *_BAGS, *_ALONG_ONE_AXIS, *_ADVANCED),
    *(*_WRITES, *_REDUCED, *_FILLED, *_SCATTERED, *_PUT, *_GROUPED),
]
