"""Loss and accuracy of the demo's networks on the straight line between two of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxrebasin.demo.data import Digits
from fxrebasin.merge import BarrierCurve, barrier, recalibrate

STEPS = 17
STATISTICS_IMAGES = 512


def walk(
    model_a: nn.Module,
    model_b: nn.Module,
    digits: Digits,
    *,
    steps: int = STEPS,
    recompute_statistics: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> BarrierCurve:
    """Evaluate the networks (1 − t)·A + t·B on the held-out digits for t from 0 to 1.

    Args:
        model_a: at t = 0; never modified.
        model_b: at t = 1, with the same state dict keys; never modified.
        digits: losses are taken on the test half, statistics on the training half.
        steps: number of networks, odd, so that the midpoint is one of them.
        recompute_statistics: set the BatchNorm statistics of every network, the ends included,
            to those of the first `STATISTICS_IMAGES` training images. Interpolated statistics do
            not describe an interpolated network: its activations vary less than either end's.
        on_step: called after every network, for a progress bar.
    """
    batch = digits.train_images[:STATISTICS_IMAGES]

    def measured(model: nn.Module) -> tuple[float, float]:
        found = evaluate(model, digits.test_images, digits.test_labels)
        on_step()
        return found

    return barrier(
        model_a,
        model_b,
        measured,
        steps=steps,
        prepare=(lambda model: recalibrate(model, [batch])) if recompute_statistics else None,
    )


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0 to 1) of `model` in the mode that it is in."""
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).float().mean())
