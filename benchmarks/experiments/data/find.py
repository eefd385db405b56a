"""Which images an experiment runs on: those in a folder, or scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.experiments.data.cifar import (
    CLASSES,
    FOLDER_10,
    FOLDER_100,
    holds_cifar,
    load_cifar,
)
from benchmarks.experiments.data.imagenet import holds_imagenet, load_imagenet
from benchmarks.experiments.data.mnist import holds_mnist, load_mnist
from benchmarks.experiments.data.source import Data, InMemory
from fxrebasin.demo.data import load_digits
from fxrebasin.errors import InputError

_EXPECTED = (
    "the four files of MNIST (train-images-idx3-ubyte, with .gz or not, ...), the folder "
    f"{FOLDER_10} or {FOLDER_100} as unpacked, or ImageNet as train/CLASS/*.JPEG and "
    "val/CLASS/*.JPEG"
)


def load_images(
    folder: Path | None, *, side: int | None = None, channels: int | None = None
) -> Data:
    """Images, standardised over those to train on.

    Args:
        folder: with the files of MNIST, CIFAR-10, CIFAR-100 or ImageNet, as they are distributed;
            scikit-learn's digits when None.
        side: pixels that images are resized to; as they are when None.
        channels: 3 to repeat grey images, None to leave them.

    Raises:
        InputError: the folder holds none of them, more than one, or a damaged file.

    Example:
        >>> load_images(None).shape
        (1, 8, 8)
    """
    data = _digits() if folder is None else _from_folder(folder)
    if isinstance(data.train, InMemory) and isinstance(data.test, InMemory):
        parts = [_prepared(part, side, channels) for part in (data.train, data.test)]
        shape = tuple(parts[0].inputs.shape[1:])
        return replace(data, train=parts[0], test=parts[1], shape=shape)
    return data


def _digits() -> Data:
    digits = load_digits()
    train = InMemory(digits.train_images, digits.train_labels)
    test = InMemory(digits.test_images, digits.test_labels)
    return Data("scikit-learn's digits", train, test, (1, 8, 8), 10, True)


def _from_folder(folder: Path) -> Data:
    if not folder.is_dir():
        raise InputError(f"--data-dir: {folder} is no folder; expected one that holds {_EXPECTED}")
    known: dict[str, tuple[bool, Callable[[], Data]]] = {
        "MNIST": (holds_mnist(folder), lambda: _in_memory("MNIST", load_mnist(folder), 10)),
        "CIFAR-10": (holds_cifar(folder, FOLDER_10), lambda: _cifar("CIFAR-10", folder, FOLDER_10)),
        "CIFAR-100": (
            holds_cifar(folder, FOLDER_100),
            lambda: _cifar("CIFAR-100", folder, FOLDER_100),
        ),
        "ImageNet": (holds_imagenet(folder), lambda: _imagenet(folder)),
    }
    found = {name: load for name, (there, load) in known.items() if there}
    if len(found) != 1:
        raise InputError(
            f"--data-dir: {folder} holds {' and '.join(found) or 'no data set that is known'}; "
            f"expected one of: {_EXPECTED}"
        )
    return next(iter(found.values()))()


def _cifar(name: str, folder: Path, which: str) -> Data:
    return _in_memory(name, load_cifar(folder, which), CLASSES[which])


def _in_memory(name: str, parts: tuple[InMemory, InMemory], classes: int) -> Data:
    """Standardised per channel by the images to train on."""
    train, test = parts
    mean, deviation = (
        statistic.reshape(1, -1, 1, 1)
        for statistic in (train.inputs.mean((0, 2, 3)), train.inputs.std((0, 2, 3)))
    )
    train, test = (replace(p, inputs=(p.inputs - mean) / deviation) for p in (train, test))
    return Data(name, train, test, tuple(train.inputs.shape[1:]), classes, False)


def _imagenet(folder: Path) -> Data:
    train, test = load_imagenet(folder)
    classes = int(train.targets.max()) + 1
    return Data("ImageNet", train, test, (3, train.size, train.size), classes, False)


def _prepared(part: InMemory, side: int | None, channels: int | None) -> InMemory:
    images = part.inputs
    if side is not None and images.shape[-2:] != (side, side):
        images = nn.functional.interpolate(
            images, (side, side), mode="bilinear", align_corners=False, antialias=True
        )
    if channels is not None and images.shape[1] == 1:
        images = images.expand(-1, channels, -1, -1)
    return replace(part, inputs=images.contiguous(memory_format=torch.contiguous_format))
