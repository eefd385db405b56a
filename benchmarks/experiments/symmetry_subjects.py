"""The networks that symmetries beyond permutation are tried on, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from benchmarks.experiments.data.find import load_images
from benchmarks.experiments.data.source import Data, Source
from benchmarks.experiments.data.text import load_text
from benchmarks.experiments.settings import Settings
from benchmarks.experiments.store import Store
from benchmarks.experiments.training import CarefulTraining, Subject, Training

_LENGTH, _HELD_OUT = 64, 256
_BATCH = 24
_PIECES, _FEW_PIECES = 1500 * _BATCH, 600 * _BATCH
_NOISE = 0.4


@dataclass(frozen=True)
class Study:
    """A network, its data, and how symmetries are learned on it.

    Args:
        subject: network and training.
        data: loads them.
        rate: step size of method "learned".
        batch: items per step of it.
        noise: added to its inputs, as in training.
        has_signs: whether signs of its units may be chosen.
        has_matrices: whether rotations of its units may be.
    """

    subject: Subject
    data: Callable[[], Data]
    rate: float = 3e-2
    batch: int = 16
    noise: float = 0.0
    has_signs: bool = False
    has_matrices: bool = False

    def batches(self, source: Source, count: int, seed: int = 0) -> Batches:
        """What methods see.

        Args:
            source: of the items.
            count: number of batches.
            seed: of the items.
        """
        return Batches(source, self.batch, count, seed, self.noise)


@dataclass(frozen=True)
class Batches:
    """Batches of random items, the same each time that they are gone through.

    Args:
        source: of the items.
        size: of a batch.
        count: number of batches.
        seed: of items and noise.
        noise: standard deviation of what is added to inputs.
    """

    source: Source
    size: int
    count: int
    seed: int
    noise: float

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            chosen = torch.randint(len(self.source), (self.size,), generator=generator)
            inputs, targets = self.source.batch(chosen)
            if self.noise:
                inputs = inputs + self.noise * torch.randn(inputs.shape, generator=generator)
            yield inputs, targets


class Trained:
    """The networks of a study by their seeds, trained when they are first asked for.

    Args:
        store: of trained networks.
        study: of the network.
    """

    def __init__(self, store: Store, study: Study) -> None:
        self._store, self.study = store, study
        self._models: dict[int, nn.Module] = {}

    @cached_property
    def data(self) -> Data:
        """That they are trained on."""
        return self.study.data()

    def model(self, seed: int) -> nn.Module:
        """One of them.

        Args:
            seed: of its weights and the order of the data.
        """
        if seed not in self._models:
            trained = self._store.trained(self.study.subject, self.data.train, seed)
            self._models[seed] = trained
        return self._models[seed]


def studies(settings: Settings) -> dict[str, Study]:
    """All networks, by their name in tables.

    Args:
        settings: of the run.
    """
    width, blocks = settings.width or settings.pick(64, 16), settings.pick(2, 1)
    pieces = settings.pick(_PIECES, 40 * _BATCH)

    def text() -> Data:
        return load_text(None, _LENGTH, (pieces, settings.pick(_HELD_OUT, 64)))

    def digits() -> Data:
        return load_images(None)

    gpt = _gpt(width, blocks)
    found = {
        "ViT": Study(
            _vit(width, settings), digits, rate=1e-2, batch=64, noise=_NOISE, has_matrices=True
        ),
        "GPT": Study(gpt, text, has_matrices=True),
        "Llama": Study(_llama(width, blocks), text, has_matrices=True),
        "tanh MLP": Study(_mlp("tanh", settings), digits, rate=1e-2, batch=64, has_signs=True),
        "ReLU MLP": Study(_mlp("relu", settings), digits, rate=1e-2, batch=64),
        "ResNet": Study(_resnet(settings), digits, rate=1e-2, batch=64),
    }
    if not settings.quick:
        few = replace(found["GPT"], data=lambda: load_text(None, _LENGTH, (_FEW_PIECES, _HELD_OUT)))
        wide = _gpt(256, 2).with_training(learning_rate=1.5e-3, warm_up=1 / 6)
        found["GPT of width 256"] = replace(few, subject=wide, rate=1e-2)
    return found


def _gpt(width: int, blocks: int) -> Subject:
    network = _tokens(width, blocks) | {"inner": 4 * width}
    return Subject("transformer", network, _training())


def _llama(width: int, blocks: int) -> Subject:
    choices = {"norm": "rms", "positions": "rotary", "mlp": "swiglu", "bias": False}
    network = _tokens(width, blocks) | {"inner": 11 * width // 4, **choices}
    return Subject("transformer", network, _training())


def _tokens(width: int, blocks: int) -> dict[str, int]:
    return {"width": width, "heads": 4, "blocks": blocks, "length": _LENGTH, "outputs": 256}


def _training() -> CarefulTraining:
    return CarefulTraining(
        epochs=1, batch_size=_BATCH, learning_rate=3e-3, weight_decay=0.1, warm_up=1 / 15
    )


def _vit(width: int, settings: Settings) -> Subject:
    network = {"width": width, "heads": 4, "blocks": settings.pick(3, 1), "inner": 2 * width}
    network |= {"length": 16, "outputs": 10, "patch": 4}
    epochs = settings.epochs or settings.pick(50, 3)
    training = CarefulTraining(
        epochs=epochs,
        warm_up=0.05,
        noise=_NOISE,
        only_matrices=False,
        betas=(0.9, 0.999),
        clip=float("inf"),
    )
    return Subject("transformer", network, training)


def _mlp(activation: str, settings: Settings) -> Subject:
    epochs = settings.epochs or settings.pick(30, 3)
    training = Training(epochs=epochs, constant=True)
    return Subject("plain_mlp", {"activation": activation}, training)


def _resnet(settings: Settings) -> Subject:
    epochs = settings.epochs or settings.pick(20, 1)
    return Subject("digits_resnet", {"width": settings.pick(16, 4)}, Training(epochs=epochs))
