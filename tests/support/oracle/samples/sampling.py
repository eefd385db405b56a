"""Samples of operators that look between the pixels of an image."""

from __future__ import annotations

import torch

from tests.support.oracle.sample import p, sample

aten = torch.ops.aten

_POINTS = {"*": "points are positions of the result"}

SAMPLES = [
    sample(
        *(aten.grid_sampler_2d.default, p(2, 3, 4, 4), p(2, 3, 2, 2, low=-1.0, high=1.0), 0, 0),
        *(False,),
        missing=_POINTS,
    ),
    sample(
        *(aten.grid_sampler_2d.default, p(1, 3, 4, 4), p(1, 2, 2, 2, low=-1.0, high=1.0), 1, 1),
        *(True,),
        search=False,
    ),
    sample(
        *(aten.grid_sampler_3d.default, p(2, 3, 2, 3, 3)),
        *(p(2, 2, 2, 2, 3, low=-1.0, high=1.0), 0, 0, False),
        search=False,
    ),
]
