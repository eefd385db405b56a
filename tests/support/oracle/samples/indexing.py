"""Samples of look-ups: embeddings, gathers and advanced indexing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from tests.support.oracle.sample import Sample, indices, p, sample

aten = torch.ops.aten


def at(*positions: int) -> Tensor:
    """Constant indices."""
    return torch.tensor(positions)


_EMBEDDINGS = [
    sample(aten.embedding.default, p(5, 4), indices(2, 3, below=5)),
    sample(aten.embedding.default, p(5, 4), indices(3, below=5), 0),
    sample(aten.embedding.default, p(5, 4), indices(below=5)),
    sample(aten.embedding.default, p(3, 4), at(2, 0, 1)),
]


def _bags(overload: OpOverload, mode: int, *rest: Any, **options: Any) -> Sample:
    """Three bags of six rows in all; the outputs after the first are counts."""
    rows, starts = indices(6, below=5), at(0, 2, 3)
    call = None if mode == 2 else lambda *args: overload(*args)[0]
    return sample(overload, p(5, 4), rows, starts, False, mode, False, *rest, call=call, **options)


_BAGS = [
    item
    for packet in (aten._embedding_bag, aten._embedding_bag_forward_only)
    for item in (
        _bags(packet.default, 0),
        _bags(packet.default, 1),
        _bags(packet.default, 0, p(6)),
        _bags(packet.default, 2, missing={"*": "the index of a maximum pins all axes"}),
    )
]

_ALONG_ONE_AXIS = [
    sample(aten.index_select.default, p(3, 4), 1, at(2, 0, 2)),
    sample(aten.index_select.default, p(3, 4), -2, at(1)),
    sample(
        *(aten.index_select.default, p(3, 4), 1, indices(2, below=4)),
        missing={"*": "positions chosen by data are pinned"},
    ),
    sample(aten.gather.default, p(3, 4), 1, indices(3, 2, below=4)),
    sample(
        *(aten.gather.default, p(3, 4), 0, at(2, 0, 1, 1).view(1, 4)),
        missing={"*": "an index that is a constant pins the axes along which it varies"},
    ),
    sample(
        *(aten.gather.default, p(3, 4), 0, at(0, 0, 1, 1).view(2, 2)),
        missing={"*": "an index that covers a part of the other axes pins all of them"},
    ),
]

_ADVANCED = [
    sample(aten.index.Tensor, p(3, 4), [at(2, 0)]),
    sample(aten.index.Tensor, p(3, 4), [None, at(2, 0, 3, 1)]),
    sample(aten.index.Tensor, p(3, 4), [None, at(1)]),
    sample(aten.index.Tensor, p(3, 4), [at(0, 1, 2), at(1, 1, 3)]),
    sample(aten.index.Tensor, p(2, 3, 4), [None, at(2, 0).view(2, 1), at(1, 1, 3)]),
    sample(aten.index.Tensor, p(2, 3, 4), [at(1, 0), None, at(1, 3)]),
    sample(aten.index.Tensor, p(5, 4), [at(0, 1, 1, 2, 0, 3).view(2, 3)]),
    sample(aten.index.Tensor, p(3, 4), [torch.tensor([True, False, True])]),
    sample(aten.index.Tensor, p(5, 4), [indices(3, below=5)]),
    sample(aten.index.Tensor, p(2, 5, 4), [None, indices(2, 3, below=5)]),
    sample(
        *(aten.index.Tensor, p(3, 5, 4), [indices(2, below=3), indices(2, below=5)]),
        missing={"*": "several indices that depend on data pin all axes"},
    ),
    sample(aten._unsafe_index.Tensor, p(3, 4), [at(2, 0)]),
    sample(aten._unsafe_index.Tensor, p(3, 4), [None, at(1, 1, 0)]),
]

SAMPLES = [*_EMBEDDINGS, *_BAGS, *_ALONG_ONE_AXIS, *_ADVANCED]
