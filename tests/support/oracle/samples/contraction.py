"""Samples of matrix products and convolutions."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.oracle.sample import Operand, Sample, given, p, sample

aten = torch.ops.aten

_PRODUCTS = [
    sample(aten.mm.default, p(3, 4), p(4, 2)),
    sample(aten.mm.default, p(3, 1), p(1, 2)),
    sample(aten.mm.default, p(3, 4), given(4, 2)),
    sample(aten.bmm.default, p(2, 3, 4), p(2, 4, 5)),
    sample(aten.mv.default, p(3, 4), p(4)),
    sample(aten.dot.default, p(4), p(4)),
    sample(aten.vdot.default, p(4), p(4)),
    sample(aten.outer.default, p(3), p(4)),
    sample(aten.ger.default, p(3), p(4)),
    sample(aten.addmm.default, p(2), p(3, 4), p(4, 2)),
    sample(aten.addmm.default, p(3, 1), p(3, 4), p(4, 2), beta=0.5, alpha=2.0),
    sample(aten.addmm.default, p(), p(3, 4), p(4, 2)),
    sample(aten.addmm.default, given(2), p(3, 4), p(4, 2)),
    sample(aten.addmm_.default, p(3, 2), p(3, 4), p(4, 2)),
    sample(aten.baddbmm.default, p(5), p(2, 3, 4), p(2, 4, 5)),
    sample(aten.baddbmm.default, p(2, 3, 1), p(2, 3, 4), p(2, 4, 5)),
    sample(aten.baddbmm_.default, p(2, 3, 5), p(2, 3, 4), p(2, 4, 5)),
    sample(aten.addmv.default, p(3), p(3, 4), p(4)),
    sample(aten.addmv.default, p(1), p(3, 4), p(4)),
    sample(aten.linear.default, p(3, 4), p(2, 4)),
    sample(aten.linear.default, p(3, 4), p(2, 4), p(2)),
    sample(aten.linear.default, p(5, 3, 4), p(2, 4), p(2)),
    sample(aten.linear.default, p(4), p(2, 4), p(2)),
    sample(aten.linear.default, given(3, 4), p(2, 4), p(2)),
]


def _convolution(
    value: Operand, weight: Operand, bias: Operand | None, groups: int = 1, **options: Any
) -> Sample:
    """A call of the overload that all convolutions come down to."""
    spatial = len(weight.shape) - 2
    transposed = options.pop("transposed", False)
    stride, padding = options.pop("stride", 1), options.pop("padding", 0)
    dilation = options.pop("dilation", 1)
    lists = ([stride] * spatial, [padding] * spatial, [dilation] * spatial)
    zero = [0] * spatial
    return sample(
        aten.convolution.default, value, weight, bias, *lists, transposed, zero, groups, **options
    )


_CONVOLUTIONS = [
    _convolution(p(2, 3, 5), p(4, 3, 2), p(4), search=False),
    _convolution(p(1, 3, 1), p(4, 3, 1), p(4)),
    _convolution(p(1, 3, 4, 4), p(2, 3, 3, 3), p(2), padding=1, stride=2),
    _convolution(given(1, 3, 4, 4), p(2, 3, 3, 3), p(2), dilation=1),
    _convolution(p(1, 2, 3, 3, 3), p(4, 2, 2, 2, 2), None),
    _convolution(p(1, 3, 4), p(3, 2, 2), p(2), transposed=True, stride=2),
    _convolution(p(1, 3, 2, 2), p(3, 2, 2, 2), None, transposed=True),
    _convolution(
        *(p(1, 4, 1), p(6, 2, 1), p(6), 2),
        split={"input": (1, 2, 2, 1), "weight": (2, 3, 2, 1), "bias": (2, 3), "out0": (1, 2, 3, 1)},
    ),
    _convolution(
        *(p(1, 6, 1), p(6, 2, 1), None, 3),
        split={"input": (1, 3, 2, 1), "weight": (3, 2, 2, 1), "out0": (1, 3, 2, 1)},
    ),
    _convolution(p(1, 3, 4), p(3, 1, 2), p(3), 3),
    _convolution(
        *(p(1, 3, 1), p(6, 1, 1), p(6), 3),
        split={"weight": (3, 2, 1, 1), "bias": (3, 2), "out0": (1, 3, 2, 1)},
    ),
    _convolution(
        *(p(1, 4, 1), p(4, 3, 1), p(6), 2),
        transposed=True,
        split={"input": (1, 2, 2, 1), "weight": (2, 2, 3, 1), "bias": (2, 3), "out0": (1, 2, 3, 1)},
    ),
    _convolution(p(1, 3, 4), p(3, 1, 2), p(3), 3, transposed=True),
    sample(
        *(aten._convolution.default, p(1, 3, 4), p(2, 3, 2), p(2), [1], [0], [1], False, [0], 1),
        *(False, False, True, True),
    ),
    sample(
        *(aten._convolution.deprecated, p(1, 3, 4), p(2, 3, 2), p(2), [1], [0], [1], False, [0], 1),
        *(False, False, True),
    ),
]

_TRILINEAR = [
    sample(aten._trilinear.default, p(2, 3), p(5, 3, 4), p(2, 4), [1, 3], [0], [1, 2], [2, 3]),
    sample(aten._trilinear.default, p(3), p(2, 3, 4), p(4), [0, 2], [], [0, 1], [1, 2]),
]

SAMPLES = [*_PRODUCTS, *_CONVOLUTIONS, *_TRILINEAR]
