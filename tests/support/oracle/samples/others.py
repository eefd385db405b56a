"""Samples of distances, matrix decompositions, packed sequences, sparse products and lists."""

from __future__ import annotations

from typing import Any

import torch

from fxrebasin.passes.rules.registry import RULES
from tests.support.oracle.sample import Sample, p, sample

aten = torch.ops.aten

LENGTHS = torch.tensor([4, 2, 1])
STEPS = {"*": "steps and sequences are pinned, also where they are alike"}
PINNED = {"*": "rows and columns are pinned, also of functions of matrices that have no order"}
POSITIVE = torch.diag(torch.tensor([7.0, 9.0, 12.0], dtype=torch.float64))
"""What is added to matrices; with equal numbers, rounding would choose some eigenvectors."""

_DISTANCES = [
    sample(aten._cdist_forward.default, p(3, 5), p(4, 5), 2.0, None),
    sample(aten._cdist_forward.default, p(2, 3, 5), p(2, 4, 5), 1.0, None, search=False),
    sample(aten._cdist_forward.default, p(2, 3, 5), p(4, 5), 2.0, 1, search=False),
    sample(aten._cdist_forward.default, p(1, 3, 5), p(2, 4, 5), 1.0, None, search=False),
    sample(aten._cdist_forward.default, p(2, 1, 3, 5), p(3, 4, 5), 2.0, None, search=False),
]


def _positive(overload: torch._ops.OpOverload, *rest: bool) -> Sample:
    """Of a positive matrix, in a batch of two."""
    return sample(
        *(overload, p(2, 3, 3), *rest),
        call=lambda x, *others: overload(x @ x.transpose(-1, -2) + POSITIVE, *others),
        missing=PINNED,
        search=False,
    )


_MATRICES = [
    _positive(aten.linalg_cholesky_ex.default),
    _positive(aten.linalg_inv_ex.default),
    _positive(aten._linalg_det.default),
    _positive(aten._linalg_slogdet.default),
    _positive(aten._linalg_eigh.default),
    _positive(aten._linalg_svd.default, False, False),
    _positive(aten.linalg_qr.default),
    _positive(aten.linalg_lu_factor_ex.default),
    _positive(aten.linalg_matrix_exp.default),
    sample(aten.linalg_matrix_exp.default, p(3, 3), missing=PINNED),
]

_PACKED = [
    sample(aten._pack_padded_sequence.default, p(3, 4, 2), LENGTHS, True, missing=STEPS),
    sample(aten._pack_padded_sequence.default, p(4, 3, 2), LENGTHS, False, missing=STEPS),
    sample(
        *(aten._pad_packed_sequence.default, p(7, 2), torch.tensor([3, 2, 1, 1]), True, 0.5, 5),
        missing=STEPS,
    ),
]

ADJACENCY = torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.0, 0.0]], dtype=torch.float64)
EDGES = {"*": "a sparse matrix is a constant, which pins the axes that it meets"}

_SPARSE = [
    sample(overload, *before, matrix, p(3, 4), missing=EDGES)
    for matrix in (ADJACENCY.to_sparse(),)
    for overload, before in (
        (aten._sparse_mm.default, ()),
        (aten._sparse_addmm.default, (p(2, 4),)),
        (aten._sparse_addmm.default, (p(4),)),
    )
]


def _each(overload: torch._ops.OpOverload) -> Sample:
    """Lists of two tensors for lists of tensors, and numbers for all other arguments."""
    args: list[Any] = []
    for argument in overload._schema.arguments:
        kind = str(argument.type)
        if argument.has_default_value():
            continue
        if kind == "List[Tensor]":
            args.append([p(3, 4, low=0.1, high=0.9), p(4, low=0.1, high=0.9)])
        elif kind.startswith("List"):
            args.append([0.5, 1.5])
        else:
            args.append(p(low=0.5) if kind == "Tensor" else 1.5)
    return sample(overload, *args, search=False)


_LISTS = [
    _each(overload)
    for overload in RULES
    if "_foreach_" in str(overload) and not any(a.is_out for a in overload._schema.arguments)
]

SAMPLES = [*_DISTANCES, *_MATRICES, *_PACKED, *_SPARSE, *_LISTS]
