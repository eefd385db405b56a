"""ImageNet: a folder per class under `train` and `val`, images read when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from benchmarks.experiments.data.source import Batch
from fxrebasin.errors import InputError

SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
# What torchvision's weights were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_RESIZED, _CROPPED = 256, 224


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, resized, cropped in the centre and standardised as torchvision does.

    Args:
        paths: of the images.
        targets: `[n]` int64.
        size: side of the images in pixels.
    """

    paths: tuple[Path, ...]
    targets: Tensor
    size: int = _CROPPED

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Tensor) -> Batch:
        """Images `[n, 3, size, size]` float32 and labels `[n]`.

        Args:
            indices: `[n]` int64.

        Raises:
            InputError: a file is no image.
        """
        images = [self._read(self.paths[k]) for k in indices.tolist()]
        return torch.stack(images), self.targets[indices]

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                square = _centre(image.convert("RGB"), self.size)
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{path} cannot be read as an image: {error}") from error
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float().div(255)
        mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, DEVIATION))
        return (pixels - mean) / deviation


def holds_imagenet(folder: Path) -> bool:
    """Whether a folder has `train` and `val` with a folder per class."""
    return all((folder / part).is_dir() and _classes(folder / part) for part in ("train", "val"))


def load_imagenet(folder: Path, size: int = _CROPPED) -> tuple[ImageFiles, ImageFiles]:
    """Images to train on, and held out; a class is a folder, numbered in the order of names.

    Args:
        folder: with `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.
        size: side of the images in pixels.

    Raises:
        InputError: the two parts have other classes, or no images.
    """
    names = [_classes(folder / part) for part in ("train", "val")]
    if names[0] != names[1]:
        different = sorted(set(names[0]) ^ set(names[1]))[:5]
        raise InputError(
            f"{folder}: train has {len(names[0])} classes and val {len(names[1])}; "
            f"these are in one only: {', '.join(different)}"
        )
    train, val = (_list(folder / part, names[0], size) for part in ("train", "val"))
    return train, val


def _classes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _list(folder: Path, classes: list[str], size: int) -> ImageFiles:
    found = [
        (path, number)
        for number, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    paths, targets = zip(*found, strict=True)
    return ImageFiles(tuple(paths), torch.tensor(targets), size)


def _centre(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to 256/224 of `size`, then the square in the centre."""
    width, height = image.size
    scale = round(size * _RESIZED / _CROPPED) / min(width, height)
    resized = image.resize(
        (max(size, round(width * scale)), max(size, round(height * scale))),
        Image.Resampling.BILINEAR,
    )
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))
