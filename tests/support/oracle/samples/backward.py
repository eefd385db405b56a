"""Samples of formulas of derivatives."""

from __future__ import annotations

import torch

from tests.support.oracle.sample import Sample, given, indices, p, sample, statistics

aten, prims = torch.ops.aten, torch.ops.prims

BOTH = (p(3, 4), p(3, 4))
POSITIONS = {"*": "positions are pinned, also where windows do not overlap or hold everything"}
ZEROS = {"*": "zeros differ in nothing, and move like what stands beside them all the same"}
IMAGE = p(2, 3, 4, 4)
ALL = [True, True, True]

_ELEMENT_WISE = [
    sample(aten.elu_backward.default, *BOTH[:1], 1.0, 1.0, 1.0, False, p(3, 4)),
    sample(aten.gelu_backward.default, *BOTH, approximate="tanh"),
    sample(aten.hardshrink_backward.default, *BOTH, 0.5, search=False),
    sample(aten.hardsigmoid_backward.default, *BOTH, search=False),
    sample(aten.hardswish_backward.default, *BOTH),
    sample(aten.hardtanh_backward.default, *BOTH, -1.0, 1.0),
    sample(aten.leaky_relu_backward.default, *BOTH, 0.1, False),
    sample(aten.log_sigmoid_backward.default, *BOTH, p(3, 4)),
    sample(aten.logit_backward.default, p(3, 4), p(3, 4, low=0.1, high=0.9)),
    sample(aten.mish_backward.default, *BOTH),
    sample(aten.sigmoid_backward.default, *BOTH),
    sample(aten.silu_backward.default, *BOTH),
    sample(aten.softplus_backward.default, *BOTH, 1.0, 20.0),
    sample(aten.softshrink_backward.default, *BOTH, 0.5, search=False),
    sample(aten.tanh_backward.default, *BOTH),
    sample(aten.threshold_backward.default, *BOTH, 0.0),
    sample(aten._prelu_kernel_backward.default, *BOTH, p(3, 4)),
    sample(aten.mse_loss_backward.default, *BOTH, p(3, 4), 0),
    sample(aten.mse_loss_backward.default, given(), p(3, 4), p(3, 4), 1),
    sample(aten.smooth_l1_loss_backward.default, *BOTH, p(3, 4), 0, 1.0),
    sample(aten.huber_loss_backward.default, *BOTH, p(3, 4), 0, 1.0),
    *(
        sample(getattr(prims, name).default, *BOTH, search=False)
        for name in ("add", "sub", "mul", "div")
    ),
]

_NORMS = [
    sample(aten._softmax_backward_data.default, *BOTH, -1, torch.float64),
    sample(aten._softmax_backward_data.default, *BOTH, 0, torch.float64),
    sample(aten._log_softmax_backward_data.default, *BOTH, 1, torch.float64),
    sample(
        *(aten.native_layer_norm_backward.default, *BOTH, [4], p(3, 1), p(3, 1), p(4), p(4)),
        ALL,
    ),
    sample(
        *(aten.native_layer_norm_backward.default, p(2, 3, 2), p(2, 3, 2), [3, 2]),
        *(p(2, 1, 1), p(2, 1, 1), p(3, 2), None, [True, True, False]),
    ),
    sample(
        *(aten.native_batch_norm_backward.default, p(2, 3, 4), p(2, 3, 4), p(3)),
        *(statistics(3), statistics(3), None, None, False, 1e-5, ALL),
    ),
    sample(
        *(aten.native_batch_norm_backward.default, p(2, 3, 4), p(2, 3, 4), p(3), None, None),
        *(p(3), p(3, low=0.5), True, 1e-5, ALL),
    ),
    sample(
        *(aten.native_group_norm_backward.default, p(2, 4, 3), p(2, 4, 3), p(2, 2), p(2, 2)),
        *(p(4), 2, 4, 3, 2, ALL),
        search=False,
    ),
    sample(
        *(aten.native_group_norm_backward.default, p(1, 4, 2), p(1, 4, 2), p(1, 1), p(1, 1)),
        *(None, 1, 4, 2, 1, [True, False, False]),
        search=False,
    ),
]


def _convolution(
    grad: tuple[int, ...],
    value: tuple[int, ...],
    weight: tuple[int, ...],
    mask: list[bool],
    stride: int = 1,
    transposed: bool = False,
    groups: int = 1,
) -> Sample:
    n = len(weight) - 2
    return sample(
        *(aten.convolution_backward.default, p(*grad), p(*value), p(*weight), None),
        *([stride] * n, [0] * n, [1] * n, transposed, [0] * n, groups, mask),
        search=False,
        missing=POSITIONS,
    )


_CONVOLUTIONS = [
    _convolution((2, 4, 3), (2, 3, 5), (4, 3, 3), [True, True, False]),
    _convolution((2, 4, 3, 3), (2, 3, 3, 3), (4, 3, 1, 1), [True, True, False]),
    _convolution((2, 4, 2), (2, 4, 4), (4, 2, 2), [True, True, False], stride=2, groups=2),
    _convolution((2, 4, 6), (2, 3, 3), (3, 4, 2), [True, True, False], 2, transposed=True),
    _convolution((2, 4, 5), (2, 4, 4), (4, 2, 2), [True, False, False], 1, True, groups=2),
]

_POOLS = [
    sample(
        *(aten.max_pool2d_with_indices_backward.default, p(2, 3, 2, 2), IMAGE, [2, 2], [2, 2]),
        *([0, 0], [1, 1], False, indices(2, 3, 2, 2, below=16)),
        missing=POSITIONS,
        search=False,
    ),
    sample(
        *(aten.max_pool3d_with_indices_backward.default, p(1, 3, 1, 1, 1), p(1, 3, 2, 2, 2)),
        *([2] * 3, [2] * 3, [0] * 3, [1] * 3, False, indices(1, 3, 1, 1, 1, below=8)),
        missing=POSITIONS,
        search=False,
    ),
    *(
        sample(overload, grad, *args, missing=POSITIONS, search=False)
        for overload, grad, args in (
            (
                aten.avg_pool2d_backward.default,
                p(2, 3, 2, 2),
                (IMAGE, [2, 2], [2, 2], [0, 0], False, True, None),
            ),
            (
                aten.avg_pool3d_backward.default,
                p(1, 3, 1, 1, 1),
                (p(1, 3, 2, 2, 2), [2] * 3, [2] * 3, [0] * 3, False, True, None),
            ),
            (aten._adaptive_avg_pool2d_backward.default, p(2, 3, 2, 2), (IMAGE,)),
            (aten._adaptive_avg_pool3d_backward.default, p(1, 3, 1, 1, 1), (p(1, 3, 2, 2, 2),)),
            (aten.upsample_nearest1d_backward.default, p(2, 3, 4), ([4], [2, 3, 2])),
            (aten.upsample_linear1d_backward.default, p(2, 3, 4), ([4], [2, 3, 2], False)),
            (aten.upsample_nearest2d_backward.default, IMAGE, ([4, 4], [2, 3, 2, 2])),
            (aten.upsample_bilinear2d_backward.default, IMAGE, ([4, 4], [2, 3, 2, 2], False)),
            (aten.upsample_bicubic2d_backward.default, IMAGE, ([4, 4], [2, 3, 2, 2], False)),
            (
                aten.upsample_nearest3d_backward.default,
                p(1, 3, 2, 2, 2),
                ([2, 2, 2], [1, 3, 1, 1, 1]),
            ),
            (
                aten.upsample_trilinear3d_backward.default,
                p(1, 3, 2, 2, 2),
                ([2, 2, 2], [1, 3, 1, 1, 1], False),
            ),
            (aten.reflection_pad2d_backward.default, IMAGE, (p(2, 3, 2, 2), [1, 1, 1, 1])),
            (aten.replication_pad2d_backward.default, IMAGE, (p(2, 3, 2, 2), [1, 1, 1, 1])),
        )
    ),
]

_PARTS = [
    sample(aten.slice_backward.default, p(3, 2), [3, 4], 1, 1, 3, 1),
    sample(aten.slice_backward.default, p(2, 4), [4, 4], 0, 0, 9223372036854775807, 2),
    sample(aten.slice_backward.default, p(3, 4), [3, 4], -1, 0, 4, 1),
    sample(aten.slice_backward.default, p(3, 2), [3, 4], -1, -2, 4, 1),
    sample(aten.select_backward.default, p(3), [3, 4], 1, 2, missing=ZEROS),
    sample(aten.select_backward.default, p(4, 2), [3, 4, 2], 0, -1, missing=ZEROS),
    sample(aten.select_backward.default, p(4), [1, 4], 0, 0),
]

SAMPLES = [*_ELEMENT_WISE, *_NORMS, *_CONVOLUTIONS, *_POOLS, *_PARTS]
