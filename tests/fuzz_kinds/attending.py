"""Random transformers: what lies between their parameters differs in all ways that are in use."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fuzz_kinds.words import Form

EPSILON = 0.3
"""So large that the size of the stream counts."""


@dataclass(frozen=True)
class Attending(Form):
    """A transformer of a few units; texts name one of several ways."""

    width: int = 6
    heads: int = 2
    grouped: int = 1
    layers: int = 1
    hidden: int = 5
    enter: str = "words"
    kinds: int = 0
    places: str = "none"
    turned: str = "none"
    given_places: bool = False
    norm: str = "layer"
    affine: str = "both"
    order: str = "pre"
    final_norm: bool = True
    fused: str = "none"
    biases: tuple[bool, ...] = (True, True, True, True)
    inner_norm: str = "none"
    plain_math: bool = True
    biased_scores: str = "none"
    causal: bool = True
    softcap: bool = False
    layer_scale: bool = False
    shrink: bool = False
    mlp: str = "gelu"
    mlp_biases: bool = True
    fused_gate: bool = False
    tied: bool = False
    enlarged: bool = False
    pooled: str = "none"
    head_bias: bool = False

    @property
    def length(self) -> int:
        """How many tokens attention sees."""
        return LENGTH + (self.pooled == "token")

    def build(self) -> nn.Module:
        """The network, in double precision and eval mode."""
        fits = self if self.turned == "none" else replace(self, width=8, heads=2)
        return Transformer(fits).double().eval()


CHOICES = {
    "width": (4, 6, 8),
    "heads": (1, 2),
    "grouped": (1, 2),
    "layers": (1, 2),
    "enter": ("words", "linear", "convolution", "bag"),
    "kinds": (2,),
    "places": ("learned", "embedded", "fixed"),
    "turned": ("halves", "neighbours", "part"),
    "given_places": (True,),
    "norm": ("layer", "rms", "gemma", "functional rms", "batch", "group"),
    "affine": ("both", "scale", "none"),
    "order": ("pre", "post", "both", "beside"),
    "final_norm": (False,),
    "fused": ("qkv", "kv", "by head"),
    "biases": [tuple(bool(k >> n & 1) for n in range(4)) for k in range(15)],
    "inner_norm": ("rms", "layer", "plain rms", "whole rms"),
    "plain_math": (False,),
    "biased_scores": ("slopes", "learned", "added"),
    "causal": (False,),
    "softcap": (True,),
    "layer_scale": (True,),
    "shrink": (True,),
    "mlp": ("relu", "tanh", "silu", "squared relu", "none", "swiglu", "reglu", "bilinear", "glu"),
    "mlp_biases": (False,),
    "fused_gate": (True,),
    "tied": (True,),
    "enlarged": (True,),
    "pooled": ("mean", "first", "token"),
    "head_bias": (True,),
}
WORDS, LENGTH = 11, 4


class GemmaNorm(nn.Module):
    """RMSNorm that multiplies by one more than its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * (1 + self.weight)


class WrittenNorm(nn.Module):
    """RMSNorm as it is written in many models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype is torch.float16 else x
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + EPSILON)).to(x.dtype)


class OverTokens(nn.Module):
    """A norm of images on tokens."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x.transpose(1, 2))
        return found.transpose(1, 2)


def norm_of(kind: str, width: int, affine: str = "both") -> nn.Module:
    """A norm over the last axis."""
    if kind == "layer":
        return nn.LayerNorm(
            width, eps=EPSILON, elementwise_affine=affine != "none", bias=affine == "both"
        )
    if kind == "rms":
        return nn.RMSNorm(width, eps=EPSILON, elementwise_affine=affine != "none")
    if kind == "gemma":
        return GemmaNorm(width)
    if kind == "batch":
        return OverTokens(nn.BatchNorm1d(width, eps=EPSILON, affine=affine != "none"))
    if kind == "group":
        return OverTokens(nn.GroupNorm(2, width, eps=EPSILON, affine=affine != "none"))
    return WrittenNorm(width)


def turned(x: Tensor, places: Tensor, how: str) -> Tensor:
    """Rotary embedding of the last axis; the one before it is that of places."""
    size = x.shape[-1]
    if how == "part":
        half = size // 2
        return torch.cat([turned(x[..., :half], places, "halves"), x[..., half:]], -1)
    speed = 7.0 ** -torch.arange(0, size, 2).double().div(size)
    angle = places[..., :, None].double() * speed
    if how == "halves":
        angle = torch.cat([angle, angle], -1)
        one, two = x.chunk(2, -1)
        return x * angle.cos() + torch.cat([-two, one], -1) * angle.sin()
    one, two = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)


class Attention(nn.Module):
    """Attention in one of its many forms."""

    def __init__(self, form: Attending) -> None:
        super().__init__()
        self.form = form
        wide = form.width
        self.size = wide // form.heads
        self.narrow = self.size * max(1, form.heads // form.grouped)
        query, key, value, out = form.biases
        if form.fused in ("qkv", "by head"):
            self.qkv = nn.Linear(wide, wide + 2 * self.narrow, bias=query)
        else:
            self.query = nn.Linear(wide, wide, bias=query)
            if form.fused == "kv":
                self.kv = nn.Linear(wide, 2 * self.narrow, bias=key)
            else:
                self.key = nn.Linear(wide, self.narrow, bias=key)
                self.value = nn.Linear(wide, self.narrow, bias=value)
        self.out = nn.Linear(wide, wide, bias=out)
        inner = wide if form.inner_norm == "whole rms" else self.size
        if form.inner_norm in ("rms", "layer"):
            self.norm_q, self.norm_k = (norm_of(form.inner_norm, inner) for _ in range(2))
        elif form.inner_norm == "plain rms":
            self.norm_q, self.norm_k = (norm_of("rms", inner, "none") for _ in range(2))
        elif form.inner_norm == "whole rms":
            self.norm_q, self.norm_k = norm_of("rms", wide), norm_of("rms", self.narrow)
        if form.biased_scores == "learned":
            self.distance = nn.Embedding(2 * form.length - 1, form.heads)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        form, wide, narrow = self.form, self.form.width, self.narrow
        if form.fused == "by head" and narrow == wide:
            parts = self.qkv(x).unflatten(-1, (form.heads, 3 * self.size)).chunk(3, -1)
            q, k, v = (part.flatten(-2) for part in parts)
            return q, k, v
        if form.fused in ("qkv", "by head"):
            q, k, v = self.qkv(x).split([wide, narrow, narrow], -1)
            return q, k, v
        if form.fused == "kv":
            return self.query(x), *self.kv(x).chunk(2, -1)
        return self.query(x), self.key(x), self.value(x)

    def _scores(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        form = self.form
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        if form.softcap:
            scores = 3 * torch.tanh(scores / 3)
        count = scores.shape[-1]
        gaps = torch.arange(count)[:, None] - torch.arange(count)
        if form.biased_scores == "slopes":
            slopes = 2.0 ** -torch.arange(1, form.heads + 1).double()
            scores = scores + slopes[:, None, None] * gaps
        elif form.biased_scores == "learned":
            scores = scores + self.distance(gaps + form.length - 1).permute(2, 0, 1)
        return scores if mask is None else scores + mask

    def forward(self, x: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        form, size = self.form, self.size
        q, k, v = self._split(x)
        if form.inner_norm == "whole rms":
            q, k = self.norm_q(q), self.norm_k(k)
        q, k, v = (y.unflatten(-1, (-1, size)).transpose(1, 2) for y in (q, k, v))
        if form.inner_norm in ("rms", "layer", "plain rms"):
            q, k = self.norm_q(q), self.norm_k(k)
        if form.turned != "none":
            at = places[:, None] if places.dim() == 2 else places
            q, k = turned(q, at, form.turned), turned(k, at, form.turned)
        times = q.shape[1] // k.shape[1]
        if times > 1:
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        if form.plain_math or form.softcap or form.biased_scores in ("slopes", "learned"):
            mixed = self._scores(q, k, mask).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        return self.out(mixed.transpose(1, 2).flatten(-2))


_BENDS = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "squared relu": lambda x: F.relu(x).square(),
    "none": lambda x: x,
}
_GATES = {
    "swiglu": F.silu,
    "reglu": F.relu,
    "bilinear": lambda x: x,
    "glu": torch.sigmoid,
}


class Mlp(nn.Module):
    """Two linear layers, or three with a gate."""

    def __init__(self, form: Attending) -> None:
        super().__init__()
        self.form = form
        wide, bias = form.width, form.mlp_biases
        self.gated = form.mlp in _GATES
        self.fused = self.gated and form.fused_gate
        self.up = nn.Linear(wide, form.hidden * (2 if self.fused else 1), bias=bias)
        if self.gated and not self.fused:
            self.gate = nn.Linear(wide, form.hidden, bias=bias)
        self.down = nn.Linear(form.hidden, wide, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.down(_BENDS[self.form.mlp](self.up(x)))
        up, gate = self.up(x).chunk(2, -1) if self.fused else (self.up(x), self.gate(x))
        return self.down(up * _GATES[self.form.mlp](gate))


class Block(nn.Module):
    """Attention and an MLP, with norms before, after or beside."""

    def __init__(self, form: Attending) -> None:
        super().__init__()
        self.form = form
        self.attention, self.mlp = Attention(form), Mlp(form)
        self.drop = nn.Dropout(0.2)
        count = 4 if form.order == "both" else 1 if form.order == "beside" else 2
        self.norms = nn.ModuleList(
            norm_of(form.norm, form.width, form.affine) for _ in range(count)
        )
        if form.layer_scale:
            self.scales = nn.ParameterList(torch.zeros(form.width) for _ in range(2))

    def _added(self, x: Tensor, number: int) -> Tensor:
        x = self.drop(x)
        if self.form.layer_scale:
            x = x * self.scales[number]
        return 0.7 * x if self.form.shrink else x

    def forward(self, x: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        norms, order = self.norms, self.form.order
        if order == "beside":
            y = norms[0](x)
            return x + self._added(self.attention(y, places, mask), 0) + self._added(self.mlp(y), 1)
        if order == "post":
            x = norms[0](x + self._added(self.attention(x, places, mask), 0))
            return norms[1](x + self._added(self.mlp(x), 1))
        y = self.attention(norms[0](x), places, mask)
        x = x + self._added(norms[2](y) if order == "both" else y, 0)
        y = self.mlp(norms[1](x))
        return x + self._added(norms[3](y) if order == "both" else y, 1)


class Transformer(nn.Module):
    """Words or patches, blocks, a norm, and a head."""

    def __init__(self, form: Attending) -> None:
        super().__init__()
        self.form = form
        wide = form.width
        self.enter: nn.Module
        if form.enter in ("words", "bag"):
            self.enter = nn.Embedding(WORDS, wide)
        elif form.enter == "linear":
            self.enter = nn.Linear(3, wide)
        else:
            self.enter = nn.Conv2d(2, wide, 2, 2)
        if form.kinds:
            self.kind = nn.Embedding(form.kinds, wide)
        length = form.length
        if form.places == "learned":
            self.places = nn.Parameter(torch.zeros(1, length, wide))
        elif form.places == "embedded":
            self.placed = nn.Embedding(length, wide)
        if form.pooled == "token":
            self.token = nn.Parameter(torch.zeros(1, 1, wide))
        self.blocks = nn.ModuleList(Block(form) for _ in range(form.layers))
        self.norm = norm_of(form.norm, wide, form.affine) if form.final_norm else None
        self.head = nn.Linear(wide, WORDS, bias=form.head_bias)
        if form.tied and form.enter == "words":
            assert isinstance(self.enter, nn.Embedding)
            self.head.weight = self.enter.weight

    def forward(
        self, x: Tensor, kinds: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        y = self._entered(x, kinds)
        at = torch.arange(y.shape[1]) if places is None else places
        y = self._placed(y, at)
        mask = self._mask(y)
        for block in self.blocks:
            y = block(y, at, mask)
        if self.norm is not None:
            y = self.norm(y)
        if self.form.pooled == "mean":
            y = y.mean(1)
        elif self.form.pooled in ("first", "token"):
            y = y[:, 0]
        found: Tensor = self.head(y)
        return found

    def _entered(self, x: Tensor, kinds: Tensor | None) -> Tensor:
        form = self.form
        y: Tensor = self.enter(x)
        if form.enter == "convolution":
            y = y.flatten(2).transpose(1, 2)
        elif form.enter == "bag":
            y = y.mean(2)
        if form.enlarged:
            y = y * math.sqrt(form.width)
        if kinds is not None and form.kinds:
            y = y + self.kind(kinds)
        if form.pooled == "token":
            y = torch.cat([self.token.expand(len(y), -1, -1), y], 1)
        return y

    def _placed(self, y: Tensor, at: Tensor) -> Tensor:
        form = self.form
        if form.places == "learned":
            return y + self.places
        if form.places == "embedded":
            return y + self.placed(at)
        if form.places == "fixed":
            waves = torch.outer(torch.arange(y.shape[1]), torch.arange(form.width)).double().sin()
            return y + waves
        return y

    def _mask(self, y: Tensor) -> Tensor | None:
        count = y.shape[1]
        if self.form.causal:
            return torch.full((count, count), -math.inf, dtype=y.dtype).triu(1)
        if self.form.biased_scores == "added":
            return torch.outer(torch.arange(count), torch.arange(count)).to(y.dtype).sin()
        return None

    def batch(self, count: int, seed: int) -> tuple[Tensor, ...]:
        """Inputs for it."""
        gen = torch.Generator().manual_seed(seed)
        form = self.form
        shape = {"linear": (count, LENGTH, 3), "convolution": (count, 2, 4, 4)}.get(form.enter)
        if shape is not None:
            x = torch.randn(shape, generator=gen, dtype=torch.float64)
        else:
            more = (3,) if form.enter == "bag" else ()
            x = torch.randint(0, WORDS, (count, LENGTH, *more), generator=gen)
        found = [x]
        if form.kinds or form.given_places:
            found.append(torch.randint(0, max(1, form.kinds), (count, LENGTH), generator=gen))
        if form.given_places:
            found.append(torch.arange(form.length).expand(count, -1))
        return tuple(found)
