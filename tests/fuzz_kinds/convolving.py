"""Random convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.fuzz_kinds.attending import EPSILON, norm_of
from tests.fuzz_kinds.words import Form


@dataclass(frozen=True)
class Convolving(Form):
    """A convolutional network of a few channels."""

    first: int = 4
    second: int = 4
    groups: int = 1
    biases: bool = True
    norm: str = "none"
    bend: str = "leaky"
    depthwise: bool = False
    block: str = "none"
    excited: bool = False
    pool: str = "max"
    end: str = "mean"
    layer_scale: bool = False
    dense: bool = False
    transposed: bool = False

    def build(self) -> nn.Module:
        """The network, in double precision and eval mode."""
        return Convolutional(self).double().eval()


CHOICES = {
    "first": (3, 4, 6),
    "second": (4, 6),
    "groups": (2,),
    "biases": (False,),
    "norm": ("batch", "group", "instance", "channels", "plain batch"),
    "bend": ("gelu", "silu", "tanh", "none", "relu", "prelu", "relu6", "hardswish"),
    "depthwise": (True,),
    "block": ("residual", "inverted", "convnext"),
    "excited": (True,),
    "pool": ("average", "none"),
    "end": ("flatten", "largest", "maps"),
    "layer_scale": (True,),
    "dense": (True,),
    "transposed": (True,),
}
_BENDS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
    "leaky": nn.LeakyReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
}


class ChannelsLast(nn.Module):
    """A LayerNorm over the channels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm_of("layer", channels)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return found.permute(0, 3, 1, 2)


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def _norm(form: Convolving, channels: int) -> nn.Module:
    if form.norm == "batch":
        return nn.BatchNorm2d(channels, eps=EPSILON)
    if form.norm == "plain batch":
        return nn.BatchNorm2d(channels, eps=EPSILON, affine=False)
    if form.norm == "group":
        return nn.GroupNorm(2 if channels % 2 == 0 else 1, channels, eps=EPSILON)
    if form.norm == "instance":
        return nn.InstanceNorm2d(channels, eps=EPSILON, affine=True)
    return ChannelsLast(channels) if form.norm == "channels" else nn.Identity()


def _bend(form: Convolving, channels: int) -> nn.Module:
    return nn.PReLU(channels) if form.bend == "prelu" else _BENDS[form.bend]()


def _layer(form: Convolving, before: int, after: int, size: int, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, size, padding=size // 2, groups=groups, bias=form.biases),
        _norm(form, after),
        _bend(form, after),
    )


class Inner(nn.Module):
    """What keeps the number of channels."""

    def __init__(self, form: Convolving, channels: int) -> None:
        super().__init__()
        self.form = form
        if form.block == "convnext":
            self.path: nn.Module = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                ChannelsLast(channels),
                nn.Conv2d(channels, 5, 1),
                nn.GELU(),
                nn.Conv2d(5, channels, 1),
            )
        elif form.block == "inverted":
            self.path = nn.Sequential(
                _layer(form, channels, 5, 1),
                _layer(form, 5, 5, 3, 5),
                Excited(5) if form.excited else nn.Identity(),
                nn.Conv2d(5, channels, 1, bias=False),
                _norm(form, channels),
            )
        else:
            self.path = nn.Sequential(
                _layer(form, channels, 5, 3),
                nn.Conv2d(5, channels, 1, bias=form.biases),
                _norm(form, channels),
            )
        if form.layer_scale:
            self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.path(x)
        if self.form.layer_scale:
            y = y * self.scale
        if self.form.dense:
            return torch.cat([x, y], 1)
        y = x + y
        return y.relu() if self.form.block == "residual" else y


class Convolutional(nn.Module):
    """Convolutions, perhaps a block, and a head."""

    def __init__(self, form: Convolving) -> None:
        super().__init__()
        self.form = form
        channels = form.second
        layers = [_layer(form, 2, form.first, 3)]
        if form.depthwise:
            layers.append(_layer(form, form.first, form.first, 3, form.first))
        groups = form.groups if form.first % 2 == 0 else 1
        layers.append(_layer(form, form.first, channels, 3, groups))
        if form.excited and form.block != "inverted":
            layers.append(Excited(channels))
        if form.block != "none":
            layers.append(Inner(form, channels))
            channels *= 2 if form.dense else 1
        if form.transposed:
            layers.append(nn.ConvTranspose2d(channels, channels, 2, 2))
            layers.append(_bend(form, channels))
        self.body = nn.Sequential(*layers)
        self.pool = {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2)}.get(form.pool)
        side = 6 * (2 if form.transposed else 1) // (1 if self.pool is None else 2)
        size = channels * (side * side if form.end == "flatten" else 1)
        self.head = nn.Conv2d(channels, 3, 1) if form.end == "maps" else nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        if self.pool is not None:
            y = self.pool(y)
        if self.form.end == "mean":
            y = y.mean((2, 3))
        elif self.form.end == "largest":
            y = y.amax((2, 3))
        elif self.form.end == "flatten":
            y = y.flatten(1)
        found: Tensor = self.head(y)
        return found

    def batch(self, count: int, seed: int) -> tuple[Tensor, ...]:
        """Inputs for it."""
        gen = torch.Generator().manual_seed(seed)
        return (torch.randn((count, 2, 6, 6), generator=gen, dtype=torch.float64),)
