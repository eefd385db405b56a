"""Ways to hold and use weights: adapters, wrappers, dtypes, devices, transforms of a signal."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxrebasin
from tests.support.randomise import assert_group_is_sound
from tests.support.randomise import log10_factorial as f


def perceptron(**options: Any) -> nn.Sequential:
    """Three inputs, five and seven units, two outputs."""
    return nn.Sequential(
        nn.Linear(3, 5, **options), nn.GELU(), nn.Linear(5, 7, **options), nn.Tanh(),
        nn.Linear(7, 2, **options),
    )  # fmt: skip


PERCEPTRON = f(5, 7)
VECTORS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))


def order(model: nn.Module, inputs: Any) -> float:
    symmetry = fxrebasin.analyze(model, inputs)
    assert symmetry.unknown_operators == ()
    return symmetry.log10_order()


# Adapters -------------------------------------------------------------------------------------


def adapted(rank: int = 4) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=rank, target_modules=["0", "2"], init_lora_weights=False)
    return peft.get_peft_model(perceptron(), config).eval()


def test_the_ranks_of_adapters_are_classes() -> None:
    model = adapted()
    symmetry = assert_group_is_sound(model, (VECTORS,))
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(PERCEPTRON + f(4, 4))
    ranks = [c for c in symmetry.classes if c.size == 4]
    assert all("lora_" in name for c in ranks for name, _ in c.axes)


@pytest.mark.parametrize("unloaded", [False, True])
def test_merged_adapters_are_gone(unloaded: bool) -> None:
    model = adapted()
    if unloaded:
        model = model.merge_and_unload()
    else:
        model.merge_adapter()
    symmetry = assert_group_is_sound(model, (VECTORS,))
    assert symmetry.log10_order() == pytest.approx(PERCEPTRON)


# What a forward pass may go through ------------------------------------------------------------


class Through(nn.Module):
    """Units that go through a function on their way."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, width), nn.Linear(width, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.function(self.enter(x)))


class Cube(torch.autograd.Function):
    """A function that brings its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * grad


def recomputed(x: Tensor) -> Tensor:
    return checkpoint(torch.tanh, x, use_reentrant=False)


def recomputed_reentrant(x: Tensor) -> Tensor:
    return checkpoint(torch.tanh, x, use_reentrant=True)


def exchanged(x: Tensor) -> Tensor:
    """Halves change places, and each keeps its units apart from the other's."""
    first = x.index_select(-1, torch.tensor([3, 4, 5, 0, 1, 2]))
    return torch.cat([first[..., :3].relu(), first[..., 3:].tanh()], -1)


def gathered(x: Tensor) -> Tensor:
    """The same tokens of every unit."""
    index = torch.tensor([4, 0, 2]).view(1, 3, 1).expand(x.shape[0], 3, x.shape[2])
    return x.gather(1, index)


def spectrum_of_tokens(x: Tensor) -> Tensor:
    """Filters along time: one for all units."""
    return torch.fft.irfft(torch.fft.rfft(x, dim=1)[:, :2], n=6, dim=1)


def spectrum_of_units(x: Tensor) -> Tensor:
    return torch.fft.fft(x, dim=-1).abs()


def phases(x: Tensor) -> Tensor:
    """Complex numbers, unit by unit."""
    return torch.view_as_real(torch.polar(x.exp(), x) * 1j).sum(-1)


THROUGH = {
    "own gradient": (Cube.apply, f(6)),
    "checkpoint": (recomputed, f(6)),
    "reentrant checkpoint": (recomputed_reentrant, f(6)),
    "constant index": (exchanged, f(3, 3)),
    "constant gather": (gathered, f(6)),
    "spectrum of tokens": (spectrum_of_tokens, f(6)),
    "spectrum of units": (spectrum_of_units, 0.0),
    "complex numbers": (phases, f(6)),
    "einsum": (lambda x: torch.einsum("bti,bsi->bts", x, x), f(6)),
}


@pytest.mark.filterwarnings("ignore:.*[rR]equires_grad")
@pytest.mark.parametrize("name", THROUGH)
def test_units_go_through(name: str) -> None:
    function, expected = THROUGH[name]
    symmetry = assert_group_is_sound(Through(function), (SEQUENCES,))
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(expected)


class Averaged(nn.Module):
    """Runs a module with other weights than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = perceptron(), perceptron()

    def forward(self, x: Tensor) -> Tensor:
        one, two = (dict(module.named_parameters()) for module in (self.one, self.two))
        mean = {name: (one[name] + two[name]) / 2 for name in one}
        return torch.func.functional_call(self.one, mean, (x,))


def test_functional_call() -> None:
    symmetry = assert_group_is_sound(Averaged(), (VECTORS,))
    assert symmetry.log10_order() == pytest.approx(PERCEPTRON)
    assert {len(c.axes) for c in symmetry.classes} == {6}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_the_weight_norm_of_old() -> None:
    model = perceptron()
    nn.utils.weight_norm(model[2])
    symmetry = fxrebasin.analyze(model, VECTORS)
    assert symmetry.unknown_operators == ()
    assert symmetry.log10_order() == pytest.approx(PERCEPTRON)
    assert ("2.weight_v", 0) in {axis for c in symmetry.classes for axis in c.axes}


def test_the_spectral_norm_of_old() -> None:
    """Its vectors are buffers that move with the units, whether they are declared or not."""
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 5)), nn.ReLU(), nn.Linear(5, 2))
    assert order(model, VECTORS) == pytest.approx(f(5))
    symmetry = fxrebasin.analyze(model, VECTORS, state_buffers=["0.weight_u", "0.weight_v"])
    assert symmetry.log10_order() == pytest.approx(f(5))


# Wrappers -------------------------------------------------------------------------------------


def test_a_compiled_model_is_unwrapped() -> None:
    model = perceptron()
    compiled = torch.compile(model, backend="eager")
    found = fxrebasin.analyze(compiled, VECTORS)
    assert found.classes == fxrebasin.analyze(model, VECTORS).classes
    permuted = fxrebasin.apply(compiled, found.random(0), VECTORS)
    assert torch.allclose(permuted(VECTORS), model(VECTORS), atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, VECTORS)])
def test_a_scripted_model_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    scripted = make(perceptron())
    with pytest.raises(fxrebasin.errors.InputError, match=r"[sS]cript"):
        fxrebasin.analyze(scripted, VECTORS)


# Dtypes and devices ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    model = perceptron(dtype=dtype)
    symmetry = fxrebasin.analyze(model, VECTORS.to(dtype))
    assert symmetry.log10_order() == pytest.approx(PERCEPTRON)
    state = model.state_dict()
    element = symmetry.random(0)
    moved = element.permute_state_dict(state)
    assert {tensor.dtype for tensor in moved.values()} == {dtype}
    restored = element.inverse().permute_state_dict(moved)
    assert all(torch.equal(restored[name], state[name]) for name in state)


class Mixed(nn.Module):
    """Half precision inside, single precision around it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(3, 6), nn.LayerNorm(6)
        self.inner = perceptron_of(6).to(torch.bfloat16)
        self.leave = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        return self.leave(h + self.inner(self.norm(h).to(torch.bfloat16)).float())


def perceptron_of(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))


def test_mixed_dtypes() -> None:
    assert order(Mixed(), VECTORS) == pytest.approx(f(6, 8))


class StoredInEightBits(nn.Module):
    """Weights in eight bits with a scale for each unit, widened when they are used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        first, second = torch.randn(6, 3), torch.randn(2, 6)
        self.first = nn.Parameter(first.to(dtype), requires_grad=False)
        self.second = nn.Parameter(second.to(dtype), requires_grad=False)
        self.scale = nn.Parameter(torch.rand(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.first.to(x.dtype) * self.scale.to(x.dtype)).relu()
        return F.linear(hidden, self.second.to(x.dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits(dtype: torch.dtype) -> None:
    model = StoredInEightBits(dtype)
    symmetry = fxrebasin.analyze(model, VECTORS)
    assert symmetry.log10_order() == pytest.approx(f(6))
    other = copy.deepcopy(model)
    moved = symmetry.random(0).permute_state_dict(model.state_dict())
    assert moved["first"].dtype == dtype
    assert not torch.equal(moved["first"].float(), model.first.float())
    other.load_state_dict(moved)
    assert torch.allclose(other.double()(VECTORS.double()), model.double()(VECTORS.double()))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        return build()


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, bidirectional: bool) -> None:
        super().__init__()
        options: dict[str, Any] = {"num_layers": layers, "bidirectional": bidirectional}
        self.enter = nn.Linear(3, 4)
        self.cells = kind(4, 5, batch_first=True, **options)
        self.leave = nn.Linear(10 if bidirectional else 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.cells(self.enter(x))[0])


@pytest.mark.parametrize("empty", [on_meta, without_weights])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_models_without_data(
    kind: type[nn.RNNBase], empty: Callable[[Callable[[], nn.Module]], nn.Module]
) -> None:
    assert order(empty(perceptron), VECTORS) == pytest.approx(PERCEPTRON)
    model = empty(lambda: Recurrent(kind, 2, True))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert order(model, SEQUENCES) == pytest.approx(f(4) + 4 * f(5))
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(kind: type[nn.RNNBase], layers: int, bidirectional: bool) -> None:
    model = Recurrent(kind, layers, bidirectional)
    symmetry = assert_group_is_sound(model, (SEQUENCES,), seeds=(0,))
    expected = f(4) + layers * (2 if bidirectional else 1) * f(5)
    assert symmetry.log10_order() == pytest.approx(expected)
