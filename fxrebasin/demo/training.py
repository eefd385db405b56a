"""Training of the demo's networks: seconds each, and never a draw from the global generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxrebasin.demo.data import Digits


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, a linear warm-up and a cosine decay of the step size."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warm_up: float = 0.1

    def factor(self, progress: float) -> float:
        """Share of `learning_rate` to use when `progress` (0 to 1) of the training is done."""
        if progress < self.warm_up:
            return progress / self.warm_up
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))


def train(
    build: Callable[[], nn.Module],
    digits: Digits,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Build and train a network; the seed decides its initial weights and the order of the data.

    Args:
        build: returns a new network that maps `[n, 1, 8, 8]` float32 to logits `[n, 10]`.
        digits: the data; only its training half is read.
        recipe: length and step sizes of the training.
        seed: any integer that torch accepts as a seed.
        on_epoch: called after every epoch, for a progress bar.

    Returns:
        The network, in eval mode.

    Example:
        >>> from fxrebasin.demo.data import load_digits
        >>> from fxrebasin.demo.networks import DigitsMLP
        >>> train(lambda: DigitsMLP(8), load_digits(), Recipe(epochs=1), seed=0).training
        False
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    model.train()
    for epoch in range(recipe.epochs):
        _run_epoch(model, digits, recipe, optimiser, order, epoch)
        on_epoch()
    return model.eval()


def _run_epoch(
    model: nn.Module,
    digits: Digits,
    recipe: Recipe,
    optimiser: torch.optim.Optimizer,
    order: torch.Generator,
    epoch: int,
) -> None:
    batches = _batches(len(digits.train_labels), recipe.batch_size, order)
    for index, batch in enumerate(batches):
        progress = (epoch + (index + 1) / len(batches)) / recipe.epochs
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * recipe.factor(progress)
        logits = model(digits.train_images[batch])
        loss = nn.functional.cross_entropy(logits, digits.train_labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _batches(count: int, size: int, order: torch.Generator) -> list[Tensor]:
    """Split a shuffled `range(count)` into full batches; the few indices left over are skipped."""
    shuffled = torch.randperm(count, generator=order)
    return list(shuffled[: count - count % size].split(size))
