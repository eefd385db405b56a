"""Units in groups, several times in one tensor, or on two axes of one tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.structures.table import IMAGE, VECTOR, f, mlp, shaped, structure


class Middle(nn.Module):
    """A function of hidden units between two linear layers."""

    def __init__(self, width: int, out: int, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.middle = nn.Linear(3, width), nn.Linear(out, 2), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.middle(self.enter(x)))


@structure(f(4) + 4 * f(3), VECTOR)
def maxout() -> nn.Module:
    return Middle(12, 4, lambda h: h.view(-1, 4, 3).amax(-1))


@structure(f(3) + 3 * f(4), VECTOR)
def maxout_the_other_way_round() -> nn.Module:
    return Middle(12, 3, lambda h: h.view(-1, 4, 3).amax(1))


@structure(f(4, 3), VECTOR)
def rows_and_columns() -> nn.Module:
    return Middle(
        12, 7, lambda h: torch.cat([h.view(-1, 4, 3).amax(1), h.view(-1, 4, 3).amax(2)], 1)
    )


@structure(f(4) + 4 * f(3), VECTOR)
def softmax_in_groups() -> nn.Module:
    return Middle(12, 12, lambda h: h.view(-1, 4, 3).softmax(-1).flatten(1))


@structure(f(2) + 2 * (f(3) + 3 * f(2)), VECTOR)
def groups_in_groups() -> nn.Module:
    return Middle(12, 2, lambda h: h.view(-1, 2, 3, 2).amax(-1).logsumexp(-1))


# Threes and fours that overlap: cells of 3, 1, 2, 2, 1, 3 units. (All of it can be turned round
# as well, last unit first, which doubles the group; units are not alike in that.)
@structure(2 * f(3, 2), VECTOR)
def groups_that_overlap() -> nn.Module:
    return Middle(
        12, 7, lambda h: torch.cat([h.view(-1, 4, 3).amax(2), h.view(-1, 3, 4).amax(2)], 1)
    )


def convolved(norm: nn.Module) -> nn.Module:
    class TwoParts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
            self.norm, self.head = norm, nn.LazyConv2d(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.left(x).relu(), self.right(x).tanh()], 1)
            return self.head(self.norm(x).relu())

    model = TwoParts()
    model(torch.zeros(1, 3, 4, 4))
    return model


# Groups of 4: the middle one has two channels of each part.
@structure(2 * f(4, 2), IMAGE)
def group_norm_across_a_concatenation() -> nn.Module:
    return convolved(nn.GroupNorm(3, 12))


@structure(2 * f(4, 2) + 3 * f(5), IMAGE)
def grouped_convolution_across_a_concatenation() -> nn.Module:
    return convolved(nn.Conv2d(12, 15, 1, groups=3))


@structure(f(6), VECTOR)
def units_twice() -> nn.Module:
    return Middle(6, 12, lambda h: torch.cat([h.relu(), (-h).relu()], 1))


@structure(f(6), VECTOR)
def units_twice_in_reverse() -> nn.Module:
    return Middle(6, 12, lambda h: torch.cat([h.relu(), h.flip(1)], 1))


@structure(f(6), VECTOR)
def units_twice_interleaved() -> nn.Module:
    return Middle(6, 12, lambda h: torch.stack([h.relu(), h.tanh()], -1).flatten(1))


@structure(f(6), VECTOR)
def repeated_units() -> nn.Module:
    return Middle(6, 18, lambda h: h.repeat(1, 3))


@structure(f(6), VECTOR)
def outer_product_with_itself() -> nn.Module:
    return Middle(6, 36, lambda h: (h[:, :, None] * h[:, None, :].relu()).flatten(1))


@structure(0.0, VECTOR)
def units_that_meet_their_neighbours() -> nn.Module:
    return Middle(6, 6, lambda h: h * h.roll(1, 1))


@structure(0.0, VECTOR)
def units_that_meet_their_mirror_image() -> nn.Module:
    return Middle(6, 6, lambda h: h * h.flip(1))


@structure(0.0, VECTOR)
def windows_over_units() -> nn.Module:
    return Middle(6, 5, lambda h: h.unfold(1, 2, 1).amax(-1))


@structure(f(5), VECTOR)
def one_unit_is_a_gate() -> nn.Module:
    return Middle(6, 5, lambda h: h[:, :1].sigmoid() * h[:, 1:])


class Diagonal(nn.Module):
    """The diagonal of a square matrix scales units; its other elements are never read."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.enter, self.leave, self.square = nn.Linear(3, 6), nn.Linear(6, 2), shaped(6, 6)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        scaled = h * self.square.diagonal()
        return self.leave(scaled + h.relu() @ self.square if self.whole else scaled)


@structure(f(6), VECTOR)
def diagonal_of_a_parameter() -> nn.Module:
    return Diagonal(whole=False)


@structure(f(6), VECTOR)
def diagonal_and_all_of_a_parameter() -> nn.Module:
    return Diagonal(whole=True)


class Slimmable(nn.Module):
    """A layer of which a narrow version is used as well: its first units are told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.leave = nn.Linear(3, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.leave(self.wide(x).relu())
        narrow = F.linear(x, self.wide.weight[:4], self.wide.bias[:4]).relu()
        return wide + F.linear(narrow, self.leave.weight[:, :4])


@structure(f(4, 5), VECTOR)
def a_part_of_a_layer() -> nn.Module:
    return Slimmable()


class Ghost(nn.Module):
    """Cheap copies of channels, of which the last is not needed."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Conv2d(3, 4, 1)
        self.cheap = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x).relu()
        return self.head(torch.cat([x, self.cheap(x).relu()], 1)[:, :7])


@structure(f(3), IMAGE)
def ghost_module() -> nn.Module:
    return Ghost()


class Res2Net(nn.Module):
    """Chunks of channels, each worked on with the result of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)
        self.steps = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.enter(x).relu().split(4, 1)
        second = self.steps[0](second + first)
        third = self.steps[1](third + second.relu())
        return self.leave(torch.cat([first, second, third], 1))


@structure(f(4, 4, 4), IMAGE)
def chunks_one_after_the_other() -> nn.Module:
    return Res2Net()


class SplitAttention(nn.Module):
    """ResNeSt: two versions of every channel, weighted against each other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 10, 3, groups=1), nn.Conv2d(5, 2, 1)
        self.down, self.up = nn.Linear(5, 4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        both = x.view(x.shape[0], 2, 5, *x.shape[2:])
        weights = self.up(self.down(both.sum(1).mean((2, 3))).relu())
        weights = weights.view(-1, 2, 5).softmax(1)
        return self.leave((both * weights[..., None, None]).sum(1))


# The two versions of a channel can be exchanged for each channel by itself.
@structure(f(5) + 5 * f(2) + f(4), IMAGE)
def split_attention() -> nn.Module:
    return SplitAttention()


class SpatialAttention(nn.Module):
    """CBAM: mean and maximum over channels, and a map that scales them all."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.map = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return self.leave(x * self.map(maps).sigmoid())


@structure(f(6), IMAGE)
def spatial_attention() -> nn.Module:
    return SpatialAttention()


class GramMatrix(nn.Module):
    """All products of two channels, as a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(3, 4, 1), mlp(16, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).flatten(2)
        return self.head((x @ x.transpose(1, 2)).flatten(1))


@structure(f(4, 5), IMAGE)
def gram_matrix() -> nn.Module:
    return GramMatrix()


class GlobalResponse(nn.Module):
    """ConvNeXt v2: channels compete by their norms."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.gamma, self.beta = shaped(1, 6, 1, 1), shaped(1, 6, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        norms = x.norm(p=2, dim=(2, 3), keepdim=True)
        scale = norms / (norms.mean(1, keepdim=True) + 1e-6)
        return self.leave(self.gamma * (x * scale) + self.beta + x)


@structure(f(6), IMAGE)
def global_response_norm() -> nn.Module:
    return GlobalResponse()


class ChannelNeighbours(nn.Module):
    """A convolution over channels gives them an order."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.mix = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        scale = self.mix(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return self.leave(x * scale[:, :, None, None])


@structure(0.0, IMAGE)
def convolution_over_channels() -> nn.Module:
    return ChannelNeighbours()


class Codebook(nn.Module):
    """The nearest entry of a table replaces a vector, whatever its number."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.codes = nn.Linear(3, 6), nn.Linear(6, 2), nn.Embedding(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        distance = (h[:, None] - self.codes.weight).pow(2).sum(-1)
        return self.leave(h + self.codes(distance.argmin(-1)))


@structure(f(6, 4), VECTOR)
def codebook() -> nn.Module:
    return Codebook()


class CosineHead(nn.Module):
    """Directions of rows and inputs, not their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.rows, self.mix = mlp(3, 5, 6), shaped(4, 6), shaped(3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        stacked = torch.stack([h, h.relu(), h.tanh()])
        h = (self.mix.softmax(0)[:, None, None] * stacked).sum(0)
        return F.linear(F.normalize(h), F.normalize(self.rows))


@structure(f(5, 6), VECTOR)
def cosine_head() -> nn.Module:
    return CosineHead()
