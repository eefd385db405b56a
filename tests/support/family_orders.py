"""log10 of the orders of the groups of the models in `text_models` and `vision_models`.

Derived by hand. A width is pinned where hidden states are among the outputs; dims of queries and
keys are pinned by a rotation of them; heads are pinned where each has a slope of its own.
"""

from __future__ import annotations

from tests.support.randomise import log10_factorial as f
from tests.support.text_models import HEADS, HIDDEN, LAYERS, WIDTH

DIMS = WIDTH // HEADS
STATES = 2 * WIDTH
"""Channels of a state space."""


def attention(heads: int = HEADS, dims: int = DIMS) -> float:
    """Heads, and the dims of queries with keys and of values in each."""
    return f(heads) + 2 * heads * f(dims)


def grouped(groups: int = 2, per_group: int = 2, dims: int = 8) -> float:
    """Groups, query heads in each, and dims of the values in each; rotation pins the others."""
    return f(groups) + groups * (f(per_group) + f(dims))


ENCODER = LAYERS * (f(HIDDEN) + attention())
DECODER = LAYERS * (f(HIDDEN) + 2 * attention())
"""Layers that look at themselves and at an encoder."""

LLAMA = f(32) + LAYERS * (f(HIDDEN) + grouped())
POSITIONED_IN_STACK = f(HEADS) + LAYERS * (2 * HEADS * f(DIMS) + f(HIDDEN))
"""A stack whose layers share one table of position biases, and with it their heads."""

TEXT_ORDERS = {
    "gpt2": f(WIDTH) + LAYERS * (f(4 * WIDTH) + attention()),
    "bert": ENCODER,
    "bert for classes": f(WIDTH, WIDTH) + ENCODER,
    "roberta": ENCODER,
    "distilbert": ENCODER,
    "albert": f(16) + ENCODER / LAYERS,
    "electra": f(16) + ENCODER,
    "deberta-v2": ENCODER,
    "t5": 2 * POSITIONED_IN_STACK + LAYERS * attention(),
    "bart": ENCODER + DECODER,
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma3": LLAMA,
    "phi3": LLAMA,
    "falcon": f(WIDTH) + LAYERS * (f(4 * WIDTH) + grouped(1, HEADS)),
    "gpt-neox": f(WIDTH) + LAYERS * (f(HIDDEN, HEADS) + HEADS * (f(DIMS - 2) + f(DIMS))),
    "opt": f(WIDTH) + ENCODER,
    "bloom": f(WIDTH) + LAYERS * (f(4 * WIDTH) + 2 * HEADS * f(DIMS)),
    "mamba": f(WIDTH) + LAYERS * f(STATES, 2, 5),
    "mixtral": f(32) + LAYERS * (grouped() + 3 * f(HIDDEN)),
    "qwen2-moe": f(32) + LAYERS * (grouped() + 3 * f(12) + f(16)),
    "qwen3-moe": f(32) + LAYERS * (grouped() + 3 * f(12)),
}
"""Of the rotated dims of gpt-neox, a quarter, there are two; mamba has steps of rank 2 and 5 states
per channel."""


def swin() -> float:
    """Width, heads and their dims of both stages, of two blocks each."""
    stages = [(12, 2, 6), (24, 3, 8)]
    return sum(f(d) + 2 * (attention(heads, dims) + f(2 * d)) for d, heads, dims in stages)


def segformer() -> float:
    """Two stages, of which the first looks at a coarser image; a head that fuses them."""
    first = f(8) + attention(2, 4) + f(16, 8)
    second = f(12) + 2 * (attention(3, 4) + f(24))
    return first + second + f(10, 10, 10)


def detr() -> float:
    """Bottlenecks, encoder and decoder, and a perceptron for boxes.

    The decoder starts with zeros, so its first values are the same whatever weights they meet.
    """
    backbone = f(8, 2, 2, 12, 3, 3)
    return backbone + ENCODER + DECODER + f(WIDTH) + f(WIDTH, WIDTH)


VISION_ORDERS = {
    "vit": f(WIDTH) + ENCODER,
    "deit": f(WIDTH) + ENCODER,
    "beit": f(WIDTH) + ENCODER,
    "dinov2": f(WIDTH) + LAYERS * (f(2 * WIDTH) + attention()),
    "dinov2 with gates": f(WIDTH) + LAYERS * (f(32) + attention()),
    "swin": swin(),
    "clip": 2 * ENCODER,
    "siglip": 2 * ENCODER + f(WIDTH) + attention() + f(HIDDEN),
    "segformer": segformer(),
    "detr": detr(),
    "whisper": f(WIDTH) + ENCODER + f(WIDTH) + DECODER,
    "wav2vec2": f(8, 10) + f(3) + 3 * f(8) + ENCODER,
}
"""The attention that pools siglip's tokens has a query of its own, whose width is free; the width
of wav2vec2 goes through a grouped convolution."""
