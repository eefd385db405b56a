"""The network of hlb-gpt (tysam-code, Apache-2.0), written anew for short sequences of bytes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SCALE = 100.0  # hlb-gpt multiplies the learning rate of the slope of the positions by this
_EXPANSION = 3
_DEVIATION = 0.02


class Attention(nn.Module):
    """Causal attention around a skip; a learned slope takes away from what lies further back.

    Args:
        width: of the residual stream.
        heads: number of heads.
        length: longest sequence.
    """

    encoding: Tensor
    future: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.slope = nn.Parameter(torch.tensor(1 / _SCALE))
        positions = torch.arange(length)
        distance = positions[None, :] - positions[:, None]
        self.register_buffer("encoding", distance.float(), persistent=False)
        self.register_buffer("future", distance > 0, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream `[n, length, width]`."""
        n = x.shape[1]
        slopes = F.softplus(_SCALE * self.slope) * self.encoding[:n, :n]
        mask = slopes.masked_fill(self.future[:n, :n], -torch.inf)
        inner = self.norm(x)
        attended: Tensor
        attended, _ = self.attention(inner, inner, inner, attn_mask=mask, need_weights=False)
        return x + attended


class GatedMLP(nn.Module):
    """Two halves of a linear layer, one gating the other by SiLU (SiGLU), around a skip.

    Args:
        width: of the residual stream.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.expand = nn.Linear(width, 2 * _EXPANSION * width, bias=False)
        self.project = nn.Linear(_EXPANSION * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream `[n, length, width]`."""
        value, gate = self.expand(self.norm(x)).chunk(2, dim=-1)
        inner: Tensor = self.project(value * F.silu(gate))
        return x + inner


class SpeedyLangNet(nn.Module):
    """Blocks of attention and a gated MLP; embedding and output share one matrix.

    Args:
        values: of a token.
        width: of the residual stream; the original has 384.
        heads: per block; the original has 3.
        blocks: the original has 6.
        length: longest sequence; the original has 512.

    Example:
        >>> net = SpeedyLangNet(values=256, width=12, heads=3, blocks=1, length=8)
        >>> net(torch.zeros(2, 8, dtype=torch.int64)).shape
        torch.Size([2, 8, 256])
    """

    def __init__(self, values: int, width: int, heads: int, blocks: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(values, width)
        self.blocks = nn.ModuleList(
            part
            for _ in range(blocks)
            for part in (Attention(width, heads, length), GatedMLP(width))
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.output = nn.Linear(width, values, bias=False)
        self.output.weight = self.embedding.weight
        self._initialise(blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[n, length, values]` of tokens `[n, length]`."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.output(self.norm(x))
        return logits

    def _initialise(self, blocks: int) -> None:
        """As hlb-gpt, after GPT-2: what writes to the residual stream starts out smaller."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                writes = name.endswith(("project.weight", "out_proj.weight"))
                deviation = _DEVIATION / (2 * blocks) ** 0.5 if writes else _DEVIATION
                nn.init.normal_(parameter, std=deviation)
