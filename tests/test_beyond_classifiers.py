"""Segmentation, video, optical flow, detection: what data chooses is pinned, the rest is free."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torchvision")

from tests.support.families import analysed, assert_sound
from tests.support.randomise import log10_factorial as f
from tests.support.task_models import MODELS
from tests.support.vision_operators import without_compiled_operators
from tests.test_closed_forms import PUBLISHED

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

QUICK = ("lraspp_mobilenet_v3_large", "r3d_18", "ssdlite320_mobilenet_v3_large")

ORDERS = {
    "r3d_18": PUBLISHED["resnet18"],
    "mc3_18": PUBLISHED["resnet18"],
    "swin3d_t": PUBLISHED["swin_t"],
    "fcn_resnet50": PUBLISHED["resnet50"] + f(512),
}
"""Those that are a classifier's, or have a head of one layer more."""


@pytest.fixture(autouse=True)
def _portable() -> Iterator[None]:
    with without_compiled_operators():
        yield


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_the_group_is_sound(name: str) -> None:
    model, inputs = MODELS[name]()
    symmetry = analysed(model.eval(), inputs, {})
    assert symmetry.coverage() > 0.98
    if name in ORDERS:
        assert symmetry.log10_order() == pytest.approx(ORDERS[name], abs=1e-3)
    assert_sound(model, inputs, {}, symmetry, calm=True)


def test_what_detections_are_made_of_is_pinned() -> None:
    """Anchors, boxes, classes and what boxes cut out stay; hidden layers and the body are free."""
    model, inputs = MODELS["fasterrcnn_mobilenet_v3_large_320_fpn"]()
    symmetry = analysed(model.eval(), inputs, {})
    free = {axis for c in symmetry.classes for axis in c.axes}
    for place in ("rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score"):
        assert symmetry.pins[f"{place}.weight", 0].strip()
        assert (f"{place}.weight", 1) in free
    for place in ("backbone.fpn.inner_blocks.0.0", "rpn.head.conv.0.0", "roi_heads.box_head.fc6"):
        assert (f"{place}.weight", 0) in free
    assert "by data" in symmetry.pins["backbone.fpn.layer_blocks.0.0.weight", 0]
