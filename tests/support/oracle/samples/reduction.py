"""Samples of reductions, scans and searches."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.oracle.sample import bools, complexes, given, p, sample

aten = torch.ops.aten

STEPS = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
SORTED = torch.tensor([0.5, -1.0, 0.0], dtype=torch.float64)
ORDER = torch.tensor([1, 2, 0])
RISING = torch.arange(3, dtype=torch.float64)[:, None]

ALL = [
    *(aten.sum, aten.mean, aten.prod, aten.var, aten.std, aten.var_mean, aten.std_mean),
    *(aten.nansum, aten.linalg_vector_norm, aten.max, aten.min, aten.aminmax),
]

_OF_EVERYTHING = [sample(packet.default, p(3, 4), search=packet is aten.sum) for packet in ALL] + [
    sample(aten.any.default, bools(3, 4)),
    sample(aten.all.default, bools(3, 4)),
    sample(aten.count_nonzero.default, bools(3, 4), search=False),
    sample(aten.norm.Scalar, p(3, 4)),
    sample(aten.norm.ScalarOpt_dtype, p(3, 4), 3, dtype=torch.float64),
    sample(aten.sum.default, p()),
    sample(aten.median.default, p(3, 4)),
    sample(aten.nanmedian.default, p(3, 4)),
    sample(aten._is_all_true.default, bools(3, 4)),
    sample(aten._is_any_true.default, bools(3, 4)),
]


def _dims(overload: Any, **options: Any) -> list[Any]:
    """Calls on an axis, on several, on a negative one, and with the axes kept."""
    return [
        sample(overload, p(3, 4), [1], **options),
        sample(overload, p(3, 4), [-2], True, **options),
        sample(overload, p(2, 3, 4), [0, -1], **options, search=False),
    ]


_OF_AXES = [
    *_dims(aten.sum.dim_IntList),
    sample(aten.sum.dim_IntList, p(3, 4), []),
    sample(aten.sum.dim_IntList, p(3, 4), None, True),
    sample(aten.sum.dim_IntList, given(3, 4), [1]),
    sample(aten.sum.dim_IntList, complexes(3, 4), [1]),
    *_dims(aten.mean.dim),
    *_dims(aten.amax.default),
    *_dims(aten.amin.default),
    *_dims(aten.logsumexp.default),
    sample(aten.logsumexp.default, p(3, 4), [0, 1]),
    sample(aten.aminmax.default, p(3, 4), dim=1),
    sample(aten.aminmax.default, p(3, 4), dim=-2, keepdim=True),
    sample(aten.prod.dim_int, p(3, 4), 1),
    sample(aten.var.dim, p(3, 4), [1]),
    sample(aten.var.correction, p(3, 4), [0], correction=0, keepdim=True),
    sample(aten.var.correction, p(3, 4), None, correction=1),
    sample(aten.std.dim, p(3, 4), [1], True, True),
    sample(aten.std.correction, p(3, 4), [1], correction=0),
    sample(aten.var_mean.dim, p(3, 4), [1]),
    sample(aten.var_mean.correction, p(3, 4), [1], correction=0, keepdim=True),
    sample(aten.std_mean.dim, p(3, 4), [1]),
    sample(aten.std_mean.correction, p(3, 4), [0], correction=1),
    sample(aten.nansum.default, p(3, 4), [1]),
    sample(aten.linalg_vector_norm.default, p(3, 4), 2, [1]),
    sample(aten.linalg_vector_norm.default, p(3, 4), 1, [0], True),
    sample(aten.norm.ScalarOpt_dim, p(3, 4), 2, [1]),
    sample(aten.norm.ScalarOpt_dim_dtype, p(3, 4), 2, [1], True, dtype=torch.float64),
    sample(aten.any.dim, bools(3, 4), 1, search=False),
    sample(aten.any.dims, bools(3, 4), [0], search=False),
    sample(aten.all.dim, bools(3, 4), 1, True, search=False),
    sample(aten.all.dims, bools(3, 4), [1], search=False),
    *(
        sample(overload, bools(3, 4), dims, keep)
        for overload in (aten.any.dims, aten.all.dims)
        for dims, keep in (([], False), ([], True), (None, False), ([0, 1], False))
    ),
    sample(aten.count_nonzero.dim_IntList, bools(3, 4), [1], search=False),
]

_SEARCHES = [
    sample(aten.max.dim, p(3, 4), 1),
    sample(aten.max.dim, p(3, 4), -2, True),
    sample(aten.min.dim, p(3, 4), 1),
    sample(aten.argmax.default, p(3, 4), 1),
    sample(aten.argmax.default, p(3, 4), search=False),
    sample(aten.argmin.default, p(3, 4), -1, True),
    sample(aten.median.dim, p(3, 4), 1),
    sample(aten.nanmedian.dim, p(3, 4), -2, True),
    sample(aten.bucketize.Tensor, p(3, 4), STEPS),
    sample(aten.bucketize.Tensor, p(3, 4), STEPS, right=True),
    sample(aten.searchsorted.Tensor, STEPS, p(3, 4)),
    sample(aten.searchsorted.Tensor, STEPS, p()),
    sample(aten.searchsorted.Tensor, SORTED.expand(3, 3), p(3, 4), sorter=ORDER.expand(3, 3)),
    sample(aten.searchsorted.Tensor, STEPS.view(1, 3) + RISING, p(3, 4)),
    sample(aten.kthvalue.default, p(3, 4), 2, 1),
    sample(aten.mode.default, p(3, 4), 1),
    sample(aten.histc.default, p(3, 4), 4, -1, 1, search=False),
]

_LOSSES = [
    item
    for packet in (aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss)
    for item in (
        sample(packet.default, p(3, 4), p(3, 4)),
        sample(packet.default, p(3, 4), p(3, 4), 0),
        sample(packet.default, p(2, 3), given(2, 3), 2),
    )
]

FIRST = {"*": "the first index is always 0, so its weights are all alike"}

_SCANS = [
    sample(aten.cumsum.default, p(3, 4), 1),
    sample(aten.cumsum_.default, p(3, 4), -2),
    sample(aten.cumprod.default, p(3, 4), 1),
    sample(aten.logcumsumexp.default, p(3, 4), 1),
    sample(aten.cummax.default, p(3, 4), 0, missing=FIRST),
    sample(aten.cummin.default, p(3, 4), 1, missing=FIRST),
    sample(aten.sort.default, p(3, 4)),
    sample(aten.sort.default, p(3, 4), 0, True),
    sample(aten.sort.stable, p(3, 4), stable=True, dim=1),
    sample(aten.argsort.default, p(3, 4), 1),
    sample(aten.argsort.stable, p(3, 4), stable=True, dim=0),
    sample(aten.topk.default, p(3, 4), 2),
    sample(aten.topk.default, p(3, 4), 1, 0),
    sample(aten.topk.default, p(3, 4), 2, -1, True, False, search=False),
    sample(aten.topk.default, p(3, 4), 2, 0, False, True),
    sample(aten.topk.default, p(), 1),
]

SAMPLES = [*_OF_EVERYTHING, *_OF_AXES, *_SEARCHES, *_LOSSES, *_SCANS]
