"""torchvision's models of tasks other than classification, and small inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

Case = tuple[nn.Module, tuple[Any, ...]]

NEW = {"weights": None, "weights_backbone": None}
FEW_BOXES = {
    "rpn_pre_nms_top_n_test": 20,
    "rpn_post_nms_top_n_test": 10,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 4,
}
SMALL = {"min_size": 192, "max_size": 192}


def _image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _segmentation(name: str) -> Case:
    return getattr(models.segmentation, name)(**NEW), (_image(1, 3, 64, 64),)


def _video(name: str, frames: int = 4, size: int = 32, **options: Any) -> Case:
    return getattr(models.video, name)(**options), (_image(1, 3, frames, size, size),)


def _small_mvit(name: str) -> Case:
    """Two blocks, of one head and of two, that pool queries, keys and values."""
    module = models.video.mvit
    taps, half, same = [3, 3, 3], [1, 2, 2], [1, 1, 1]
    blocks = [
        module.MSBlockConfig(1, 8, 16, [], taps, [], half),
        module.MSBlockConfig(2, 16, 16, taps, taps, half, same),
    ]
    model = models.video.MViT((32, 32), 4, blocks, False, True, False, False, num_classes=5)
    return model, (_image(1, 3, 4, 32, 32),)


def _flow(name: str) -> Case:
    frame = _image(1, 3, 128, 128)
    return getattr(models.optical_flow, name)(), (frame, frame.flip(3).contiguous())


def _detection(name: str, **options: Any) -> Case:
    return getattr(models.detection, name)(**NEW, **options), ([_image(3, 192, 192)],)


MODELS: dict[str, Callable[[], Case]] = {
    name: partial(build, name, **options)
    for name, (build, options) in {
        "lraspp_mobilenet_v3_large": (_segmentation, {}),
        "r3d_18": (_video, {}),
        "fasterrcnn_mobilenet_v3_large_320_fpn": (_detection, {**FEW_BOXES, **SMALL}),
        "ssdlite320_mobilenet_v3_large": (
            _detection,
            {"score_thresh": 0.0, "detections_per_img": 4, "topk_candidates": 10},
        ),
        "fcn_resnet50": (_segmentation, {}),
        "deeplabv3_mobilenet_v3_large": (_segmentation, {}),
        "mc3_18": (_video, {}),
        "r2plus1d_18": (_video, {}),
        "s3d": (_video, {"frames": 16, "size": 224}),
        "mvit": (_small_mvit, {}),
        "swin3d_t": (_video, {"size": 64}),
        "raft_small": (_flow, {}),
        "fasterrcnn_resnet50_fpn": (_detection, {**FEW_BOXES, **SMALL}),
        "maskrcnn_resnet50_fpn": (_detection, {**FEW_BOXES, **SMALL}),
        "keypointrcnn_resnet50_fpn": (_detection, {**FEW_BOXES, **SMALL}),
        "retinanet_resnet50_fpn": (
            _detection,
            {**SMALL, "score_thresh": 0.0, "topk_candidates": 10},
        ),
        "fcos_resnet50_fpn": (_detection, {**SMALL, "score_thresh": 0.0, "topk_candidates": 10}),
        "ssd300_vgg16": (_detection, {"score_thresh": 0.0, "detections_per_img": 2000}),
    }.items()
}
