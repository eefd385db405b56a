"""The demo's data: the 1797 handwritten digits that come with scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxrebasin.errors import InputError

HELD_OUT = 450
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images `[n, 1, 8, 8]` float32, standardised on the training half; labels `[n]` int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """Load scikit-learn's digits: 1347 images to train on, 450 held out, always the same split.

    Nothing is downloaded: the images are part of scikit-learn.

    Raises:
        InputError: scikit-learn is not installed.

    Example:
        >>> tuple(load_digits().train_images.shape)
        (1347, 1, 8, 8)
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(
            "the demo trains on the digits of scikit-learn, which is not installed: "
            "run `pip install 'fxrebasin[demo]'`"
        ) from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pixels))
    images = torch.from_numpy(pixels[order].astype(np.float32)).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels[order].astype(np.int64))
    train, test = images[:-HELD_OUT], images[-HELD_OUT:]
    mean, scale = train.mean(), train.std()
    return Digits(
        train_images=(train - mean) / scale,
        train_labels=targets[:-HELD_OUT],
        test_images=(test - mean) / scale,
        test_labels=targets[-HELD_OUT:],
    )
