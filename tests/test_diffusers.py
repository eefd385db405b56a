"""Models of diffusers: no operator is unknown, and random elements of the group do nothing."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from tests.support.diffusion_models import DIFFUSION
from tests.support.families import analysed, assert_sound, assert_transforms, pair
from tests.support.randomise import log10_factorial as f

QUICK = ("autoencoder", "sd 3")

NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DIFFUSION]


def normalised(groups: int, channels: int) -> float:
    """Channels in groups: they move inside them, and groups as a whole."""
    return f(groups) + groups * f(channels)


def autoencoder() -> float:
    """A stream and the insides of its blocks, at 8 and at 16 channels; two attentions of one head.

    Of what the encoder gives, only the half that is the mean is used.
    """
    encoder = 3 * normalised(4, 2) + 4 * normalised(4, 4) + f(16, 16) + f(8, 4)
    decoder = 3 * normalised(4, 2) + 6 * normalised(4, 4) + f(16, 16) + f(4)
    return encoder + decoder


def sd3() -> float:
    """The image's stream meets constant positions; the last block does not go on with the text.

    Norms of queries and keys have one scale for all heads.
    """
    block = f(3) + f(8) + 3 * f(8) + f(96)
    return 4 * f(24) + 2 * block + f(96)


def flux() -> float:
    """One stream for image and text; rotation pins the dims of queries and keys."""
    attention = f(2) + 2 * f(12)
    return 5 * f(24) + attention + 2 * f(96) + 2 * (attention + f(96))


ORDERS = {"autoencoder": autoencoder(), "sd 3": sd3(), "flux": flux()}


@pytest.mark.parametrize("name", NAMES)
def test_the_group_is_sound(name: str) -> None:
    model, inputs = DIFFUSION[name]()
    symmetry = analysed(model, (), inputs)
    assert symmetry.coverage() > 0.95
    if name in ORDERS:
        assert symmetry.log10_order() == pytest.approx(ORDERS[name], rel=1e-6)
    assert_sound(model, (), inputs, symmetry)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSION)
def test_transform(name: str) -> None:
    model_a, model_b, inputs = pair(DIFFUSION[name])
    assert_transforms(model_a, model_b, (), inputs)
