"""Models that take derivatives in `forward`: scores, energies, equations, divergences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from tests.support.randomise import assert_group_is_sound
from tests.support.structures.table import f, shaped

Run = Callable[[Any, Tensor], Tensor]


class Energy(nn.Module):
    """A number for each row, by two hidden layers, and what is made of its derivatives."""

    def __init__(self, run: Run, between: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 5), nn.Linear(5, 1)
        self.run, self.between = run, between

    def energy(self, x: Tensor) -> Tensor:
        energy: Tensor = self.c(self.between(self.b(self.between(self.a(x)))))
        return energy

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def by_rows(derivative: Any) -> Run:
    return lambda m, x: vmap(derivative(lambda row: m.energy(row).sum()))(x)


def along(m: Any, x: Tensor) -> Tensor:
    return jvp(m.energy, (x,), (torch.ones_like(x),))[1]


def back(m: Any, x: Tensor) -> Tensor:
    found, pull = vjp(m.energy, x)
    return pull(torch.ones_like(found))[0]


def force(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(m.energy(x).sum(), x)[0]


def divergence(m: Any, x: Tensor) -> Tensor:
    """Of the gradient, by a second one for each input."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = torch.autograd.grad(m.energy(x).sum(), x, create_graph=True)[0]
        parts = [torch.autograd.grad(slope[:, i].sum(), x, retain_graph=True)[0] for i in range(3)]
        return sum(part[:, i] for i, part in enumerate(parts))


def adapted(m: Any, x: Tensor) -> Tensor:
    """One step on weights of the model itself, as meta-learning takes it."""
    weights = dict(m.b.named_parameters())

    def loss(trial: dict[str, Tensor]) -> Tensor:
        return m.c(torch.tanh(functional_call(m.b, trial, (torch.tanh(m.a(x)),)))).square().sum()

    slopes = grad(loss)(weights)
    return loss({name: item - 0.1 * slopes[name] for name, item in weights.items()})


RUNS: dict[str, Run] = {
    "vmap of grad": by_rows(grad),
    "vmap of jacrev": by_rows(jacrev),
    "vmap of jacfwd": by_rows(jacfwd),
    "vmap of hessian": by_rows(hessian),
    "jvp": along,
    "vjp": back,
    "autograd.grad": force,
    "a divergence": divergence,
    "a step on weights": adapted,
}

BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        item.__name__: item
        for item in (
            *(F.elu, F.gelu, F.hardswish, F.hardtanh, F.leaky_relu, F.logsigmoid, F.mish, F.relu),
            *(F.silu, F.softplus, F.softshrink, torch.sigmoid),
        )
    },
    "softmax": lambda h: h.softmax(-1),
    "log_softmax": lambda h: h.log_softmax(-1),
    "layer_norm": lambda h: F.layer_norm(h, h.shape[-1:]),
    "sums with a part": lambda h: h.exp() * h.mean(-1, keepdim=True).abs() + h.sin(),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", RUNS)
def test_units_of_a_model_that_is_differentiated_are_free(name: str) -> None:
    symmetry = assert_group_is_sound(Energy(RUNS[name]), (torch.randn(4, 3),))
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(f(8, 5))


CURVED = [name for name in BETWEEN if name not in ("hardtanh", "leaky_relu", "relu", "softshrink")]


@pytest.mark.parametrize(
    ("name", "run"),
    [*((name, force) for name in BETWEEN), *((name, divergence) for name in CURVED)],
)
def test_formulas_of_derivatives_leave_units_free(name: str, run: Run) -> None:
    symmetry = assert_group_is_sound(Energy(run, BETWEEN[name]), (torch.randn(4, 3),))
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(f(8, 5))


def slope_of(units: Callable[[Any, Tensor], Tensor], made: Callable[[Tensor], Tensor]) -> Run:
    """The gradient of what is made of hidden units, on these, and an output of it."""

    def run(m: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            h = units(m, x).detach().requires_grad_()
            slope = torch.autograd.grad(made(h).sum(), h)[0]
        return m.b(slope)

    return run


PARTS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    # units without a gradient are left where they are
    "a slice": (f(4), lambda h: h[:, 4:].exp()),
    "one of them": (0.0, lambda h: h[:, 3].exp()),
    "every other one": (f(4), lambda h: h[:, ::2].exp()),
    "all of them": (f(8), lambda h: h[:, :].exp()),
    "weights by place": (0.0, lambda h: h.square() * torch.arange(1.0, 9.0)),
    "running sums": (0.0, lambda h: h.cumsum(-1).square()),
    "with those turned round": (0.0, lambda h: h * h.flip(-1).exp()),
}


@pytest.mark.parametrize("name", PARTS)
def test_gradients_of_parts_tell_units_apart(name: str) -> None:
    order, made = PARTS[name]
    model = Energy(slope_of(lambda m, x: m.a(x).relu(), made))
    symmetry = assert_group_is_sound(model, (torch.randn(4, 3),))
    if name == "with those turned round":  # pairs may change places, all together or each in itself
        assert symmetry.log10_order() < f(8)
    else:
        assert symmetry.log10_order() == pytest.approx(order)


class Image(nn.Module):
    """The gradient of a number for each image."""

    def __init__(self, between: nn.Module, groups: int = 1, transposed: bool = False) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.a, self.between = kind(3, 8, 3, padding=1), between
        self.b, self.c = nn.Conv2d(8, 8, 1, groups=groups), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = self.between(torch.tanh(self.a(x)))
            energy = self.c(torch.tanh(self.b(h)).mean((2, 3))).sum()
            return torch.autograd.grad(energy, x)[0]


class Affine(nn.Module):
    """Channels are scaled and shifted between two other layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.scale = nn.Sequential(*layers), shaped(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layers(x)


IMAGES: dict[str, tuple[float, Callable[[], nn.Module]]] = {
    "a convolution": (f(8, 8), lambda: Image(Affine())),
    "transposed": (f(8, 8), lambda: Image(Affine(), transposed=True)),
    "groups": (2 * f(4) + f(4) * 2 + f(2), lambda: Image(Affine(), groups=2)),
    "batch norm": (f(8, 8), lambda: Image(Affine(nn.BatchNorm2d(8)))),
    "group norm": (f(2) + 2 * f(4) + f(8), lambda: Image(Affine(nn.GroupNorm(2, 8)))),
    "instance norm": (f(8, 8), lambda: Image(Affine(nn.InstanceNorm2d(8)))),
    "average pooling": (f(8, 8), lambda: Image(Affine(nn.AvgPool2d(2)))),
    "maximum pooling": (f(8, 8), lambda: Image(Affine(nn.MaxPool2d(2)))),
    "adaptive pooling": (f(8, 8), lambda: Image(Affine(nn.AdaptiveAvgPool2d(3)))),
    "larger": (f(8, 8), lambda: Image(Affine(nn.Upsample(scale_factor=2)))),
    "larger, between": (f(8, 8), lambda: Image(Affine(nn.Upsample(8, mode="bilinear")))),
    "shuffled pixels": (
        f(2, 4, 8, 8),
        lambda: Image(Affine(nn.PixelShuffle(2), nn.Conv2d(2, 8, 1))),
    ),
    "reflections": (f(8, 8), lambda: Image(Affine(nn.ReflectionPad2d(1)))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_gradients_of_images(name: str) -> None:
    order, build = IMAGES[name]
    symmetry = assert_group_is_sound(build().eval(), (torch.randn(2, 3, 6, 6),))
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(order), symmetry.log10_order()
