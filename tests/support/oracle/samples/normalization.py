"""Samples of normalisations and softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.oracle.sample import given, p, sample, statistics

aten = torch.ops.aten

RUNNING = (statistics(3), statistics(3))
AFFINE = (p(3), p(3))


def _running(x: Tensor, w: Tensor, b: Tensor, mean: Tensor, var: Tensor, *rest: Any) -> Any:
    """Batch norm in eval mode, for overloads of other devices."""
    return aten.native_batch_norm(x, w, b, mean, var, False, 0.1, 1e-5)


def _saved(*args: Any) -> Any:
    """With a fourth output, the work space, which is empty."""
    return (*_running(*args), torch.empty(0))


_BATCH_NORMS = [
    sample(aten.native_batch_norm.default, p(2, 3, 4), *AFFINE, *RUNNING, False, 0.1, 1e-5),
    sample(aten.native_batch_norm.default, p(2, 3), None, None, *RUNNING, False, 0.1, 1e-5),
    sample(aten.native_batch_norm.default, p(2, 3, 4), *AFFINE, None, None, True, 0.1, 1e-5),
    sample(aten.native_batch_norm.default, p(2, 3, 2, 2), None, None, None, None, True, 0.1, 1e-5),
    sample(
        *(aten._native_batch_norm_legit.default, p(2, 3), *AFFINE, *RUNNING, False, 0.1, 1e-5),
        search=False,
    ),
    sample(aten._native_batch_norm_legit.no_stats, p(2, 3, 4), *AFFINE, True, 0.1, 1e-5),
    sample(
        *(aten._native_batch_norm_legit_no_training.default, p(2, 3), *AFFINE, *RUNNING, 0.1, 1e-5),
        search=False,
    ),
    sample(
        *(aten._batch_norm_with_update.default, p(2, 3, 4), *AFFINE, *RUNNING, 0.1, 1e-5),
        missing={
            "input[1], weight[0], bias[0], out0[1], out1[0], out2[0]": (
                "running statistics that are only written move along"
            )
        },
    ),
    sample(
        *(aten._batch_norm_no_update.default, p(2, 3), *AFFINE, *RUNNING, 0.1, 1e-5),
        search=False,
    ),
    sample(
        *(aten.cudnn_batch_norm.default, p(2, 3), *AFFINE, *RUNNING, False, 0.1, 1e-5),
        reference=_saved,
        search=False,
    ),
    sample(
        *(aten.miopen_batch_norm.default, p(2, 3), *AFFINE, *RUNNING, False, 0.1, 1e-5),
        reference=_running,
        search=False,
    ),
]

_LAYER_NORMS = [
    sample(aten.native_layer_norm.default, p(3, 4), [4], p(4), p(4), 1e-5),
    sample(aten.native_layer_norm.default, p(2, 3, 4), [3, 4], p(3, 4), None, 1e-5, search=False),
    sample(aten.native_layer_norm.default, p(3, 4), [4], None, None, 1e-5),
    sample(aten.native_layer_norm.default, given(3, 4), [4], p(4), p(4), 1e-5),
    sample(aten._fused_rms_norm.default, p(3, 4), [4], p(4), 1e-5),
    sample(aten._fused_rms_norm.default, p(3, 4), [4], None, 1e-5),
]

_GROUP_NORMS = [
    sample(
        *(aten.native_group_norm.default, p(2, 6, 1), p(6), p(6), 2, 6, 1, 2, 1e-5),
        split={"input": (2, 2, 3), "weight": (2, 3), "bias": (2, 3), "out0": (2, 2, 3)},
    ),
    sample(
        *(aten.native_group_norm.default, p(3, 4, 2), None, None, 3, 4, 2, 1, 1e-5),
        search=False,
    ),
    sample(aten.native_group_norm.default, p(2, 3, 4), p(3), p(3), 2, 3, 4, 3, 1e-5),
    sample(aten.native_group_norm.default, p(1, 3, 4), p(3), p(3), 1, 3, 4, 1, 1e-5),
]

_SOFTMAX = [
    sample(aten._softmax.default, p(3, 4), 1, False),
    sample(aten._softmax.default, p(2, 3, 4), -2, False, search=False),
    sample(aten._softmax.default, p(4), 0, False),
    sample(aten._log_softmax.default, p(3, 4), -1, False),
    sample(aten._safe_softmax.default, p(3, 4), -1),
    sample(aten.softmax.int, p(3, 4), 0),
    sample(aten.log_softmax.int, p(3, 4), 1),
]

_WEIGHT_NORM = [
    sample(aten._weight_norm_interface.default, p(3, 4), p(3, 1), 0),
    sample(aten._weight_norm_interface.default, p(3, 4, 2), p(1, 1, 2), 2),
]

_RENORM = [
    sample(aten.renorm.default, p(3, 4), 2, 0, 0.5),
    sample(aten.renorm.default, p(2, 3, 4), 1, -2, 0.5, search=False),
    sample(aten.renorm_.default, p(3, 4), 2, 1, 0.5),
]

SAMPLES = [*_BATCH_NORMS, *_LAYER_NORMS, *_GROUP_NORMS, *_SOFTMAX, *_WEIGHT_NORM, *_RENORM]
