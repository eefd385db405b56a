"""Attention: heads and the dims in them, in all the ways in which they are laid out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.structures.table import (
    IMAGE,
    SEQUENCE,
    Around,
    f,
    ids,
    mlp,
    shaped,
    structure,
)

D, H, E = 12, 3, 4
"""Width, heads, dims per head."""

HEADS = f(H) + 2 * H * f(E)
"""Heads, and in each the dims of query and key, and those of value and output."""


class FusedAttention(nn.Module):
    """One projection for query, key and value, cut as timm cuts it: [3, heads, dims]."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, H, E).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * E**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, D))


@structure(f(D) + HEADS, SEQUENCE)
def fused_attention() -> nn.Module:
    return Around(D, FusedAttention())


@structure(f(D, 8) + 2 * HEADS, SEQUENCE)
def transformer_blocks() -> nn.Module:
    parts = [FusedAttention(), mlp(D, 8, D), FusedAttention()]
    return Around(D, *[nn.Sequential(nn.LayerNorm(D), part) for part in parts])


class ChunkedAttention(nn.Module):
    """One projection, cut into three before the heads, and the fused operator."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, H, E).transpose(1, 2) for part in self.qkv(x).split(D, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(out.transpose(1, 2).flatten(2))


@structure(f(D) + HEADS, SEQUENCE)
def chunked_causal_attention() -> nn.Module:
    return Around(D, ChunkedAttention())


class PerHeadFusedAttention(nn.Module):
    """GPT-NeoX's layout: query, key and value inside each head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, H, 3 * E).transpose(1, 2).chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out(out.transpose(1, 2).reshape(b, n, D))


@structure(f(D) + HEADS, SEQUENCE)
def attention_fused_per_head() -> nn.Module:
    return Around(D, PerHeadFusedAttention())


class SeparateAttention(nn.Module):
    """Three projections; scores by einsum; hooks for what variants do to them."""

    def __init__(self, dims: int = E) -> None:
        super().__init__()
        self.dims = dims
        self.q, self.k = nn.Linear(D, H * dims), nn.Linear(D, H * dims)
        self.v, self.out = nn.Linear(D, H * E), nn.Linear(H * E, D)

    def split(self, x: Tensor, dims: int) -> Tensor:
        return x.view(*x.shape[:2], H, dims).transpose(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        return x

    def scores(self, scores: Tensor) -> Tensor:
        return scores

    def merge(self, out: Tensor) -> Tensor:
        return self.out(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (self.keys(self.split(part(x), self.dims)) for part in (self.q, self.k))
        v = self.split(self.v(x), E)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(E)
        weights = self.scores(scores).softmax(-1)
        return self.merge(torch.einsum("bhqk,bhkd->bhqd", weights, v))


@structure(f(D, H) + H * (f(5) + f(E)), SEQUENCE)
def separate_attention() -> nn.Module:
    return Around(D, SeparateAttention(dims=5))


class SharedScale(SeparateAttention):
    """A scale per dimension that all heads share: their dims move alike."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(E))

    def keys(self, x: Tensor) -> Tensor:
        return x * self.scale


@structure(f(D, H, E) + H * f(E), SEQUENCE)
def scale_shared_by_heads() -> nn.Module:
    return Around(D, SharedScale())


class NormalisedKeys(SeparateAttention):
    """A LayerNorm on queries and keys, whose weights all heads share."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(E)

    def keys(self, x: Tensor) -> Tensor:
        return self.norm(x)


@structure(f(D, H, E) + H * f(E), SEQUENCE)
def norm_shared_by_heads() -> nn.Module:
    return Around(D, NormalisedKeys())


class ScaledHeads(SeparateAttention):
    """A temperature for each head takes nothing away."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(H, 1, 1))

    def scores(self, scores: Tensor) -> Tensor:
        return scores * self.temperature.exp()


@structure(f(D) + HEADS, SEQUENCE)
def temperature_of_each_head() -> nn.Module:
    return Around(D, ScaledHeads())


class TalkingHeads(SeparateAttention):
    """Scores are mixed between heads before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(H, H)

    def scores(self, scores: Tensor) -> Tensor:
        return self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# Heads of the scores and heads of the values are two classes, mixed by a matrix in between.
@structure(f(D, H, H) + 2 * H * f(E), SEQUENCE)
def talking_heads() -> nn.Module:
    return Around(D, TalkingHeads())


class SummedHeads(SeparateAttention):
    """Heads are added up, so that the dims of their values move alike."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(E, D)

    def merge(self, out: Tensor) -> Tensor:
        return self.out(out.sum(1))


@structure(f(D, H, E) + H * f(E), SEQUENCE)
def sum_over_heads() -> nn.Module:
    return Around(D, SummedHeads())


class Rotary(SeparateAttention):
    """Pairs of query and key dims are turned, each by an angle of its own: they are pinned."""

    def turned(self, x: Tensor) -> Tensor:
        half = E // 2
        angles = torch.arange(x.shape[2])[:, None] * 100.0 ** -torch.arange(half)
        angles = torch.cat([angles, angles], -1).to(x.dtype)
        other = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angles.cos() + other * angles.sin()

    def keys(self, x: Tensor) -> Tensor:
        return self.turned(x)


@structure(f(D, H) + H * f(E), SEQUENCE)
def rotary_embeddings() -> nn.Module:
    return Around(D, Rotary())


class InterleavedRotary(SeparateAttention):
    """Rotary embeddings of neighbouring dims, by complex numbers, as the first Llama did it."""

    def keys(self, x: Tensor) -> Tensor:
        half = self.dims // 2
        angles = torch.arange(x.shape[2])[:, None] * 100.0 ** -torch.arange(half)
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], half, 2))
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(3).type_as(x)


@structure(f(D, H) + H * f(E), SEQUENCE)
def interleaved_rotary_embeddings() -> nn.Module:
    return Around(D, InterleavedRotary())


class PositionBias(SeparateAttention):
    """A table of biases by relative position and head: the heads axis is free."""

    def __init__(self) -> None:
        super().__init__()
        self.table = shaped(9, H)
        at = torch.arange(5)
        self.register_buffer("index", at[:, None] - at[None, :] + 4)

    def scores(self, scores: Tensor) -> Tensor:
        bias = self.table[self.index.view(-1)].view(5, 5, H)
        return scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)


@structure(f(D) + HEADS, SEQUENCE)
def relative_position_bias() -> nn.Module:
    return Around(D, PositionBias())


class PositionNetwork(SeparateAttention):
    """Biases that a small network computes from coordinates, as in Swin v2."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(1, 7), nn.ReLU(), nn.Linear(7, H, bias=False))
        at = torch.arange(5)
        self.register_buffer("index", at[:, None] - at[None, :] + 4)

    def scores(self, scores: Tensor) -> Tensor:
        coordinates = torch.linspace(-1, 1, 9, dtype=scores.dtype).unsqueeze(1)
        table = 16 * torch.sigmoid(self.network(coordinates))
        return scores + table[self.index].permute(2, 0, 1)


@structure(f(D, 7) + HEADS, SEQUENCE)
def position_bias_network() -> nn.Module:
    return Around(D, PositionNetwork())


class KeyWithoutBias(nn.Module):
    """A fused projection whose bias has zeros for the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.q_bias, self.v_bias = shaped(3 * D, D), shaped(D), shaped(D)
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = (
            F.linear(x, self.weight, bias).view(b, n, 3, H, E).permute(2, 0, 3, 1, 4).unbind(0)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out(out.transpose(1, 2).reshape(b, n, D))


@structure(f(D) + HEADS, SEQUENCE)
def fused_bias_with_a_zero_key_bias() -> nn.Module:
    return Around(D, KeyWithoutBias())


class GroupedQuery(nn.Module):
    """2 groups of 3 query heads that share keys and values, of 4 dims."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v = nn.Linear(D, 24), nn.Linear(D, 8), nn.Linear(D, 8)
        self.out = nn.Linear(24, D)

    def repeated(self, x: Tensor) -> Tensor:
        if self.how == "repeat_interleave":
            return x.repeat_interleave(3, dim=1)
        if self.how == "expand":
            b, groups, n, e = x.shape
            return x[:, :, None].expand(b, groups, 3, n, e).reshape(b, 3 * groups, n, e)
        return x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        enable = self.how == "enable_gqa"
        out = F.scaled_dot_product_attention(
            q, self.repeated(k), self.repeated(v), enable_gqa=enable
        )
        return self.out(out.transpose(1, 2).flatten(2))


GROUPED = f(D) + f(2) + 2 * f(3) + 2 * 2 * f(4)


@structure(GROUPED, SEQUENCE)
def grouped_query_by_repeat_interleave() -> nn.Module:
    return Around(D, GroupedQuery("repeat_interleave"))


@structure(GROUPED, SEQUENCE)
def grouped_query_by_expand() -> nn.Module:
    return Around(D, GroupedQuery("expand"))


@structure(GROUPED, SEQUENCE)
def grouped_query_by_the_operator() -> nn.Module:
    return Around(D, GroupedQuery("enable_gqa"))


class MultiQuery(nn.Module):
    """All query heads share one key and one value: its dims are one class each."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(D, D), nn.Linear(D, 2 * E), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (H, E)).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).split(E, dim=-1)
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


@structure(f(D, H, E, E), SEQUENCE)
def multi_query() -> nn.Module:
    return Around(D, MultiQuery())


class BuiltInSelf(nn.Module):
    def __init__(self, batch_first: bool, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, H, batch_first=batch_first, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@structure(f(D) + HEADS, SEQUENCE)
def multihead_attention() -> nn.Module:
    return Around(D, BuiltInSelf(batch_first=True))


@structure(f(D) + HEADS, SEQUENCE)
def multihead_attention_batch_second() -> nn.Module:
    return Around(D, BuiltInSelf(batch_first=False))


@structure(f(D) + HEADS, SEQUENCE)
def multihead_attention_without_bias() -> nn.Module:
    return Around(D, BuiltInSelf(batch_first=True, bias=False))


@structure(f(D) + HEADS, SEQUENCE)
def multihead_attention_with_appended_tokens() -> nn.Module:
    return Around(D, BuiltInSelf(batch_first=True, add_bias_kv=True, add_zero_attn=True))


class BuiltInCross(nn.Module):
    """Queries from one stream, keys and values from two others, and the weights as an output."""

    def __init__(self, kdim: int, vdim: int) -> None:
        super().__init__()
        self.enter, self.keys, self.values = (nn.Linear(3, n) for n in (D, kdim, vdim))
        self.attention = nn.MultiheadAttention(D, H, kdim=kdim, vdim=vdim, batch_first=True)
        self.leave = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, keys, values = self.enter(x), self.keys(x).relu(), self.values(x).tanh()
        out, weights = self.attention(x, keys, values)
        return self.leave(x + out), weights


@structure(f(D, 7, 8) + HEADS, SEQUENCE)
def cross_attention() -> nn.Module:
    return BuiltInCross(7, 8)


@structure(f(D, D, D) + HEADS, SEQUENCE)
def cross_attention_of_one_width() -> nn.Module:
    return BuiltInCross(D, D)


@structure(f(D, 8, 8) + 2 * HEADS, SEQUENCE)
def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, H, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(D), enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(3, D), encoder, nn.Linear(D, 2))


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, D)
        layer = nn.TransformerEncoderLayer(D, H, 8, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(D), enable_nested_tensor=False)
        self.transformer = nn.Transformer(D, H, 1, 1, 8, batch_first=True, custom_encoder=encoder)
        self.leave = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.leave(self.transformer(x, x.flip(1), tgt_mask=mask, tgt_is_causal=True))


@structure(f(D, 8, 8) + 3 * HEADS, SEQUENCE)
def encoder_and_decoder() -> nn.Module:
    return EncoderDecoder()


class VisionTransformer(nn.Module):
    """Patches, a class token, position embeddings, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, D, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, D))
        self.positions = nn.Parameter(torch.zeros(1, 10, D))
        self.block, self.norm, self.head = FusedAttention(), nn.LayerNorm(D), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(x + self.block(x))[:, 0])


@structure(f(D) + HEADS, IMAGE)
def class_token_and_position_embeddings() -> nn.Module:
    return VisionTransformer()


class Windows(nn.Module):
    """Swin: shift, cut into windows of 3 × 3, mask, attend, put together, shift back."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attention = nn.Conv2d(3, D, 1), FusedAttention()
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        parts = torch.roll(self.norm(x), (-1, -1), (1, 2)).view(b, h // 3, 3, w // 3, 3, c)
        parts = self.attention(parts.permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, c))
        parts = parts.view(b, h // 3, w // 3, 3, 3, c).permute(0, 1, 3, 2, 4, 5)
        return self.head(x + torch.roll(parts.reshape(b, h, w, c), (1, 1), (1, 2)))


@structure(f(D) + HEADS, IMAGE)
def shifted_windows() -> nn.Module:
    return Windows()


class PaddedWindows(nn.Module):
    """A picture that windows do not fit is padded with zeros first, and cropped after."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.attention = nn.Conv2d(3, D, 2), FusedAttention()
        self.head = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        padded = F.pad(x, (0, 0, 0, 1, 0, 1))
        parts = padded.view(b, 2, 3, 2, 3, c).transpose(2, 3).reshape(-1, 9, c)
        parts = self.attention(parts).view(b, 2, 2, 3, 3, c).transpose(2, 3)
        return self.head(x + parts.reshape(b, 6, 6, c)[:, :h, :w])


@structure(f(D) + HEADS, IMAGE)
def padded_windows() -> nn.Module:
    return PaddedWindows()


class ChannelAttention(nn.Module):
    """XCiT: attention between channels of a head; its dims are normalised over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, H, E).permute(2, 0, 3, 4, 1)
        weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return self.out((weights.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, D))


# Query dims are those of the output, key dims those of the values.
@structure(f(D) + HEADS, SEQUENCE)
def attention_between_channels() -> nn.Module:
    return Around(D, ChannelAttention())


class Latents(nn.Module):
    """Learned queries attend to the input (Perceiver, pooling by attention); they have an order."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.queries = nn.Linear(3, D), shaped(1, 2, D)
        self.attention = nn.MultiheadAttention(D, H, batch_first=True)
        self.leave = nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        queries = self.queries.expand(x.shape[0], -1, -1)
        return self.leave(self.attention(queries, x, x, need_weights=False)[0])


# Queries, input and output are in no sum with each other: three streams of one width.
@structure(f(D, D, D) + HEADS, SEQUENCE)
def learned_queries() -> nn.Module:
    return Latents()


class LanguageModel(nn.Module):
    """Token and position embeddings, a block, and a head that is the embedding again."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, D), nn.Embedding(5, D)
        self.block, self.norm = ChunkedAttention(), nn.LayerNorm(D)
        self.head = nn.Linear(D, 11, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(x + self.block(x)))


@structure(f(D) + HEADS, ids(11, 2, 5))
def tied_embeddings() -> nn.Module:
    return LanguageModel()


@structure(f(D) + HEADS, ids(11, 2, 5))
def embeddings() -> nn.Module:
    return LanguageModel(tied=False)


class PartlyRotary(Rotary):
    """Only the first dims of a head are turned; the 5 others are free."""

    def keys(self, x: Tensor) -> Tensor:
        return torch.cat([self.turned(x[..., :E]), x[..., E:]], -1)


@structure(f(D, H) + H * (f(5) + f(E)), SEQUENCE)
def partly_rotary_embeddings() -> nn.Module:
    return Around(D, PartlyRotary(dims=E + 5))


class SlopesPerHead(SeparateAttention):
    """A constant of its own for each head, as in ALiBi, gives the heads an order."""

    def scores(self, scores: Tensor) -> Tensor:
        slopes = 2.0 ** -torch.arange(1.0, H + 1)
        at = torch.arange(scores.shape[-1])
        return scores - slopes[:, None, None] * (at[:, None] - at[None, :]).abs()


@structure(f(D) + 2 * H * f(E), SEQUENCE)
def slopes_per_head() -> nn.Module:
    return Around(D, SlopesPerHead())


class LinearAttention(SeparateAttention):
    """Keys meet values before they meet queries."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = (F.elu(self.split(part(x), self.dims)) + 1 for part in (self.q, self.k))
        v = self.split(self.v(x), E)
        summary = torch.einsum("bhnd,bhne->bhde", k, v)
        scale = 1 / (torch.einsum("bhnd,bhd->bhn", q, k.sum(2)) + 1)
        return self.merge(torch.einsum("bhnd,bhde,bhn->bhne", q, summary, scale))


@structure(f(D, H) + H * (f(6) + f(E)), SEQUENCE)
def linear_attention() -> nn.Module:
    return Around(D, LinearAttention(dims=6))


class HeadsInALoop(SeparateAttention):
    """Each head by itself: heads have an order, the dims in them do not."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        found = []
        for head in range(H):
            part = slice(head * E, (head + 1) * E)
            weights = (q[..., part] @ k[..., part].transpose(1, 2)).softmax(-1)
            found.append(weights @ v[..., part])
        return self.out(torch.cat(found, -1))


# As a group, heads can be exchanged here as well; what is read one by one is told apart.
@structure(f(D) + 2 * H * f(E), SEQUENCE)
def heads_in_a_loop() -> nn.Module:
    return Around(D, HeadsInALoop())
