"""Structures that people write, in a few lines each: the order on paper, and other batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import assert_group_is_sound
from tests.support.structures.table import f, mlp, shaped

Forward = Callable[..., Any]


class Net(nn.Module):
    """Parts by name, and what to do with them."""

    def __init__(self, run: Forward, **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if type(part) is Tensor:
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def draw(*shape: int, seed: int = 0) -> Callable[[int], Tensor]:
    """Normal values for a number of rows."""
    generator = torch.Generator()
    return lambda rows: torch.randn(rows, *shape, generator=generator.manual_seed(seed + rows))


def ids(count: int, *shape: int) -> Callable[[int], Tensor]:
    """Identifiers for a number of rows."""
    generator = torch.Generator()
    return lambda rows: torch.randint(count, (rows, *shape), generator=generator.manual_seed(rows))


VECTOR, OTHER, SEQUENCE, SIGNAL, IMAGE = (
    draw(3),
    draw(3, seed=9),
    draw(5, 3),
    draw(3, 9),
    draw(3, 8, 8),
)
L, C1, C2 = nn.Linear, nn.Conv1d, nn.Conv2d


@dataclass(frozen=True)
class Case:
    """A model, inputs by the number of rows, and the order on paper."""

    order: float
    build: Callable[[], nn.Module]
    inputs: Sequence[Callable[[int], Tensor]]


CASES: dict[str, Case] = {}


def case(
    order: float, *inputs: Callable[[int], Tensor]
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enter what makes a model under its name."""

    def enter(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        assert build.__name__ not in CASES
        CASES[build.__name__] = Case(order, build, inputs)
        return build

    return enter


# --- graphs and sets ----------------------------------------------------------------------------

ADJACENCY = torch.tensor(
    [[0.5, 0.5, 0, 0, 0], [0.2, 0.3, 0.5, 0, 0], [0, 0.4, 0.2, 0.4, 0]]
    + [[0, 0, 0.3, 0.3, 0.4]] * 2
)


@case(f(6, 5), SEQUENCE)
def graph_convolutions_over_an_adjacency_buffer() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.adjacency @ torch.relu(m.two(m.adjacency @ torch.relu(m.one(m.adjacency @ x))))
        return m.head(h)

    return Net(run, adjacency=ADJACENCY, one=L(3, 6), two=L(6, 5), head=L(5, 2))


@case(f(6, 5, 4), SEQUENCE)
def jumping_knowledge_by_concatenation() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        states = [torch.relu(m.adjacency @ m.layers[0](x))]
        for layer in list(m.layers)[1:]:
            states.append(torch.relu(m.adjacency @ layer(states[-1])))
        return m.head(torch.cat(states, -1))

    layers = nn.ModuleList([L(3, 6), L(6, 5), L(5, 4)])
    return Net(run, adjacency=ADJACENCY, layers=layers, head=L(15, 2))


@case(f(6), SEQUENCE)
def jumping_knowledge_by_maximum() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        one = torch.relu(m.adjacency @ m.one(x))
        two = torch.relu(m.adjacency @ m.two(one))
        return m.head(torch.stack([one, two], -1).amax(-1))

    return Net(run, adjacency=ADJACENCY, one=L(3, 6), two=L(6, 6), head=L(6, 2))


@case(f(6) + f(4), SEQUENCE)
def gated_attention_pooling() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.enter(x))
        weights = m.score(torch.tanh(m.v(h)) * torch.sigmoid(m.u(h))).softmax(1)
        return m.head((weights * h).sum(1))

    return Net(run, enter=L(3, 6), v=L(6, 4), u=L(6, 4), score=L(4, 1), head=L(6, 2))


@case(f(8, 6, 5), SEQUENCE)
def deep_sets() -> nn.Module:
    return Net(lambda m, x: m.rho(m.phi(x).sum(1)), phi=mlp(3, 8, 6), rho=mlp(6, 5, 2))


@case(f(5, 7), SEQUENCE)
def relation_network() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.embed(x)
        count = h.shape[1]
        left = h.unsqueeze(1).expand(-1, count, -1, -1)
        right = h.unsqueeze(2).expand(-1, -1, count, -1)
        return m.head(torch.relu(m.pair(torch.cat([left, right], -1))).sum((1, 2)))

    return Net(run, embed=L(3, 5), pair=L(10, 7), head=L(7, 2))


class Attend(nn.Module):
    """Queries attend to keys in one head, with a residual."""

    def __init__(self, width: int, source: int, key: int = 5, value: int = 4) -> None:
        super().__init__()
        self.q, self.k = L(width, key), L(source, key)
        self.v, self.o = L(source, value), L(value, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(y).transpose(-2, -1) / 2).softmax(-1)
        return x + self.o(weights @ self.v(y))


ATTEND = f(5, 4)


@case(3 * ATTEND + f(4, 7, 6, 8, 3), SEQUENCE)
def set_transformer() -> nn.Module:
    """Inducing points, and seeds that are averaged, are interchangeable too."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.enter(x)
        x = m.spread(x, m.gather(m.points.expand(len(x), -1, -1), x))
        return m.head(m.pool(m.seeds.expand(len(x), -1, -1), x).mean(1))

    return Net(
        run,
        **{"enter": L(3, 6), "points": shaped(4, 7), "gather": Attend(7, 6)},
        **{"spread": Attend(6, 7), "seeds": shaped(3, 8), "pool": Attend(8, 6), "head": L(8, 2)},
    )


@case(ATTEND + f(4, 6, 7), SEQUENCE)
def perceiver() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        z = m.read(m.latents.expand(len(x), -1, -1), x)
        return m.head((z + m.mlp(m.norm(z))).mean(1))

    parts = {"read": Attend(6, 3), "norm": nn.LayerNorm(6), "mlp": mlp(6, 7, 6), "head": L(6, 2)}
    return Net(run, latents=shaped(4, 6), **parts)


# --- mixing and gating --------------------------------------------------------------------------


@case(f(8, 5), VECTOR, draw(4))
def feature_wise_modulation() -> nn.Module:
    def run(m: Any, x: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = m.film(condition).chunk(2, -1)
        return m.head(torch.relu(m.enter(x) * (1 + gamma) + beta))

    return Net(run, enter=L(3, 8), film=mlp(4, 5, 16), head=L(8, 2))


@case(f(5, 8), VECTOR, draw(4))
def hypernetwork() -> nn.Module:
    """The weights of one layer are made of a condition."""

    def run(m: Any, x: Tensor, condition: Tensor) -> Tensor:
        weight = m.make(condition).view(-1, 3, 8)
        return m.head(torch.relu(torch.bmm(x[:, None], weight)[:, 0]))

    return Net(run, make=mlp(4, 5, 24), head=L(8, 2))


@case(f(2) + 2 * f(3, 4), SEQUENCE)
def gated_linear_attention() -> nn.Module:
    """Heads of a state [keys, values] that decays per key."""

    def run(m: Any, x: Tensor) -> Tensor:
        q, k, g = (part(x).unflatten(-1, (2, 3)) for part in (m.q, m.k, m.g))
        v = m.v(x).unflatten(-1, (2, 4))
        state, found = x.new_zeros(len(x), 2, 3, 4), []
        for t in range(x.shape[1]):
            state = torch.sigmoid(g[:, t, :, :, None]) * state
            state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
            found.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
        return m.out(torch.stack(found, 1).flatten(-2))

    return Net(run, q=L(3, 6), k=L(3, 6), g=L(3, 6), v=L(3, 8), out=L(8, 2))


@case(f(6, 4, 7), SEQUENCE)
def mlp_mixer() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.enter(x)
        x = x + m.tokens(m.one(x).transpose(1, 2)).transpose(1, 2)
        return m.head((x + m.channels(m.two(x))).mean(1))

    norms = {"one": nn.LayerNorm(6), "two": nn.LayerNorm(6)}
    parts = {"tokens": mlp(5, 4, 5), "channels": mlp(6, 7, 6), "head": L(6, 2)}
    return Net(run, enter=L(3, 6), **norms, **parts)


@case(f(6, 4), SEQUENCE)
def gated_mlp_over_positions() -> nn.Module:
    """Half of the channels is mixed over positions, and gates the other half."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.enter(x)
        u, v = F.gelu(m.up(x)).chunk(2, -1)
        v = m.spatial(m.norm(v).transpose(1, 2)).transpose(1, 2)
        return m.head(x + m.down(u * v))

    parts = {"up": L(6, 8), "norm": nn.LayerNorm(4), "spatial": L(5, 5), "down": L(4, 6)}
    return Net(run, enter=L(3, 6), **parts, head=L(6, 2))


@case(f(6), VECTOR)
def highway() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.enter(x)
        for change, gate in zip(m.changes, m.gates, strict=True):
            t = torch.sigmoid(gate(h))
            h = t * torch.relu(change(h)) + (1 - t) * h
        return m.head(h)

    two = [nn.ModuleList(L(6, 6) for _ in "ab") for _ in "ab"]
    return Net(run, enter=L(3, 6), changes=two[0], gates=two[1], head=L(6, 2))


@case(f(3, 8, 8, 8, 6, 6), VECTOR)
def dense_experts() -> nn.Module:
    """Experts in one tensor, all of them used, are interchangeable."""

    def run(m: Any, x: Tensor) -> Tensor:
        h = m.enter(x)
        inner = torch.relu(torch.einsum("bd,edf->bef", h, m.up))
        return m.head(torch.einsum("be,bef,efd->bd", m.gate(h).softmax(-1), inner, m.down))

    return Net(
        run, enter=L(3, 6), gate=L(6, 3), up=shaped(3, 6, 8), down=shaped(3, 8, 6), head=L(6, 2)
    )


@case(f(6) + 6 * f(2), VECTOR)
def maxout() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.enter(x).view(-1, 6, 2).amax(-1)), enter=L(3, 12), head=L(6, 2)
    )


@case(f(5), VECTOR)
def cross_stitch() -> nn.Module:
    """Two tasks whose units are mixed one by one are one class."""

    def run(m: Any, x: Tensor) -> Any:
        both = torch.stack([torch.relu(m.a(x)), torch.relu(m.b(x))])
        one, two = torch.einsum("st,tbn->sbn", m.mix, both)
        return m.head_a(one), m.head_b(two)

    return Net(run, a=L(3, 5), b=L(3, 5), mix=shaped(2, 2), head_a=L(5, 2), head_b=L(5, 2))


@case(f(3, 4, 6), VECTOR)
def mixture_of_softmaxes() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.tanh(m.enter(x))
        latent = torch.tanh(m.latent(h)).view(-1, 3, 4)
        return (m.prior(h).softmax(-1)[..., None] * m.decode(latent).softmax(-1)).sum(1)

    return Net(run, enter=L(3, 6), prior=L(6, 3), latent=L(6, 12), decode=L(4, 7))


@case(f(6), VECTOR)
def spline_layers() -> nn.Module:
    """Kolmogorov-Arnold: a spline on every edge, over knots in a buffer."""

    def run(m: Any, x: Tensor) -> Tensor:
        for base, spline in ((m.base1, m.spline1), (m.base2, m.spline2)):
            basis = torch.relu(x[..., None] - m.knots) ** 3
            x = F.silu(x) @ base + torch.einsum("bik,iok->bo", basis, spline)
        return x

    weights = {"base1": shaped(3, 6), "spline1": shaped(3, 6, 4)}
    weights |= {"base2": shaped(6, 2), "spline2": shaped(6, 2, 4)}
    return Net(run, knots=torch.linspace(-1, 1, 4), **weights)


@case(f(3) + 3 * f(4) + 2 * f(5), VECTOR)
def capsules_with_routing() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        capsules = torch.tanh(m.enter(x).view(-1, 3, 4))
        votes = torch.einsum("bid,ijdc->bijc", capsules, m.weight)
        agreement = votes.new_zeros(votes.shape[:3])
        for _ in range(2):
            found = (agreement.softmax(2)[..., None] * votes).sum(1)
            size = found.norm(dim=-1, keepdim=True)
            found = found * size / (1 + size**2)
            agreement = agreement + (votes * found[:, None]).sum(-1)
        return found.norm(dim=-1)

    return Net(run, enter=L(3, 12), weight=shaped(3, 2, 4, 5))


@case(f(5, 6), VECTOR)
def hopfield() -> nn.Module:
    """Stored patterns are interchangeable."""

    def run(m: Any, x: Tensor) -> Tensor:
        state = m.enter(x)
        for _ in range(2):
            state = (state @ m.patterns.t()).softmax(-1) @ m.patterns
        return m.head(state)

    return Net(run, enter=L(3, 6), patterns=shaped(5, 6), head=L(6, 2))


@case(f(6, 5, 7), VECTOR)
def vector_quantisation() -> nn.Module:
    """The codes are interchangeable."""

    def run(m: Any, x: Tensor) -> Tensor:
        z = m.encode(x)
        distance = (
            (z**2).sum(1, keepdim=True) + (m.codes.weight**2).sum(1) - 2 * z @ m.codes.weight.t()
        )
        found = m.codes(distance.argmin(1))
        return m.decode(z + (found - z).detach())

    return Net(run, encode=L(3, 6), codes=nn.Embedding(5, 6), decode=mlp(6, 7, 2))


# --- convolutions -------------------------------------------------------------------------------


@case(f(4, 6, 4, 5), IMAGE)
def unet_with_a_skip() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        skip = torch.relu(m.one(x))
        up = torch.relu(m.up(torch.relu(m.down(skip))))
        return m.head(torch.relu(m.join(torch.cat([skip, up], 1))))

    down = {"one": C2(3, 4, 3, padding=1), "down": C2(4, 6, 2, stride=2)}
    up = {"up": nn.ConvTranspose2d(6, 4, 2, stride=2), "join": C2(8, 5, 3, padding=1)}
    return Net(run, **down, **up, head=C2(5, 2, 1))


@case(f(4) + 2 * f(6, 3), IMAGE)
def densely_connected() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        states = [m.enter(x)]
        for layer in m.layers:
            states.append(layer(torch.cat(states, 1)))
        return m.head(torch.relu(m.norm(torch.cat(states, 1))).mean((2, 3)))

    def layer(width: int) -> nn.Module:
        bottleneck = [nn.BatchNorm2d(width), nn.ReLU(), C2(width, 6, 1, bias=False)]
        return nn.Sequential(*bottleneck, nn.BatchNorm2d(6), nn.ReLU(), C2(6, 3, 3, padding=1))

    layers = nn.ModuleList([layer(4), layer(7)])
    return Net(run, enter=C2(3, 4, 3), layers=layers, norm=nn.BatchNorm2d(10), head=L(10, 2))


@case(f(6, 4), IMAGE)
def squeeze_and_excite() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.enter(x))
        return m.head((h * torch.sigmoid(m.excite(h.mean((2, 3))))[..., None, None]).amax((2, 3)))

    return Net(run, enter=C2(3, 6, 3), excite=mlp(6, 4, 6), head=L(6, 2))


@case(f(6, 4), IMAGE)
def attention_over_channels_and_places() -> nn.Module:
    """CBAM: one network for both ways of pooling, then a map of mean and maximum."""

    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.enter(x))
        scale = torch.sigmoid(m.mlp(h.mean((2, 3))) + m.mlp(h.amax((2, 3))))
        h = h * scale[..., None, None]
        places = torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], 1)
        return m.head((h * torch.sigmoid(m.place(places))).mean((2, 3)))

    return Net(run, enter=C2(3, 6, 3), mlp=mlp(6, 4, 6), place=C2(2, 1, 3, padding=1), head=L(6, 2))


@case(f(6, 4, 5), IMAGE)
def non_local() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.enter(x)
        theta, phi, g = (part(h).flatten(2) for part in (m.theta, m.phi, m.g))
        weights = (theta.transpose(1, 2) @ phi).softmax(-1)
        found = (g @ weights.transpose(1, 2)).view(len(h), 5, *h.shape[2:])
        return m.head((h + m.out(found)).mean((2, 3)))

    parts = {"theta": C2(6, 4, 1), "phi": C2(6, 4, 1), "g": C2(6, 5, 1), "out": C2(5, 6, 1)}
    return Net(run, enter=C2(3, 6, 3, stride=2), **parts, head=L(6, 2))


@case(f(5, 6), SIGNAL)
def temporal_convolutions() -> nn.Module:
    """Causal by padding and cutting off."""

    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.one(x)[..., :-2])
        h = torch.relu(m.two(h)[..., :-4])
        return m.head(torch.relu(h + m.skip(x))[..., -1])

    parts = {"one": C1(3, 5, 3, padding=2), "two": C1(5, 6, 3, padding=4, dilation=2)}
    return Net(run, **parts, skip=C1(3, 6, 1), head=L(6, 2))


@case(f(6, 5, 5, 4, 3), SIGNAL)
def gated_dilated_convolutions() -> nn.Module:
    """WaveNet: filters and gates, a residual and a sum of skips."""

    def run(m: Any, x: Tensor) -> Tensor:
        h, skips = m.enter(x), []
        for k in range(2):
            gate, change = m.gated[k](F.pad(h, (2**k, 0))).chunk(2, 1)
            both = torch.sigmoid(gate) * torch.tanh(change)
            skips.append(m.skips[k](both))
            h = h + m.back[k](both)
        return m.out(torch.relu(torch.stack(skips).sum(0)))

    gated = nn.ModuleList(C1(6, 10, 2, dilation=2**k) for k in range(2))
    back, skips = (nn.ModuleList(C1(5, n, 1) for _ in "ab") for n in (6, 4))
    out = nn.Sequential(C1(4, 3, 1), nn.ReLU(), C1(3, 2, 1))
    return Net(run, enter=C1(3, 6, 1), gated=gated, back=back, skips=skips, out=out)


@case(f(4), IMAGE)
def sub_pixel_convolution() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(F.pixel_shuffle(m.enter(x), 2)))

    return Net(run, enter=C2(3, 16, 3), head=C2(4, 2, 1))


@case(f(5), draw(4, 3, 6, 6))
def convolutional_lstm() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 5, 6, 6)
        for frame in x.unbind(1):
            i, o, g, forget = m.gates(torch.cat([frame, h], 1)).chunk(4, 1)
            c = torch.sigmoid(forget) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return m.head(h.mean((2, 3)))

    return Net(run, gates=C2(8, 20, 3, padding=1), head=L(5, 2))


# --- recurrence ---------------------------------------------------------------------------------


@case(f(6, 8, 5), SEQUENCE, ids(4, 3))
def decoder_loop_with_attention() -> nn.Module:
    def run(m: Any, x: Tensor, tokens: Tensor) -> Tensor:
        memory = torch.tanh(m.encode(x))
        h = c = x.new_zeros(len(x), 8)
        found = []
        for token in m.embed(tokens).unbind(1):
            weights = (memory @ m.query(h)[:, :, None]).softmax(1)
            context = (weights * memory).sum(1)
            h, c = m.cell(torch.cat([token, context], -1), (h, c))
            found.append(m.head(h))
        return torch.stack(found, 1)

    parts = {"query": L(8, 6), "cell": nn.LSTMCell(11, 8), "head": L(8, 2)}
    return Net(run, encode=L(3, 6), embed=nn.Embedding(4, 5), **parts)


@case(f(7), SEQUENCE)
def gru_cell_loop() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 7)
        for step in x.unbind(1):
            h = m.cell(step, h)
        return m.head(h)

    return Net(run, cell=nn.GRUCell(3, 7), head=L(7, 2))


@case(f(6), SEQUENCE)
def antisymmetric_recurrence() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        for step in x.unbind(1):
            h = h + 0.1 * torch.tanh(h @ (m.square - m.square.t()) + m.enter(step))
        return m.head(h)

    return Net(run, enter=L(3, 6), square=shaped(6, 6), head=L(6, 2))


@case(f(6), SEQUENCE)
def damped_antisymmetric_recurrence() -> nn.Module:
    """An identity matrix is subtracted: both of its axes move together."""

    def run(m: Any, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 6)
        weight = m.square - m.square.t() - 0.1 * torch.eye(6)
        for step in x.unbind(1):
            h = h + 0.1 * torch.tanh(h @ weight + m.enter(step))
        return m.head(h)

    return Net(run, enter=L(3, 6), square=shaped(6, 6), head=L(6, 2))


@case(f(6, 8), VECTOR)
def runge_kutta_steps() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.enter(x)
        for _ in range(2):
            k1 = m.field(h)
            k2 = m.field(h + 0.05 * k1)
            k3 = m.field(h + 0.05 * k2)
            h = h + 0.1 / 6 * (k1 + 2 * k2 + 2 * k3 + m.field(h + 0.1 * k3))
        return m.head(h)

    return Net(run, enter=L(3, 6), field=mlp(6, 8, 6), head=L(6, 2))


# --- shared weights and pairs -------------------------------------------------------------------


@case(f(8, 3, 2), VECTOR)
def low_rank_adapters() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.one(x) + 2 * (x @ m.a1.t() @ m.b1.t()))
        return m.two(h) + 2 * (h @ m.a2.t() @ m.b2.t())

    adapters = {"a1": shaped(3, 3), "b1": shaped(8, 3), "a2": shaped(2, 8), "b2": shaped(2, 2)}
    return Net(run, one=L(3, 8), two=L(8, 2), **adapters)


@case(f(8, 5), VECTOR)
def tied_autoencoder() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        code = torch.tanh(F.linear(torch.relu(F.linear(x, m.w1, m.b1)), m.w2))
        return F.linear(torch.relu(F.linear(code, m.w2.t(), m.c2)), m.w1.t())

    return Net(run, w1=shaped(8, 3), b1=shaped(8), w2=shaped(5, 8), c2=shaped(8))


@case(f(8, 6), VECTOR, OTHER)
def siamese_pairs_in_one_batch() -> nn.Module:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        one, two = m.encode(torch.cat([x, y])).chunk(2)
        return m.head((one - two).abs())

    return Net(run, encode=mlp(3, 8, 6), head=L(6, 2))


@case(f(8, 5, 6), VECTOR, ids(10, 4))
def two_towers_with_a_scale() -> nn.Module:
    def run(m: Any, image: Tensor, tokens: Tensor) -> Tensor:
        one = F.normalize(m.image(image), dim=-1)
        two = F.normalize(m.text(m.tokens(tokens).mean(1)), dim=-1)
        return m.scale.exp() * one @ two.t()

    towers = {"image": mlp(3, 8, 6), "tokens": nn.Embedding(10, 5), "text": L(5, 6)}
    return Net(run, **towers, scale=shaped())


@case(f(6), VECTOR, OTHER)
def low_rank_bilinear_pooling() -> nn.Module:
    return Net(lambda m, x, y: m.head(m.u(x) * m.v(y)), u=L(3, 6), v=L(3, 6), head=L(6, 2))


@case(f(8), VECTOR)
def fourier_features() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        angles = x @ m.frequencies
        return m.mlp(torch.cat([angles.sin(), angles.cos()], -1))

    frequencies = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return Net(run, frequencies=frequencies, mlp=mlp(8, 8, 2))


@pytest.mark.parametrize("name", CASES)
def test_the_order_is_the_one_on_paper_and_holds_for_other_batches(name: str) -> None:
    torch.manual_seed(0)
    given, model = CASES[name], CASES[name].build().eval()
    symmetry = fxrebasin.analyze(model, tuple(draw(2) for draw in given.inputs))
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(given.order, abs=1e-9)
    for rows in (5, 2):
        inputs = tuple(draw(rows) for draw in given.inputs)
        assert_group_is_sound(model, inputs, symmetry=symmetry)
