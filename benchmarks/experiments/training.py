"""Training of the experiments' networks; never a draw from the global generator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.experiments.data.source import Batches, Source
from benchmarks.experiments.networks import build
from benchmarks.experiments.networks.resnet import SpeedyResNet
from fxrebasin.demo.training import Recipe

_WHITENED = 512  # images whose patches the whitening convolution is made of


@dataclass(frozen=True)
class Training(Recipe):
    """How a network is trained.

    Args:
        coupled: weight decay is added to the gradient (Adam), as in the original experiments;
            otherwise taken off the weights (AdamW).
        constant: the learning rate stays as it is; otherwise warm-up and cosine decay.
    """

    coupled: bool = False
    constant: bool = False

    def factor(self, progress: float) -> float:
        """Share of `learning_rate` to use when `progress` (0 to 1) of the training is done."""
        return 1.0 if self.constant else super().factor(progress)

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """Of the parameters that are trained.

        Args:
            model: to train.
        """
        parameters = [p for p in model.parameters() if p.requires_grad]
        make = torch.optim.Adam if self.coupled else torch.optim.AdamW
        return make(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    def augmented(self, inputs: Tensor) -> Tensor:
        """Inputs as they are trained on; may draw from the global generator.

        Args:
            inputs: of the data.
        """
        return inputs

    def restrain(self, model: nn.Module) -> None:
        """Change gradients before a step.

        Args:
            model: with gradients.
        """


@dataclass(frozen=True)
class CarefulTraining(Training):
    """As transformers are trained.

    Args:
        noise: standard deviation of what is added to inputs, by which small data last longer.
        only_matrices: weight decay leaves vectors, such as biases and scales, alone.
        betas: of AdamW.
        clip: largest norm of a gradient.
    """

    noise: float = 0.0
    only_matrices: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0

    def optimiser(self, model: nn.Module) -> torch.optim.Optimizer:
        """See `Training`."""
        decayed = [p for p in model.parameters() if p.dim() > 1 or not self.only_matrices]
        others = [p for p in model.parameters() if p.dim() <= 1 and self.only_matrices]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas)

    def augmented(self, inputs: Tensor) -> Tensor:
        """See `Training`."""
        return inputs + self.noise * torch.randn(inputs.shape) if self.noise else inputs

    def restrain(self, model: nn.Module) -> None:
        """See `Training`."""
        nn.utils.clip_grad_norm_(model.parameters(), self.clip)


@dataclass(frozen=True)
class Subject:
    """A network and how it is trained.

    Args:
        kind: a key of `NETWORKS`.
        settings: arguments of the network.
        training: how it is trained.
    """

    kind: str
    settings: Mapping[str, Any]
    training: Training = field(default_factory=lambda: Training(epochs=1))

    def with_training(self, **changes: Any) -> Subject:
        """The same network, trained in another way."""
        return replace(self, training=replace(self.training, **changes))


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats.

    Args:
        outputs: `[..., classes]`.
        targets: `[...]` int64.
    """
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def fresh(subject: Subject, source: Source, seed: int) -> nn.Module:
    """An untrained network.

    Args:
        subject: what to build.
        source: of the data, from which a whitening layer is made.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(subject.kind, subject.settings)
    if isinstance(model, SpeedyResNet):
        model.set_whitening(next(iter(Batches(source, _WHITENED)))[0])
    return model


def train(
    model: nn.Module,
    source: Source,
    training: Training,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> nn.Module:
    """A trained copy of a network, in eval mode.

    Args:
        model: to start from.
        source: of the data.
        training: how.
        seed: of the order of the data, and of dropout.
        on_step: called after every step, for a progress bar.
    """
    model = copy.deepcopy(model).train()
    optimiser = training.optimiser(model)
    steps = training.epochs * steps_of_epoch(source, training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            if step % steps_of_epoch(source, training) == 0:
                batches = torch.randperm(len(source)).split(training.batch_size)
            inputs, targets = source.batch(batches[step % steps_of_epoch(source, training)])
            for group in optimiser.param_groups:
                group["lr"] = training.learning_rate * training.factor((step + 1) / steps)
            optimiser.zero_grad()
            loss_of(model(training.augmented(inputs)), targets).backward()
            training.restrain(model)
            optimiser.step()
            on_step()
    return model.eval()


def steps_of_epoch(source: Source, training: Training) -> int:
    """Full batches in the data; one where there are fewer items than a batch takes.

    Args:
        source: of the data.
        training: whose batch size counts.
    """
    return max(1, len(source) // training.batch_size)
