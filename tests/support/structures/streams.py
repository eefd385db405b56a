"""Residual streams, normalisation, concatenation, gates and scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.structures.table import (
    IMAGE,
    SEQUENCE,
    VECTOR,
    Around,
    f,
    floats,
    mlp,
    shaped,
    structure,
)


@structure(f(6, 8, 9), VECTOR)
def residual_stream() -> nn.Module:
    return Around(6, mlp(6, 8, 6), mlp(6, 9, 6))


@structure(f(6, 8, 8), SEQUENCE)
def layer_norm() -> nn.Module:
    return Around(6, *[nn.Sequential(nn.LayerNorm(6), mlp(6, 8, 6)) for _ in range(2)])


@structure(f(6, 8), SEQUENCE)
def layer_norm_without_affine() -> nn.Module:
    return Around(6, nn.Sequential(nn.LayerNorm(6, elementwise_affine=False), mlp(6, 8, 6)))


@structure(f(6, 8), SEQUENCE)
def rms_norm() -> nn.Module:
    return Around(6, nn.Sequential(nn.RMSNorm(6), mlp(6, 8, 6)))


class HandMadeRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@structure(f(6, 8), SEQUENCE)
def rms_norm_by_hand() -> nn.Module:
    return Around(6, nn.Sequential(HandMadeRMSNorm(6), mlp(6, 8, 6)))


def conv_net(*middle: nn.Module, width: int = 6) -> nn.Module:
    """Something between two convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3), *middle, nn.ReLU(), nn.Conv2d(width, 4, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


@structure(f(6, 4), IMAGE)
def batch_norm() -> nn.Module:
    return conv_net(nn.BatchNorm2d(6))


@structure(f(6, 4), IMAGE)
def batch_norm_of_the_batch() -> nn.Module:
    return conv_net(nn.BatchNorm2d(6, track_running_stats=False))


@structure(f(6, 4), IMAGE)
def instance_norm() -> nn.Module:
    return conv_net(nn.InstanceNorm2d(6, affine=True))


@structure(f(3, 4) + 3 * f(2), IMAGE)
def group_norm() -> nn.Module:
    return conv_net(nn.GroupNorm(3, 6))


@structure(f(6, 4), IMAGE)
def group_norm_of_one_group() -> nn.Module:
    return conv_net(nn.GroupNorm(1, 6))


@structure(f(7, 6, 4), VECTOR)
def batch_norm_of_vectors() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 7), nn.BatchNorm1d(7), nn.Tanh(), mlp(7, 6, 4), nn.PReLU(4), nn.Linear(4, 2)
    )


@structure(f(5, 7), IMAGE)
def conv_flatten_linear() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), mlp(20, 7, 2)
    )


@structure(f(6, 4, 4, 4), IMAGE)
class DenseNet(nn.Module):
    """Every layer reads everything that came before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        widths = (6, 10, 14)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (*widths, 18))
        self.layers = nn.ModuleList(nn.Conv2d(n, 4, 3, padding=1) for n in widths)
        self.head = nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            found.append(layer(norm(torch.cat(found, 1)).relu()))
        return self.head(self.norms[-1](torch.cat(found, 1)).mean((2, 3)))


@structure(f(6, 3, 4, 5, 7), IMAGE)
class Inception(nn.Module):
    """Branches side by side, one of them a pooled copy of the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(6, n, k, padding=k // 2) for n, k in ((3, 1), (4, 3), (5, 5))
        )
        self.norm = nn.BatchNorm2d(18)
        self.mix = nn.Conv2d(18, 7, 1)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        parts = [branch(x).relu() for branch in self.branches]
        parts.append(F.max_pool2d(x, 3, 1, 1))
        return self.head(self.mix(self.norm(torch.cat(parts, 1))).relu().mean((2, 3)))


@structure(f(4, 5, 6), IMAGE)
class SqueezeNet(nn.Module):
    """A fire module."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 1)
        self.expand1 = nn.Conv2d(4, 5, 1)
        self.expand3 = nn.Conv2d(4, 6, 3, padding=1)
        self.classifier = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        x = torch.cat([self.expand1(x).relu(), self.expand3(x).relu()], 1)
        return self.classifier(x).mean((2, 3))


@structure(f(4, 5), VECTOR)
class ConcatenationInAResidual(nn.Module):
    """A stream that meets a concatenation falls into two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Linear(3, 9)
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 5)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.skip(x) + torch.cat([self.left(x).relu(), self.right(x).tanh()], 1))


@structure(f(4, 6), VECTOR)
class ConcatenationWithTheInput(nn.Module):
    """The input's part of a concatenation is pinned, the other is free."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(7, 6)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.cat([x, self.first(x).relu()], 1)).relu()
        return self.head(torch.cat([h, x], 1))


@structure(f(6), SEQUENCE)
def glu() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 12), nn.GLU(), nn.Linear(6, 2))


@structure(f(6), IMAGE)
def glu_of_channels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.GLU(dim=1), nn.Conv2d(6, 2, 3))


@structure(f(8, 6), SEQUENCE)
class SwiGLU(nn.Module):
    """Both halves of one projection, tied to one class."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 8)
        self.gate_and_up, self.down = nn.Linear(8, 12), nn.Linear(6, 8)
        self.leave = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.leave(x + self.down(F.silu(gate) * up))


@structure(f(6), SEQUENCE)
class SlicedGates(nn.Module):
    """Interleaved halves: every other unit is a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(3, 12), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = self.both(x)
        return self.down(both[..., ::2].sigmoid() * both[..., 1::2])


@structure(f(6), VECTOR)
class GatesOfASum(nn.Module):
    """Two projections are added up before they are cut into gates."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.leave = nn.Linear(3, 18), nn.Linear(3, 18), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = (self.one(x) + self.two(x.tanh())).chunk(3, 1)
        return self.leave(first.sigmoid() * second.tanh() + third)


@structure(f(6, 4), IMAGE)
class SqueezeExcitation(nn.Module):
    """Channels scaled by what a small network says of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.down, self.up = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.head = nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        scale = self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu())
        return self.head(x * F.hardsigmoid(scale))


@structure(f(6, 8), IMAGE)
class LayerScale(nn.Module):
    """A ConvNeXt block: channels last, and a scale per channel on the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.branch = nn.LayerNorm(6), mlp(6, 8, 6)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.branch(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        x = x + self.scale * branch.permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))


@structure(f(4, 5), VECTOR)
class ActivationsThatSplitUnits(nn.Module):
    """Two kinds of units in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave(torch.cat([h[:, :4].relu(), F.gelu(h[:, 4:])], 1))


@structure(f(4), VECTOR)
class DeadUnits(nn.Module):
    """Units that nothing reads are in no class, like parameters that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 9), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x)[:, :4].relu())


@structure(f(6, 7), SEQUENCE)
class TokenMixing(nn.Module):
    """An MLP over tokens, whose hidden units are free although tokens are not."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.tokens, self.leave = nn.Linear(3, 6), mlp(5, 7, 5), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.tokens(x.transpose(1, 2)).transpose(1, 2))


@structure(f(5, 6), VECTOR)
def bilinear() -> nn.Module:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 5), nn.Linear(3, 6)
            self.both = nn.Bilinear(5, 6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.both(self.left(x), self.right(x))

    return Bilinear()


@structure(f(6), floats(2, 3, 8))
class MaxOverUnits(nn.Module):
    """The largest and the sum of all units do not depend on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 6)
        self.scale = shaped(6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return h.amax(-1) + (h.softmax(-1) * self.scale).sum(-1) + h.logsumexp(-1)


@structure(0.0, VECTOR)
class OrderDependent(nn.Module):
    """A running sum over units pins them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x).cumsum(-1))


@structure(f(6, 5), VECTOR)
def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 6), nn.Dropout(), nn.ELU(), nn.Linear(6, 5), nn.AlphaDropout(), nn.SELU(),
        nn.Linear(5, 2), nn.LogSoftmax(dim=-1),
    )  # fmt: skip
