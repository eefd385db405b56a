"""Buffers that belong to units move with them; constants and what no state dict holds do not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fxrebasin
from fxrebasin.models.torchvision_shim import ensure_torchvision
from fxrebasin.permutation import Permutation
from tests.support.randomise import log10_factorial as f

ensure_torchvision()

import torchvision  # noqa: E402 - after the shim
from torchvision.ops import FrozenBatchNorm2d  # noqa: E402

VECTORS = torch.randn(5, 4, generator=torch.Generator().manual_seed(7))
SEQUENCES = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(7))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


# Models ---------------------------------------------------------------------------------------


class Buffers(nn.Module):
    """Four buffers of a frozen normalisation, and what a subclass does with them."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))


class ThroughBatchNorm(Buffers):
    """As in detectron2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class ByHand(Buffers):
    """As in DETR."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.reshape(shape) * (self.running_var.reshape(shape) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(shape) - self.running_mean.reshape(shape) * scale)


def convolutions(norm: Callable[[int], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def instance_norm(affine: bool) -> Callable[[int], nn.Module]:
    return lambda width: nn.InstanceNorm2d(width, affine=affine, track_running_stats=True)


def chain(wrap: Callable[[nn.Module], nn.Module], *layers: nn.Module) -> nn.Module:
    """Layers, each wrapped, with a nonlinearity between them."""
    found = [part for layer in layers for part in (wrap(layer), nn.Tanh())]
    return nn.Sequential(*found[:-1])


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    return layer


def identity_pruned(layer: nn.Module) -> nn.Module:
    prune.identity(layer, "weight")
    return layer


def linears() -> tuple[nn.Module, ...]:
    return nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)


def filters() -> tuple[nn.Module, ...]:
    return nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1)


class With(nn.Module):
    """Units with buffers on their way, and what is done with these."""

    def __init__(
        self,
        function: Callable[[Any, Tensor], Tensor],
        *,
        persistent: bool = True,
        inner: int = 8,
        leaving: int = 8,
        **buffers: Tensor,
    ) -> None:
        super().__init__()
        self.function = function
        self.enter, self.inner = nn.Linear(4, inner), nn.Linear(inner, inner)
        self.leave = nn.Linear(leaving, 2)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def scaled(m: Any, x: Tensor) -> Tensor:
    return m.leave((m.enter(x) * m.scale).relu())


def scaled_twice(m: Any, x: Tensor) -> Tensor:
    return m.leave((m.inner((m.enter(x) * m.scale).relu()) * m.scale).relu())


def normalised(m: Any, x: Tensor) -> Tensor:
    return m.leave(F.batch_norm(m.enter(x), m.mean, m.var).relu())


def heads(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two heads of four dimensions each, used as both queries and keys."""
    q = m.enter(x).view(*x.shape[:2], 2, 4).transpose(1, 2)
    return q, m.inner(m.enter(x)).view(*x.shape[:2], 2, 4).transpose(1, 2)


def joined(m: Any, h: Tensor) -> Tensor:
    return m.leave(h.transpose(1, 2).flatten(2))


def rotary(m: Any, x: Tensor) -> Tensor:
    q, k = heads(m, x)
    angles = torch.outer(torch.arange(x.shape[1], dtype=x.dtype), m.frequencies)
    angles = torch.cat([angles, angles], -1)

    def turned(h: Tensor) -> Tensor:
        return h * angles.cos() + torch.cat([-h[..., 2:], h[..., :2]], -1) * angles.sin()

    return joined(m, (turned(q) @ turned(k).mT).softmax(-1) @ k)


def biased_heads(m: Any, x: Tensor) -> Tensor:
    q, k = heads(m, x)
    at = torch.arange(x.shape[1])
    distance = (at[:, None] - at[None, :]).abs()
    return joined(m, (q @ q.mT - m.slopes * distance).softmax(-1) @ k)


def folded(m: Any, x: Tensor) -> Tensor:
    """Statistics that a normalisation reads, and that are read by themselves as well."""
    scale = (m.var + 1e-5).rsqrt()
    w = m.enter.weight * scale[:, None]
    return m.leave((F.linear(x, w) + normalised_only(m, x)).relu())


def normalised_only(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(m.enter(x), m.mean, m.var)


def looks(m: Any, x: Tensor) -> Tensor:
    h = m.enter(x)
    return m.leave((h * m.scale if bool((m.scale > 0).all()) else h).relu())


ONES, RISING = torch.ones(8), torch.linspace(0.5, 2.0, 8)
ORDER = torch.tensor([3, 1, 2, 0, 4, 7, 6, 5])
BLUR = torch.tensor([1.0, 2.0, 1.0]).repeat(8, 1, 1)

KINDS: dict[str, tuple[Callable[[], nn.Module], Tensor, float]] = {
    "torchvision's frozen norm": (lambda: convolutions(FrozenBatchNorm2d), IMAGES, f(8)),
    "detectron2's frozen norm": (lambda: convolutions(ThroughBatchNorm), IMAGES, f(8)),
    "DETR's frozen norm": (lambda: convolutions(ByHand), IMAGES, f(8)),
    "instance norm": (lambda: convolutions(instance_norm(False)), IMAGES, f(8)),
    "instance norm, affine": (lambda: convolutions(instance_norm(True)), IMAGES, f(8)),
    "instance norm, one image": (lambda: convolutions(instance_norm(True)), IMAGES[0], f(8)),
    "spectral norm": (lambda: chain(parametrizations.spectral_norm, *linears()), VECTORS, f(8, 6)),
    "spectral norm of filters": (
        lambda: chain(parametrizations.spectral_norm, *filters()),
        IMAGES,
        f(8, 6),
    ),
    "spectral norm of old": (
        lambda: chain(nn.utils.spectral_norm, *filters()),
        IMAGES,
        f(8, 6),
    ),
    "masks": (lambda: chain(pruned, *linears()), VECTORS, f(8, 6)),
    "masks of filters": (lambda: chain(pruned, *filters()), IMAGES, f(8, 6)),
    "masks of ones": (lambda: chain(identity_pruned, *linears()), VECTORS, f(8, 6)),
    "scale": (lambda: With(scaled, scale=RISING), VECTORS, f(8)),
    "scale of two classes": (lambda: With(scaled_twice, scale=RISING), VECTORS, f(8)),
    "uniform scale of two classes": (lambda: With(scaled_twice, scale=ONES), VECTORS, f(8, 8)),
    "halves of a gate": (
        lambda: With(
            lambda m, x: m.leave(F.glu(m.enter(x) * m.scale)),
            inner=16,
            scale=torch.linspace(1, 3, 16),
        ),
        VECTORS,
        f(8),
    ),
    "both signs": (
        lambda: With(
            lambda m, x: m.leave(torch.cat([m.enter(x) * m.scale, -m.enter(x)], -1).relu()),
            leaving=16,
            scale=RISING,
        ),
        VECTORS,
        f(8),
    ),
    "folded by hand": (lambda: With(folded, mean=RISING, var=RISING), VECTORS, f(8)),
    # Constants.
    "positions": (
        lambda: With(
            lambda m, x: m.leave((m.enter(x) + m.table[:, : x.shape[1]]).relu()),
            table=torch.linspace(0, 1, 72).view(1, 9, 8),
        ),
        SEQUENCES,
        0.0,
    ),
    "rotary frequencies": (
        lambda: With(rotary, frequencies=torch.tensor([1.0, 0.1])),
        SEQUENCES,
        f(2),
    ),
    "slopes of heads": (
        lambda: With(biased_heads, slopes=torch.tensor([0.5, 0.25]).view(2, 1, 1)),
        SEQUENCES,
        4 * f(4),
    ),
    "a class of buffers alone": (
        lambda: With(lambda m, x: scaled(m, x) * (m.u * m.v).sum(), scale=ONES, u=RISING, v=RISING),
        VECTORS,
        f(8),
    ),
    "an index of floats": (
        lambda: With(lambda m, x: m.leave(m.enter(x)[:, m.order.long()].relu()), order=1.0 * ORDER),
        VECTORS,
        f(8),
    ),
    "an index": (
        lambda: With(lambda m, x: m.leave(m.enter(x)[:, m.order].relu()), order=ORDER),
        VECTORS,
        f(8),
    ),
    "a scale that is looked at": (lambda: With(looks, scale=RISING), VECTORS, 0.0),
    "a uniform kernel": (
        lambda: With(
            lambda m, x: m.leave(F.conv1d(m.enter(x).mT, m.kernel, groups=8).mT.relu()),
            kernel=BLUR,
        ),
        SEQUENCES,
        f(8),
    ),
    "kernels": (
        lambda: With(
            lambda m, x: m.leave(F.conv1d(m.enter(x).mT, m.kernel, groups=8).mT.relu()),
            kernel=BLUR * RISING[:, None, None],
        ),
        SEQUENCES,
        0.0,
    ),
    "statistics that no state dict holds": (
        lambda: With(normalised, persistent=False, mean=RISING, var=RISING),
        VECTORS,
        0.0,
    ),
    "uniform statistics that no state dict holds": (
        lambda: With(normalised, persistent=False, mean=0 * ONES, var=ONES),
        VECTORS,
        f(8),
    ),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(1)
    return KINDS[name][0]().double().eval()


@torch.no_grad()
def draw_state(model: nn.Module) -> nn.Module:
    """Frozen norms, statistics and power iteration's vectors, each unit another."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in model.named_buffers():
        if tensor.is_floating_point() and "mask" not in name:
            drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn + 0.5)
    return model


def outputs_after(model: nn.Module, x: Tensor, p: Permutation) -> tuple[Tensor, Tensor]:
    """What a model computes before and after its state dict is permuted and loaded."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model(x)
    model.load_state_dict(p.permute_state_dict(state))
    after = model(x)
    model.load_state_dict(state)
    return before.detach(), after.detach()


def assert_holds(model: nn.Module, x: Tensor, symmetry: fxrebasin.Symmetry) -> None:
    for seed in range(3):
        before, after = outputs_after(model, x, symmetry.random(seed))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
        assert float((before - before.mean()).abs().max()) > 1e-3  # an output that says something


# Recognition ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
@pytest.mark.parametrize("name", KINDS)
def test_buffers_are_what_their_use_shows(name: str) -> None:
    model, x, expected = build(name), KINDS[name][1].double(), KINDS[name][2]
    symmetry = fxrebasin.analyze(model, x)
    assert symmetry.log10_order() == pytest.approx(expected)
    assert_holds(model, x, symmetry)
    moved = {buffer for buffer, _ in model.named_buffers()} & symmetry.layout.keys()
    assert moved.isdisjoint(symmetry.relies_on)


FROM_THE_START = [name for name in KINDS if "norm" in name and "spectral" not in name]


@pytest.mark.parametrize("name", FROM_THE_START)
def test_a_symmetry_found_before_training_holds_after_it(name: str) -> None:
    """Frozen norms are uniform when they are new, and are state all the same."""
    x = KINDS[name][1].double()
    symmetry = fxrebasin.analyze(build(name), x)
    trained = draw_state(build(name))
    assert symmetry.relies_on == {}
    assert fxrebasin.analyze(trained, x).classes == symmetry.classes
    assert_holds(trained, x, symmetry)


def test_a_frozen_resnet_has_the_order_of_one_that_is_not() -> None:
    order = 3 * f(64, 128, 256, 512)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    model = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d).double().eval()
    for module in (model, draw_state(model)):
        symmetry = fxrebasin.analyze(module, image)
        assert symmetry.log10_order() == pytest.approx(order)
        assert symmetry.notes == ()
    before, after = outputs_after(model, image, symmetry.random(0))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["spectral norm", "masks", "instance norm", "DETR's frozen norm"])
def test_transform_brings_buffers_back_with_their_units(name: str) -> None:
    a = draw_state(build(name))
    x = KINDS[name][1].double()
    symmetry = fxrebasin.analyze(a, x)
    b = draw_state(build(name))
    b.load_state_dict(symmetry.random(5).permute_state_dict(a.state_dict()))
    g = fxrebasin.transform(b, a, x)
    assert g.meta["fxrebasin"].equivalence.passed
    for key, tensor in g.state_dict().items():
        assert torch.equal(tensor, a.state_dict()[key]), key


NOTED = {
    "positions": r"values of table pin .* state_buffers=",
    "rotary frequencies": r"values of frequencies pin .* state_buffers=",
    "slopes of heads": r"values of slopes pin .* state_buffers=",
    "kernels": r"values of kernel pin .* state_buffers=",
    "statistics that no state dict holds": r"values of mean, var pin .* no state dict holds",
}


@pytest.mark.parametrize("name", KINDS)
def test_notes_say_what_holds_units_in_place(name: str) -> None:
    notes = fxrebasin.analyze(build(name), KINDS[name][1].double()).notes
    pattern = NOTED.get(name)
    if name == "a scale that is looked at":
        assert any("scale" in note for note in notes)
    elif pattern is None:
        assert not any("state_buffers" in note or "state dict" in note for note in notes)
    else:
        (note,) = notes
        assert re.search(pattern, note)


def test_a_declared_buffer_that_no_state_dict_holds_is_a_constant() -> None:
    model = build("statistics that no state dict holds")
    symmetry = fxrebasin.analyze(model, VECTORS.double(), state_buffers=["mean", "var"])
    assert symmetry.classes == ()
    assert "cannot be permuted" in symmetry.notes[0]


# Memory that is shared ------------------------------------------------------------------------


def shared(change: Callable[[nn.Sequential], None]) -> nn.Sequential:
    torch.manual_seed(0)
    linear = [nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)]
    model = nn.Sequential(*[p for layer in linear for p in (layer, nn.Tanh())][:-1]).double()
    change(model)
    return model.eval()


def _set(model: nn.Sequential, one: Tensor, two: Tensor) -> None:
    for index, tensor in ((2, one), (4, two)):
        layer = model[index]
        assert isinstance(layer, nn.Linear)
        layer.weight = nn.Parameter(tensor)


def _data() -> Tensor:
    return torch.randn(16, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 3


def _overlapping() -> tuple[Tensor, Tensor]:
    flat = _data().view(-1)
    return flat[:64].view(8, 8), flat[30:94].view(8, 8)


SHARED: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], float]] = {
    "one view": (lambda: (lambda t: (t, t))(_data()[:8]), f(8)),
    "transposed": (lambda: (lambda t: (t, t.t()))(_data()[:8]), 0.0),
    "overlapping": (_overlapping, 0.0),
    "rows": (lambda: (lambda t: (t[:8], t[8:]))(_data()), f(8, 8, 8)),
    "columns": (lambda: (lambda t: (t[:, :8], t[:, 8:]))(_data().view(8, 16)), f(8, 8, 8)),
    "every other row": (lambda: (lambda t: (t[::2], t[1::2]))(_data()), f(8, 8, 8)),
}


@pytest.mark.parametrize("name", SHARED)
def test_parameters_over_one_memory(name: str) -> None:
    """They overwrite each other when a state dict is loaded, so that they are one tensor."""
    views, expected = SHARED[name]
    model = shared(lambda m: _set(m, *views()))
    x = VECTORS.double()
    symmetry = fxrebasin.analyze(model, x)
    assert symmetry.log10_order() == pytest.approx(expected)
    assert_holds(model, x, symmetry)
    assert any("share memory" in note for note in symmetry.notes) == (expected == 0.0)
    g = fxrebasin.apply(model, symmetry.random(3), x)
    torch.testing.assert_close(g(x), model(x), rtol=1e-9, atol=1e-9)
