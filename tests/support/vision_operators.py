"""Detection without torchvision's compiled operators, which a CPU build of torch may not load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor


@contextmanager
def without_compiled_operators() -> Iterator[None]:
    """Let torchvision use what is written in Python, and `suppressed` where it has nothing."""
    from torchvision.ops import boxes, roi_align

    with (
        patch.object(boxes, "nms", suppressed),
        patch.object(sys.modules[roi_align.__module__], "_has_ops", lambda: False),
    ):
        yield


def suppressed(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The indices of boxes that overlap with none of a higher score, from the highest down."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True).tolist()
    overlaps = (box_iou(boxes, boxes) > iou_threshold).tolist()
    kept: list[int] = []
    for index in order:
        if not any(overlaps[index][other] for other in kept):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)
