"""Loss and accuracy on the straight line between two networks' weights (Git Re-Basin, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxrebasin.demo.data import Digits

State = Mapping[str, Tensor]

STEPS = 17
STATISTICS_IMAGES = 512


@dataclass(frozen=True)
class Curve:
    """Held-out cross-entropy (nats) and accuracy (0 to 1) at evenly spaced t, with both ends."""

    steps: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    def barrier(self) -> float:
        """Largest excess of the loss over the straight line between the losses of both ends.

        Example:
            >>> Curve((0.0, 0.5, 1.0), (1.0, 4.0, 3.0), (0.9, 0.5, 0.8)).barrier()
            2.0
        """
        first, last = self.losses[0], self.losses[-1]
        return max(
            loss - ((1 - t) * first + t * last)
            for t, loss in zip(self.steps, self.losses, strict=True)
        )

    def midpoint(self) -> tuple[float, float]:
        """Loss and accuracy half way."""
        middle = len(self.steps) // 2
        return self.losses[middle], self.accuracies[middle]


def walk(
    build: Callable[[], nn.Module],
    state_a: State,
    state_b: State,
    digits: Digits,
    *,
    steps: int = STEPS,
    recompute_statistics: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> Curve:
    """Evaluate the networks (1 − t)·A + t·B on the held-out digits for t from 0 to 1.

    Args:
        build: returns a network that `state_a` and `state_b` fit; its own weights do not matter.
        state_a: state dict at t = 0; never modified.
        state_b: state dict at t = 1; never modified.
        digits: losses are taken on the test half, statistics on the training half.
        steps: number of networks, odd, so that the midpoint is one of them.
        recompute_statistics: set the BatchNorm statistics of every network, the ends included,
            to those of the first `STATISTICS_IMAGES` training images. Interpolated statistics do
            not describe an interpolated network: its activations vary less than either end's.
        on_step: called after every network, for a progress bar.
    """
    with torch.random.fork_rng(devices=[]):
        model = build().eval()
    positions = tuple(index / (steps - 1) for index in range(steps))
    results = []
    for t in positions:
        model.load_state_dict(interpolate(state_a, state_b, t))
        if recompute_statistics:
            recompute_batch_norm(model, digits.train_images[:STATISTICS_IMAGES])
        results.append(evaluate(model, digits.test_images, digits.test_labels))
        on_step()
    losses, accuracies = zip(*results, strict=True)
    return Curve(positions, losses, accuracies)


def interpolate(state_a: State, state_b: State, t: float) -> dict[str, Tensor]:
    """(1 − t)·A + t·B for every floating-point tensor; other tensors come from the nearer end.

    Example:
        >>> interpolate({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.25)
        {'w': tensor([1.])}
    """
    nearer = state_a if t < 0.5 else state_b
    return {
        name: torch.lerp(a, state_b[name], t) if a.is_floating_point() else nearer[name]
        for name, a in state_a.items()
    }


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0 to 1) of `model` in the mode that it is in."""
    logits = model(images)
    loss = nn.functional.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def recompute_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Set the running statistics of every BatchNorm of `model` to those of `images`, in place.

    All images go through as one batch, so that mean and variance are exact. Momentum and training
    flags are left as they were.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.training) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    model(images)
    for layer, (momentum, training) in zip(layers, before, strict=True):
        layer.momentum = momentum
        layer.train(training)
