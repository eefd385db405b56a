"""Samples of pooling, padding and resampling."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.oracle.sample import Sample, given, indices, p, sample

aten = torch.ops.aten

POSITIONS = {"*": "positions are pinned, also where windows do not overlap or hold everything"}
CORNERS = torch.tensor([0, 3, 12, 15])


def image(dimensions: int, size: int = 4) -> Any:
    """Two images of three channels."""
    return p(2, 3, *[size] * dimensions)


def _pool(packet: Any, dimensions: int, *args: Any, **options: Any) -> Sample:
    overload = getattr(packet, options.pop("overload", "default"))
    return sample(overload, image(dimensions), *args, search=dimensions == 1, missing=POSITIONS)


def _each(names: str, *args: Any, dimensions: tuple[int, ...] = (1, 2, 3)) -> list[Sample]:
    """The operators of a name with `#` for the number of dimensions; lists repeat per dimension."""
    return [
        _pool(getattr(aten, names.replace("#", str(d))), d, *_repeated(args, d)) for d in dimensions
    ]


def _repeated(args: tuple[Any, ...], count: int) -> list[Any]:
    return [item * count if isinstance(item, list) else item for item in args]


_POOLS = [
    *_each("avg_pool#d", [2], [1]),
    *_each("max_pool#d_with_indices", [2], [1]),
    *_each("max_pool#d", [2], [2]),
    *_each("adaptive_avg_pool#d", [2]),
    *_each("_adaptive_avg_pool#d", [3], dimensions=(2, 3)),
    *_each("adaptive_max_pool#d", [2]),
    _pool(aten.avg_pool2d, 2, [2, 2], [1, 1], [1, 1], True, False),
    sample(aten.avg_pool2d.default, p(3, 4, 4), [2, 2], search=False),
    sample(aten.adaptive_avg_pool2d.default, image(2), [1, 1], missing=POSITIONS, search=False),
    sample(aten._adaptive_avg_pool2d.default, p(2, 3, 2, 2), [1, 1], missing=POSITIONS),
    sample(aten.avg_pool1d.default, given(2, 3, 4), [2]),
    sample(
        *(aten.fractional_max_pool2d.default, p(1, 3, 4, 4), [2, 2], [2, 2]),
        torch.full((1, 3, 2), 0.4, dtype=torch.float64),
        search=False,
    ),
    sample(
        *(aten.fractional_max_pool2d.default, p(1, 3, 4, 4), [2, 2], [2, 2]),
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64).view(1, 3, 1).expand(1, 3, 2),
        search=False,
    ),
]

_RANDOM = [
    sample(
        *(aten.fractional_max_pool2d.default, p(*batch, 3, 4, 4), [2, 2], [2, 2]),
        p(1, 3, 2, low=0.05, high=0.95),
        search=False,
    )
    for batch in ((), (1,))
] + [
    sample(
        *(aten.fractional_max_pool3d.default, p(1, 3, 4, 4, 4), [2] * 3, [2] * 3),
        p(1, 3, 3, low=0.05, high=0.95),
        search=False,
    )
]

_UNPOOLED = [
    sample(aten.max_unpool2d.default, p(2, 3, 2, 2), indices(2, 3, 2, 2, below=16), [4, 4]),
    sample(
        *(aten.max_unpool2d.default, p(3, 2, 2), CORNERS.view(1, 2, 2).expand(3, 2, 2), [4, 4]),
        missing=POSITIONS,
    ),
    sample(
        *(aten.max_unpool3d.default, p(1, 3, 2, 2, 1), CORNERS.view(1, 1, 2, 2, 1)),
        *([4, 4, 1], [2, 2, 1], [0, 0, 0]),
        call=lambda x, i, *rest: aten.max_unpool3d.default(x, i.expand(x.shape), *rest),
        missing=POSITIONS,
    ),
]

_PADS = [
    *_each("reflection_pad#d", [1, 2]),
    *_each("replication_pad#d", [2, 1]),
]


def _resample(name: str, *args: Any, dimensions: tuple[int, ...] = (1, 2, 3)) -> list[Sample]:
    """By size and, in the other overload, by factors."""
    found = []
    for d in dimensions:
        packet = getattr(aten, name.replace("#", str(d)))
        found.append(_pool(packet, d, [5] * d, *args))
        found.append(_pool(packet, d, None, *args, [1.5] * d, overload="vec"))
    return found


_RESAMPLING = [
    *_resample("upsample_nearest#d"),
    *_resample("_upsample_nearest_exact#d"),
    *_resample("upsample_linear#d", False, dimensions=(1,)),
    *_resample("upsample_bilinear#d", True, dimensions=(2,)),
    *_resample("upsample_bicubic#d", False, dimensions=(2,)),
    *_resample("upsample_trilinear#d", False, dimensions=(3,)),
    *_resample("_upsample_bilinear#d_aa", False, dimensions=(2,)),
    *_resample("_upsample_bicubic#d_aa", False, dimensions=(2,)),
]

SAMPLES = [*_POOLS, *_RANDOM, *_UNPOOLED, *_PADS, *_RESAMPLING]
