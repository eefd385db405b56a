"""Samples of Fourier transforms."""

from __future__ import annotations

import torch

from tests.support.oracle.sample import complexes, p, sample

aten = torch.ops.aten

_ORDER = {"*": "positions and frequencies are pinned, also those that may be shifted together"}

SAMPLES = [
    sample(aten._fft_r2c.default, p(2, 4, 3), [1], 0, True, missing=_ORDER),
    sample(aten._fft_r2c.default, p(2, 3, 2), [1, 2], 0, True, search=False),
    sample(aten._fft_c2c.default, complexes(2, 3), [1], 0, True, missing=_ORDER),
    sample(aten._fft_c2r.default, complexes(2, 3, 3), [1], 0, 4, missing=_ORDER),
]
