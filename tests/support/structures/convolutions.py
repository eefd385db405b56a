"""Convolutions with groups, the other way round, and what moves channels about."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.structures.table import IMAGE, Around, f, floats, mlp, structure


def between(middle: nn.Module, before: int, after: int) -> nn.Module:
    """Something between two convolutions of one pixel."""
    return nn.Sequential(
        nn.Conv2d(3, before, 1), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(after, 2, 1)
    )


@structure(f(4) + 4 * f(2) + 4 * f(3), IMAGE)
def grouped_convolution() -> nn.Module:
    return between(nn.Conv2d(8, 12, 3, groups=4), 8, 12)


@structure(f(4) + 4 * f(3), IMAGE)
def depthwise_convolution_with_multiplier() -> nn.Module:
    return between(nn.Conv2d(4, 12, 3, groups=4), 4, 12)


@structure(f(4) + 4 * f(3), IMAGE)
def depthwise_scale_with_multiplier() -> nn.Module:
    """Each output channel is an input channel times one number."""
    return between(nn.Conv2d(4, 12, 1, groups=4, bias=False), 4, 12)


@structure(f(96) + 96 * f(2), floats(2, 3, 24, 24))
def depthwise_scale_of_many_channels() -> nn.Module:
    scale = nn.Sequential(nn.Conv2d(96, 192, 1, groups=96, bias=False), nn.BatchNorm2d(192))
    return between(scale, 96, 192)


class TwoKernels(nn.Module):
    """A large and a small depthwise kernel, added up (RepLKNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(4, 12, 5, padding=2, groups=4, bias=False)
        self.small = nn.Conv2d(4, 12, 3, padding=1, groups=4, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](self.large(x)) + self.norms[1](self.small(x))


@structure(f(4) + 4 * f(3), IMAGE)
def two_depthwise_convolutions_with_multiplier() -> nn.Module:
    return between(TwoKernels(), 4, 12)


@structure(f(5), IMAGE)
def depthwise_convolution() -> nn.Module:
    return between(nn.Conv2d(5, 5, 3, groups=5), 5, 5)


@structure(f(4, 6), IMAGE)
def transposed_convolution() -> nn.Module:
    return between(nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), 4, 6)


@structure(f(3) + 3 * f(2) + 3 * f(4), IMAGE)
def grouped_transposed_convolution() -> nn.Module:
    return between(nn.ConvTranspose2d(6, 12, 3, groups=3), 6, 12)


@structure(f(5), IMAGE)
def depthwise_transposed_convolution() -> nn.Module:
    return between(nn.ConvTranspose2d(5, 5, 2, groups=5), 5, 5)


@structure(f(4, 5), floats(2, 3, 9))
def convolution_of_sequences() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, padding="same"), nn.GELU(), nn.Conv1d(4, 5, 3, dilation=2),
        nn.BatchNorm1d(5), nn.AvgPool1d(2), nn.Conv1d(5, 2, 1),
    )  # fmt: skip


@structure(f(4, 5), floats(1, 3, 4, 5, 6))
def convolution_of_volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 5, 2),
        nn.MaxPool3d(1), nn.ConvTranspose3d(5, 2, 2),
    )  # fmt: skip


@structure(f(4), IMAGE)
def circular_padding() -> nn.Module:
    return between(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", groups=4), 4, 4)


@structure(f(4, 5), IMAGE)
def reflected_padding() -> nn.Module:
    return between(nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), 4, 5)


@structure(f(3), IMAGE)
def pixel_shuffle() -> nn.Module:
    return between(nn.PixelShuffle(2), 12, 3)


@structure(f(3), IMAGE)
def pixel_unshuffle() -> nn.Module:
    return between(nn.PixelUnshuffle(2), 3, 12)


@structure(f(5), IMAGE)
def upsampling() -> nn.Module:
    return between(nn.Upsample(scale_factor=2, mode="bilinear"), 5, 5)


@structure(f(4, 6), IMAGE)
class UNet(nn.Module):
    """Down, up, and a concatenation with what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 2, 2)
        self.up, self.head = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(torch.cat([x, x + self.up(self.down(x).relu())], 1))


class ChannelShuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2)
        return x.reshape(n, c, h, w)


# The grouped convolution that follows reads units from both halves; which ones read alike.
@structure(f(2) + 2 * f(4) + 2 * f(3), IMAGE)
def channel_shuffle() -> nn.Module:
    middle = nn.Sequential(ChannelShuffle(2), nn.Conv2d(8, 6, 3, groups=2))
    return between(middle, 8, 6)


@structure(f(2) + 2 * f(4) + 2 * f(3), IMAGE)
def built_in_channel_shuffle() -> nn.Module:
    middle = nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(8, 6, 3, groups=2))
    return between(middle, 8, 6)


# Group i of the first grouped convolution sends one channel to every group of the second.
@structure(f(3, 3) + 3 * f(3) + 3 * f(2), IMAGE)
def channel_shuffle_between_grouped_convolutions() -> nn.Module:
    middle = nn.Sequential(
        nn.Conv2d(9, 9, 1, groups=3), ChannelShuffle(3), nn.Conv2d(9, 6, 3, groups=3)
    )
    return between(middle, 9, 6)


class SplitAndShuffle(nn.Module):
    """A ShuffleNet v2 unit: half of the channels pass, the other half is worked on."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        half = width // 2
        self.enter, self.leave = nn.Conv2d(half, hidden, 1), nn.Conv2d(hidden, half, 1)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        worked = self.leave(self.enter(worked).relu()).relu()
        return self.shuffle(torch.cat([kept, worked], 1))


# Of the 8 channels, 4 are worked on at once, 2 in the second block, 2 never: those that pass the
# first block become the even channels, half of which the second block keeps.
@structure(f(4, 2, 2) + f(5, 7) + f(2, 2) + f(4), IMAGE)
def cat_shuffle_chunk() -> nn.Module:
    return between(nn.Sequential(SplitAndShuffle(8, 5), SplitAndShuffle(8, 7)), 8, 8)


# With odd halves of 3: of the kept ones, two (even positions 0, 2) are kept again and one (4) is
# worked on; of the new ones, one (position 1) is kept and two (3, 5) are worked on.
@structure(f(3, 2) + f(5, 7) + f(2) + f(3), IMAGE)
def cat_shuffle_chunk_of_odd_halves() -> nn.Module:
    return between(nn.Sequential(SplitAndShuffle(6, 5), SplitAndShuffle(6, 7)), 6, 6)


class Blur(nn.Module):
    """The same small kernel on every channel: a constant that is uniform along the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = row[:, None] * row[None, :]
        self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])


@structure(f(5), IMAGE)
def blur_kernel() -> nn.Module:
    return between(Blur(5), 5, 5)


class PaddedShortcut(nn.Module):
    """Channels of zeros make a stream wider without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        shortcut = F.pad(x, (0, 0, 0, 0, 2, 2))
        return self.head((shortcut + self.norm(self.wide(x))).relu())


@structure(f(4, 4), IMAGE)
def padding_with_zeros() -> nn.Module:
    return PaddedShortcut()


class Patches(nn.Module):
    """Pictures cut with unfold, each patch a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.embed = nn.Conv2d(3, 4, 1), nn.Linear(16, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.stem(x), 2, stride=2)
        return self.head(self.embed(patches.transpose(1, 2)).relu())


@structure(f(4, 6), IMAGE)
def unfolded_patches() -> nn.Module:
    return Patches()


class PatchMerging(nn.Module):
    """Four neighbours side by side, as Swin does it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.merge = nn.Conv2d(3, 4, 1), PatchMerging(4)
        self.rest = Around(6, mlp(6, 5, 6))
        self.rest.enter = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.merge(self.stem(x).permute(0, 2, 3, 1)))


@structure(f(4, 8, 6, 5), IMAGE)
def patch_merging() -> nn.Module:
    return Merged()


class TokensAsChannels(nn.Module):
    """Convolutions of one pixel over tokens: the features, on the axis of pixels, are free."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 7), nn.Linear(7, 2)
        self.tokens = nn.Sequential(nn.Conv1d(3, 8, 1), nn.GELU(), nn.Conv1d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.tokens(x))


@structure(f(7, 8), floats(2, 3, 6))
def convolution_of_tokens() -> nn.Module:
    return TokensAsChannels()
