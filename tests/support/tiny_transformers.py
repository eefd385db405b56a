"""Transformers of a few units each, for what groups act on them; see `tests/test_kinds.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Form:
    """What a network is made of; `inputs` is the number of words, or of numbers in a patch."""

    width: int = 6
    heads: int = 2
    hidden: int = 5
    layers: int = 1
    length: int = 5
    inputs: int = 7
    outputs: int = 7
    centred: bool = True
    biases: bool = True
    rotary: bool = False
    gate: bool = False
    relu: bool = False
    patches: bool = False


class Norm(nn.Module):
    """LayerNorm or RMSNorm; a large epsilon makes the size of the stream count."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.centred = form.centred
        self.weight = nn.Parameter(torch.ones(form.width))
        self.bias = nn.Parameter(torch.zeros(form.width)) if form.centred and form.biases else None

    def forward(self, x: Tensor) -> Tensor:
        if self.centred:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 0.3)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.3) * self.weight


def _turned(x: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs."""
    count, size = x.shape[-2:]
    speed = 10.0 ** -torch.arange(0, size, 2, dtype=torch.float64).div(size)
    angle = (torch.arange(count)[:, None] * speed).to(x.dtype)
    one, two = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        wide, bias = form.width, form.biases
        self.before, self.between = Norm(form), Norm(form)
        self.query, self.key, self.value, self.out = (
            nn.Linear(wide, wide, bias=bias) for _ in range(4)
        )
        self.up, self.down = (
            nn.Linear(wide, form.hidden, bias=bias),
            nn.Linear(form.hidden, wide, bias=bias),
        )
        self.bend = nn.ReLU() if form.relu else nn.GELU()
        self.gate = nn.Linear(wide, form.hidden, bias=bias) if form.gate else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.before(x))
        y = self.between(x)
        if self.gate is not None:
            return x + self.down(F.silu(self.gate(y)) * self.up(y))
        return x + self.down(self.bend(self.up(y)))

    def _attend(self, x: Tensor) -> Tensor:
        batch, count, wide = x.shape
        size = wide // self.form.heads
        q, k, v = (
            layer(x).view(batch, count, -1, size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self.form.rotary:
            q, k = _turned(q), _turned(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        if not self.form.patches:
            later = torch.ones(count, count, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, count, wide))


class Transformer(nn.Module):
    """Words or patches, blocks, a norm, and a head."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        wide = form.width
        self.enter: nn.Module = (
            nn.Linear(form.inputs, wide, bias=form.biases)
            if form.patches
            else nn.Embedding(form.inputs, wide)
        )
        self.places = None if form.rotary else nn.Parameter(torch.zeros(form.length, wide))
        self.blocks = nn.ModuleList(Block(form) for _ in range(form.layers))
        self.norm = Norm(form)
        self.head = nn.Linear(wide, form.outputs, bias=form.biases and form.patches)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.enter(x)
        if self.places is not None:
            y = y + self.places
        for block in self.blocks:
            y = block(y)
        y = self.norm(y)
        return self.head(y.mean(1) if self.form.patches else y)

    def batch(self, count: int, seed: int) -> Tensor:
        """Inputs for it."""
        gen = torch.Generator().manual_seed(seed)
        form = self.form
        if form.patches:
            shape = (count, form.length, form.inputs)
            return torch.randn(shape, generator=gen, dtype=torch.float64)
        return torch.randint(0, form.inputs, (count, form.length), generator=gen)


def drawn(form: Form, seed: int = 0) -> Transformer:
    """A network in double precision at parameters that have nothing special about them."""
    net = Transformer(form).double().eval()
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=gen, dtype=torch.float64)
            norm = name.rpartition(".")[0].endswith(("before", "between", "norm"))
            scale = norm and name.endswith("weight")
            parameter.copy_(noise * (0.5 if parameter.dim() == 1 else 0.7) + float(scale))
    return net


def dimension_of(form: Form) -> int:
    """The dimension of what leaves its function, derived by hand.

    Rotations of the stream; factors of norms; matrices within heads; factors of hidden units; what
    may be added to words and taken from places, to biases of keys and values, to shifts of norms;
    how readers of centred values read their mean; and the means that writers give.
    """
    d, head, layers = form.width, form.width // form.heads, form.layers
    norms = 2 * layers + 1
    total = (d - 1) * (d - 2) // 2 if form.centred else d * (d - 1) // 2
    total += norms * d + layers * d * head + layers * (d if form.rotary else d * head)
    total += layers * form.hidden * (form.gate or form.relu)
    added = not form.rotary and (form.biases or not form.patches)
    total += d * added
    if form.biases:
        total += layers * d * (1 if form.rotary else 2) + norms * d * form.centred
    if form.centred:
        readers = layers * (3 * d + form.hidden * (2 if form.gate else 1))
        unread = form.biases and not form.patches  # the shift of the last norm needs them
        total += readers + (0 if unread else form.outputs)
        writers = form.inputs + (form.biases and form.patches) + (0 if form.rotary else form.length)
        total += writers + layers * (d + form.hidden + 2 * form.biases) - added
    return int(total)
