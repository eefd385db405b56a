"""Small networks of many kinds, with state that is nowhere zero, one or uniform."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def unsettled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random affines, biases and running statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                draw = torch.rand(buffer.shape, generator=generator)
                buffer.copy_(draw + 0.5 if name.endswith("var") else draw - 0.5)
    return model.eval()


class Residual(nn.Module):
    """Convolution, batch norm, and a residual branch with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(image)))
        return self.head((x + F.relu(self.grouped(x))).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block around `scaled_dot_product_attention`, with token embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.tokens(ids)
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None, :].bool()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return x + self.out(y.transpose(1, 2).reshape(batch, length, 16))


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` as users call it: three times the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@dataclass
class Answer(OrderedDict):
    """A mapping that is a dataclass too, as the outputs of Hugging Face are."""

    logits: torch.Tensor
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update(logits=self.logits, hidden=self.hidden)


class Cache:
    """An object with tensors inside, which torch's pytrees do not know."""

    def __init__(self, *states: torch.Tensor) -> None:
        self.states = list(states)
        self.label = "cache"


class ManyOutputs(nn.Module):
    """Nested inputs and outputs: numbers, None, integers, an input, one tensor twice, an object."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(4))  # has the name of an input
        self.linear = nn.Linear(4, 4)

    def forward(
        self,
        x: torch.Tensor,
        pair: tuple[torch.Tensor, torch.Tensor],
        *,
        scale: float = 2.0,
        extra: Mapping[str, torch.Tensor] | None = None,
    ) -> Any:
        y = self.linear(x) + pair[0] * scale * self.x
        if extra is not None:
            y = y - extra["shift"]
        return {
            "add": y,
            "steps": 3,
            "nested": (pair[1], x, y, None),
            "best": y.argmax(-1),
            "answer": Answer(logits=y * 2, hidden=Cache(y + 1)),
        }


class UpcastNorm(nn.Module):
    """RMSNorm as in Hugging Face: whatever the precision, the variance is taken in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(dtype)


@dataclass(frozen=True)
class Case:
    """A network and a call of it."""

    make: Callable[[], nn.Module]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("output",)

    def model(self) -> nn.Module:
        return unsettled(self.make())


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))


IDS = torch.arange(10).reshape(2, 5)

CASES = {
    "mlp": Case(mlp, (draw(2, 6),)),
    "residual": Case(Residual, (draw(1, 3, 8, 8),), inputs=("image",)),
    "attention": Case(
        Attention,
        (IDS,),
        {"mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])},
        inputs=("ids", "mask"),
    ),
    "multihead": Case(SelfAttention, (draw(3, 5, 8),), inputs=("x",)),
    "encoder": Case(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (draw(2, 5, 8),),
        inputs=("src",),
    ),
    "lstm": Case(
        lambda: nn.LSTM(4, 6, batch_first=True),
        (draw(2, 5, 4),),
        outputs=("0", "1.0", "1.1"),
    ),
    "many": Case(
        ManyOutputs,
        (draw(2, 4), (draw(2, 4, seed=1), draw(2, 4, seed=2))),
        {"extra": {"shift": draw(2, 4, seed=3)}, "scale": 3.0},
        inputs=("x", "pair.0", "pair.1", "extra.shift"),
        outputs=(
            *("add", "nested.0", "nested.1", "nested.2", "best"),
            *("answer.logits", "answer.hidden.states.0"),
        ),
    ),
}
