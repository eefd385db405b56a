"""Small transformers whose parts can be chosen, for symmetries that depend on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_EPSILON = 1e-5
_DEVIATION = 0.02
_BASE = 1000.0  # of the rotary angles; sequences are short


@dataclass(frozen=True)
class Parts:
    """What a transformer is made of.

    Args:
        width: of the residual stream.
        heads: per block.
        blocks: of attention and MLP.
        inner: units in an MLP.
        length: longest sequence, or the number of patches.
        outputs: numbers per position (tokens), or classes.
        norm: "layer" or "rms".
        positions: "learned" or "rotary".
        mlp: "gelu" or "swiglu".
        bias: of linear layers, and shift of norms.
        patch: numbers in a patch of an image; 0 for tokens.
    """

    width: int
    heads: int
    blocks: int
    inner: int
    length: int
    outputs: int
    norm: str = "layer"
    positions: str = "learned"
    mlp: str = "gelu"
    bias: bool = True
    patch: int = 0


def _norm(parts: Parts) -> nn.Module:
    if parts.norm == "rms":
        return nn.RMSNorm(parts.width, eps=_EPSILON)
    return nn.LayerNorm(parts.width, eps=_EPSILON, bias=parts.bias)


class Attention(nn.Module):
    """Attention, causal for tokens.

    Args:
        parts: of the transformer.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.heads, self.causal = parts.heads, not parts.patch
        self.rotary = parts.positions == "rotary"
        width = parts.width
        self.q, self.k, self.v, self.o = (
            nn.Linear(width, width, bias=parts.bias) for _ in range(4)
        )
        if self.rotary:
            size = width // parts.heads
            frequencies = _BASE ** -(torch.arange(0, size, 2) / size)
            angles = torch.arange(parts.length)[:, None] * frequencies
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """From `[n, length, width]` to the same shape."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        if self.rotary:
            q, k = self._turned(q), self._turned(k)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.o(found.transpose(1, 2).flatten(-2))
        return out

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary embedding of neighbouring units."""
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and around a skip.

    Args:
        parts: of the transformer.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = _norm(parts), Attention(parts), _norm(parts)
        self.gated = parts.mlp == "swiglu"
        self.up = nn.Linear(parts.width, parts.inner, bias=parts.bias)
        if self.gated:
            self.gate = nn.Linear(parts.width, parts.inner, bias=parts.bias)
        self.down = nn.Linear(parts.inner, parts.width, bias=parts.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream `[n, length, width]`."""
        x = x + self.attention(self.norm1(x))
        inner = self.norm2(x)
        up = self.up(inner)
        units = F.silu(self.gate(inner)) * up if self.gated else F.gelu(up)
        out: Tensor = x + self.down(units)
        return out


class Transformer(nn.Module):
    """Pre-norm blocks on tokens, or on the 2 × 2 patches of an image, of which the mean is read.

    Args:
        **parts: see `Parts`.

    Example:
        >>> net = Transformer(width=8, heads=2, blocks=1, inner=12, length=6, outputs=11)
        >>> net(torch.zeros(2, 6, dtype=torch.int64)).shape
        torch.Size([2, 6, 11])
    """

    def __init__(self, **parts: int | str | bool) -> None:
        super().__init__()
        self.parts = chosen = Parts(**parts)  # type: ignore[arg-type]
        if chosen.patch:
            self.patches = nn.Linear(chosen.patch, chosen.width, bias=chosen.bias)
        else:
            self.embedding = nn.Embedding(chosen.outputs, chosen.width)
        if chosen.positions == "learned":
            self.positions = nn.Parameter(torch.randn(chosen.length, chosen.width) * _DEVIATION)
        self.blocks = nn.ModuleList(Block(chosen) for _ in range(chosen.blocks))
        self.norm = _norm(chosen)
        self.head = nn.Linear(chosen.width, chosen.outputs, bias=bool(chosen.patch) and chosen.bias)
        self._initialise()

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits `[n, length, outputs]` of tokens `[n, length]`, `[n, outputs]` of images."""
        images = bool(self.parts.patch)
        x = self.patches(_patches(inputs)) if images else self.embedding(inputs)
        if self.parts.positions == "learned":
            x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits: Tensor = self.head(x.mean(1) if images else x)
        return logits

    def _initialise(self) -> None:
        """Linear layers keep the size of what they read; what writes to the stream is smaller."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) or name == "head":
                nn.init.normal_(module.weight, std=_DEVIATION)
            elif isinstance(module, nn.Linear):
                writes = name.endswith((".o", ".down"))
                share = 1 / math.sqrt(2 * self.parts.blocks) if writes else 1.0
                nn.init.normal_(module.weight, std=share / math.sqrt(module.in_features))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _patches(images: Tensor) -> Tensor:
    """2 × 2 patches `[n, patches, 4]` of images `[n, 1, h, w]`."""
    return images.flatten(0, 1).unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)
