"""Parameters and buffers: shared, made of others, written to, unused, stored together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.support.structures.table import (
    IMAGE,
    SEQUENCE,
    VECTOR,
    Around,
    f,
    ids,
    mlp,
    shaped,
    structure,
)


@structure(f(6, 8), VECTOR)
def weight_norm() -> nn.Module:
    inner = mlp(6, 8, 6)
    for layer in (inner[0], inner[2]):
        parametrizations.weight_norm(layer)
    return Around(6, inner)


@structure(f(5, 7), IMAGE)
def weight_norm_over_inputs() -> nn.Module:
    """The norm is taken for every input channel."""
    conv = parametrizations.weight_norm(nn.Conv2d(5, 7, 3), dim=1)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), conv, nn.ReLU(), nn.Conv2d(7, 2, 1))


@structure(f(6, 8), VECTOR)
def weight_norm_of_the_whole() -> nn.Module:
    inner = mlp(6, 8, 6)
    parametrizations.weight_norm(inner[0], dim=None)
    return Around(6, inner)


class Standardised(nn.Conv2d):
    """Weight standardisation: zero mean and unit variance for each filter."""

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / (std + 1e-6)
        return F.conv2d(x, weight, self.bias, padding=1)


@structure(f(3) + 3 * f(2) + f(7), IMAGE)
def weight_standardisation() -> nn.Module:
    return nn.Sequential(
        Standardised(3, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), Standardised(6, 7, 3), nn.ReLU(),
        Standardised(7, 2, 1),
    )  # fmt: skip


# Power iteration's vectors lie along both axes of the weight, and move with them ...
@structure(f(5, 6), VECTOR)
def spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 5)), mlp(5, 6, 2))


# ... also where they are declared to be state.
@structure(
    f(5, 6),
    VECTOR,
    state_buffers=("0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v"),
)
def spectral_norm_with_state_buffers() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 5)), mlp(5, 6, 2))


class Doubled(nn.Module):
    """A weight that is two parameters added up."""

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return one + two

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight / 3, 2 * weight / 3


@structure(f(6, 8), VECTOR)
def weight_of_two_parameters() -> nn.Module:
    inner = mlp(6, 8, 6)
    parametrize.register_parametrization(inner[0], "weight", Doubled())
    return Around(6, inner)


class Symmetric(nn.Module):
    """Only the upper triangle of a matrix is used: its axes have an order."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


@structure(0.0, VECTOR)
def symmetric_parametrization() -> nn.Module:
    net = Around(6, nn.Linear(6, 6))
    parametrize.register_parametrization(net.inner[0], "weight", Symmetric())
    return net


class LowRank(nn.Module):
    """A weight and a product of two thin ones, as LoRA adds them."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 6), shaped(4, 6), shaped(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)


@structure(f(6, 4), VECTOR)
def low_rank_update() -> nn.Module:
    return Around(6, LowRank())


class HyperNetwork(nn.Module):
    """A weight that a network computes: its axes are factors of that network's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.weights = nn.Linear(3, 5), nn.Linear(3, 20)
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x).view(-1, 4, 5)
        return self.leave((weights @ self.enter(x).unsqueeze(-1)).squeeze(-1).relu())


@structure(f(5, 4), VECTOR)
def weights_from_a_network() -> nn.Module:
    return HyperNetwork()


@structure(f(6, 8), VECTOR)
def a_layer_used_twice() -> nn.Module:
    block = mlp(6, 8, 6)
    return Around(6, block, block)


class SharedWeights(nn.Module):
    """One tensor is the weight of two layers, the other way round in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(6, 4), shaped(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encoder(x).relu(), self.encoder.weight.t(), self.bias)


@structure(f(6, 4), VECTOR)
def autoencoder_with_one_weight() -> nn.Module:
    return Around(6, SharedWeights())


class OneBiasForAll(nn.Module):
    """A bias that two layers share ties their units."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(12, 2)
        self.two.bias = self.one.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.one(x).relu(), self.two(x).tanh()], 1))


@structure(f(6), VECTOR)
def a_bias_shared_by_two_layers() -> nn.Module:
    return OneBiasForAll()


class Recursive(nn.Module):
    """A square matrix that is applied several times."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step, self.leave = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(3):
            x = self.step(x).tanh()
        return self.leave(x)


@structure(f(6), VECTOR)
def a_step_that_is_repeated() -> nn.Module:
    return Recursive()


class Unused(nn.Module):
    """An auxiliary head that only training reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux, self.head = mlp(3, 6, 5), nn.Linear(5, 4), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


@structure(f(6, 5), VECTOR)
def unused_parameters() -> nn.Module:
    return Unused()


class WithTable(nn.Module):
    """Hidden units multiplied by a table of constants."""

    def __init__(self, table: Tensor, *, persistent: bool = True) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("table", table, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave((self.enter(x) * self.table).relu() + torch.arange(3.0)[1])


@structure(f(6), VECTOR)
def a_buffer_that_scales_units() -> nn.Module:
    return WithTable(torch.arange(6.0))


@structure(0.0, VECTOR)
def a_buffer_of_integers_that_varies() -> nn.Module:
    return WithTable(torch.arange(6))


@structure(0.0, VECTOR)
def a_buffer_that_no_state_dict_holds() -> nn.Module:
    return WithTable(torch.arange(6.0), persistent=False)


@structure(f(6), VECTOR)
def a_buffer_that_is_uniform() -> nn.Module:
    return WithTable(torch.full((6,), 0.5))


@structure(f(6), VECTOR, state_buffers=("table",))
def a_buffer_that_is_state() -> nn.Module:
    return WithTable(torch.arange(6.0))


class InPlace(nn.Module):
    """Everything that can be done in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.leave = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.one(x), inplace=True)
        h += self.two(x).sigmoid_()
        h.mul_(self.scale).clamp_(max=2.0)
        return self.leave(h)


@structure(f(6), VECTOR)
def in_place_operators() -> nn.Module:
    return InPlace()


class WriteIntoParts(nn.Module):
    """Two layers write the two parts of a tensor of zeros; a third adds to a view of it."""

    def __init__(self, zeros: str) -> None:
        super().__init__()
        self.zeros = zeros
        self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 5)
        self.more, self.leave = nn.Linear(3, 5), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.zeros == "new":
            h = x.new_zeros(x.shape[0], 9)
        elif self.zeros == "empty":
            h = torch.empty(x.shape[0], 9, dtype=x.dtype)
        else:
            h = torch.zeros(x.shape[0], 9, dtype=x.dtype)
        h[:, :4] = self.left(x).relu()
        h[:, 4:] = self.right(x).sigmoid()
        view = h[:, 4:]
        view += self.more(x).tanh()
        return self.leave(h)


@structure(f(4, 5), VECTOR)
def writes_into_new_zeros() -> nn.Module:
    return WriteIntoParts("new")


@structure(f(4, 5), VECTOR)
def writes_into_zeros() -> nn.Module:
    return WriteIntoParts("zeros")


@structure(f(4, 5), VECTOR)
def writes_into_an_empty_tensor() -> nn.Module:
    return WriteIntoParts("empty")


class WriteThroughViews(nn.Module):
    """A tensor with a history, written to through a view of a view, and read through another."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.part = nn.Linear(3, 8), nn.Linear(3, 4)
        self.leave = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        whole = h.view(h.shape[0], 1, 8)
        upper = h.t()[4:]
        upper.mul_(self.part(x).t())
        return self.leave(whole.squeeze(1))


@structure(f(4, 4), VECTOR)
def writes_through_views() -> nn.Module:
    return WriteThroughViews()


class WritePositions(nn.Module):
    """Half of the positions get something else: channels stay one class."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.other, self.leave = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h[:, ::2] = self.other(x[:, ::2]).relu()
        h[:, 1].zero_()
        return self.leave(h)


@structure(f(6), SEQUENCE)
def writes_into_positions() -> nn.Module:
    return WritePositions()


class TemporalShift(nn.Module):
    """Some channels see the past, some the future: three kinds of units."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        out = torch.zeros_like(h)
        out[:, :-1, :2] = h[:, 1:, :2]
        out[:, 1:, 2:5] = h[:, :-1, 2:5]
        out[:, :, 5:] = h[:, :, 5:]
        return self.leave(out.relu())


@structure(f(2, 3, 4), SEQUENCE)
def temporal_shift() -> nn.Module:
    return TemporalShift()


class Experts(nn.Module):
    """A mixture whose experts lie in one tensor, all of them weighted by a router."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.router = nn.Linear(6, 3)
        self.up, self.bias, self.down = shaped(3, 6, 5), shaped(3, 1, 5), shaped(3, 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        if self.how == "bmm":
            hidden = (x.expand(3, -1, -1).bmm(self.up) + self.bias).relu()
            return (hidden.bmm(self.down) * gates.t()[:, :, None]).sum(0)
        hidden = (torch.einsum("bd,edf->ebf", x, self.up) + self.bias).relu()
        return torch.einsum("ebf,efd,be->bd", hidden, self.down, gates)


@structure(f(6, 3) + 3 * f(5), VECTOR)
def experts_by_bmm() -> nn.Module:
    return Around(6, Experts("bmm"))


@structure(f(6, 3) + 3 * f(5), VECTOR)
def experts_by_einsum() -> nn.Module:
    return Around(6, Experts("einsum"))


class ChosenExperts(nn.Module):
    """A mixture in which every expert is read by its index, which pins the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.gate_up, self.down = shaped(3, 6, 10), shaped(3, 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        out = torch.zeros_like(x)
        for index in range(3):
            gate, up = (x @ self.gate_up[index]).chunk(2, dim=-1)
            out = out + gates[:, index, None] * ((F.silu(gate) * up) @ self.down[index])
        return out


@structure(f(6) + 3 * f(5), VECTOR)
def experts_by_index() -> nn.Module:
    return Around(6, ChosenExperts())


class TopExperts(nn.Module):
    """The two best experts of each token, gathered from one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.up, self.down = shaped(3, 6, 5), shaped(3, 5, 6)

    def forward(self, x: Tensor) -> Tensor:
        gates, chosen = self.router(x).topk(2)
        hidden = torch.einsum("bd,bkdf->bkf", x, self.up[chosen]).relu()
        out = torch.einsum("bkf,bkfd->bkd", hidden, self.down[chosen])
        return (out * gates.softmax(-1)[..., None]).sum(1)


@structure(f(6, 3) + 3 * f(5), VECTOR)
def experts_by_top_k() -> nn.Module:
    return Around(6, TopExperts())


@structure(f(6), ids(9, 4, 3))
def bag_of_embeddings() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 6, mode="sum"), nn.Tanh(), nn.Linear(6, 2))
