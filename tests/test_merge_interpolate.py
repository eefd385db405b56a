"""Models on a path: what is interpolated and how, ends, ties, dtypes, files, trained curves."""

from __future__ import annotations

import copy
import gc
import itertools
import random
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError, CheckpointError, InputError
from fxrebasin.merge import barrier, interpolate
from fxrebasin.merge.curves import bezier_weights, spline_weights
from fxrebasin.merge.states import weighted_mean
from fxrebasin.models.checks import StateMismatchError
from fxrebasin.storage.checkpoint import save_state_dict
from tests.support.small_nets import Attention, Residual, unsettled


class Everything(nn.Module):
    """State of all kinds: odd names, a tie, float and other buffers, a mask, half, complex."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.cls = nn.Parameter(torch.randn(4))
        self.small = nn.Parameter(torch.randn(4).half())
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("level", torch.rand(4))
        self.register_buffer("order", torch.randperm(4))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("scratch", torch.rand(2), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(ids)) * self.cls + self.small.float())


def everything(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = unsettled(Everything(), seed)
    model.mask.copy_(torch.full((3, 3), -torch.inf).triu(1))
    model.norm.num_batches_tracked.fill_(seed)
    return model


def assert_same(model: nn.Module, other: nn.Module) -> None:
    states = model.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name]), name


def test_every_float_is_interpolated_and_the_rest_is_that_of_the_nearer_end() -> None:
    a, b = everything(1), everything(2)
    before = [copy.deepcopy(m.state_dict()) for m in (a, b)]
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    models = list(interpolate(a, b, steps=5))
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (np.random.get_state()[1] == draws[1]).all()  # noqa: NPY002
    assert random.getstate() == draws[2]
    assert len(models) == 5
    assert_same(models[0], a)
    assert_same(models[-1], b)
    for t, model in zip((0.25, 0.5, 0.75), models[1:-1], strict=True):
        assert type(model) is Everything
        assert model.head.weight is model.embed.weight
        assert torch.equal(model.scratch, a.scratch)
        assert model.scratch.data_ptr() != a.scratch.data_ptr()
        for name, tensor in model.state_dict().items():
            one, two = before[0][name], before[1][name]
            if name == "mask":
                assert torch.equal(tensor, one)
            elif one.is_floating_point() or one.is_complex():
                wide = torch.promote_types(one.dtype, torch.float64)
                mixed = ((1 - t) * one.to(wide) + t * two.to(wide)).to(one.dtype)
                torch.testing.assert_close(tensor, mixed, rtol=1.3e-6, atol=1e-7)
            else:
                assert torch.equal(tensor, one if t < 0.5 else two), name
    for model, state in zip((a, b), before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_half_precision_is_rounded_once() -> None:
    a, b = (torch.randn(1000, generator=torch.Generator().manual_seed(k)).half() for k in (1, 2))
    exact = (0.7 * a.double() + 0.3 * b.double()).float().half()
    found = weighted_mean([a, b], [0.7, 0.3], a)
    assert found.dtype == torch.float16
    assert (found != exact).sum() <= 1  # float32 and float64 may round differently at a tie


def test_modes_flags_and_gradients_are_those_of_the_first_model() -> None:
    a, b = everything(1).train(), everything(2)
    a.norm.eval()
    a.cls.requires_grad_(False)
    a.head.weight.grad = torch.ones_like(a.head.weight)
    middle = list(interpolate(a, b, steps=3))[1]
    assert middle.training
    assert not middle.norm.training
    assert not middle.cls.requires_grad
    assert middle.phase.requires_grad
    assert middle.head.weight.grad is None
    assert a.training
    assert not a.norm.training


def test_a_graph_module_is_interpolated_too() -> None:
    a, b = (unsettled(Residual(), seed) for seed in (1, 2))
    x = torch.randn(2, 3, 8, 8)
    g = fxrebasin.transform(b, a, x)
    for model in (list(interpolate(g, a, steps=3))[1], list(interpolate(a, g, steps=3))[1]):
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                half = (a.state_dict()[name] + g.state_dict()[name]) / 2
                torch.testing.assert_close(tensor, half)
        assert model(x).shape == (2, 5)
        assert not model.training


def test_only_one_model_is_alive_at_a_time() -> None:
    a, b = everything(1), everything(2)
    seen: list[weakref.ref[nn.Module]] = []
    for model in interpolate(a, b, steps=4):
        seen.append(weakref.ref(model))
        del model
        gc.collect()
        assert all(ref() is None for ref in seen)


@pytest.mark.parametrize("path", ["linear", "quadratic", "cubic", "spline"])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_splines_pass_through_every_model(path: str, count: int) -> None:
    models = [everything(seed) for seed in range(count)]
    knots = [k / (count - 1) for k in range(count)]
    for model, found in zip(models, interpolate(*models, path=path, positions=knots), strict=True):
        assert_same(found, model)
    weights = spline_weights(path, count)
    for t in torch.linspace(0, 1, 23).tolist():
        assert sum(weights(t)) == pytest.approx(1, abs=1e-12)


def test_splines_are_the_ones_of_their_names() -> None:
    x = np.linspace(0, 1, 5)
    polynomial = {"linear": lambda t: 3 * t, "quadratic": lambda t: t**2, "cubic": lambda t: t**3}
    for (path, f), t in itertools.product(polynomial.items(), (0.1, 0.33, 0.8)):
        assert np.dot(spline_weights(path, 5)(t), f(x)) == pytest.approx(f(t), abs=1e-12)
    weights = spline_weights("spline", 5)
    step = 1e-4
    bend = [weights(0.0), weights(step), weights(2 * step)]
    assert abs(np.dot(np.array([1, -2, 1]) @ np.array(bend), x**2) / step**2) < 1e-2
    assert abs(np.dot(weights(0.3), x**3) - 0.3**3) > 1e-4
    assert bezier_weights(3)(0.25) == pytest.approx([0.5625, 0.375, 0.0625])


def test_a_piecewise_line_between_three_models() -> None:
    models = [everything(seed) for seed in range(3)]
    found = list(interpolate(*models, positions=[0.25, 0.75, 0.6]))
    for model, (k, t) in zip(found, [(0, 0.5), (1, 0.5), (1, 0.2)], strict=True):
        expected = torch.lerp(models[k].cls, models[k + 1].cls, t)
        torch.testing.assert_close(model.cls, expected)
    counts = [int(model.norm.num_batches_tracked) for model in found]
    assert counts == [1, 2, 1]


def test_other_models_may_be_states_and_files(tmp_path) -> None:
    a, b = everything(1), everything(2)
    save_state_dict(tmp_path / "b.safetensors", b.state_dict())
    torch.save({"state_dict": b.state_dict()}, tmp_path / "b.pt")
    expected = list(interpolate(a, b, steps=3))[1]
    for form in (b.state_dict(), tmp_path / "b.safetensors", str(tmp_path / "b.pt")):
        found = list(interpolate(a, form, steps=3))[1]
        assert_same(found, expected)
        assert found.head.weight is found.embed.weight


def test_models_are_saved_as_they_are_handed_out(tmp_path) -> None:
    a, b = everything(1), everything(2)
    folder = tmp_path / "new" / "line"
    steps = interpolate(a, b, steps=3, save_dir=folder)
    assert not folder.exists()
    names = ["000_t0.0000.safetensors", "001_t0.5000.safetensors", "002_t1.0000.safetensors"]
    for k, model in enumerate(steps):
        assert sorted(path.name for path in folder.iterdir()) == names[: k + 1]
        stored = load_file(folder / names[k])
        assert all(torch.equal(stored[n], t) for n, t in model.state_dict().items())
    (folder / names[1]).write_bytes(b"mine")
    with pytest.raises(InputError, match="exist already"):
        interpolate(a, b, steps=3, save_dir=folder)
    assert (folder / names[1]).read_bytes() == b"mine"
    list(interpolate(a, b, steps=3, save_dir=folder, overwrite=True))
    assert (folder / names[1]).read_bytes() != b"mine"


def test_what_cannot_be_interpolated_is_refused_before_any_work(tmp_path) -> None:
    a, b = everything(1), everything(2)
    with pytest.raises(InputError, match="no path 'zigzag'; there are: linear, quadratic"):
        interpolate(a, b, path="zigzag")
    for steps in (1, 0, 2.0, True):
        with pytest.raises(InputError, match="steps is"):
            interpolate(a, b, steps=steps)
    with pytest.raises(InputError, match=r"positions hold 1\.5"):
        interpolate(a, b, positions=[0, 1.5])
    with pytest.raises(InputError, match=r"positions are \['x'\]"):
        interpolate(a, b, positions=["x"])
    with pytest.raises(InputError, match="positions are empty"):
        interpolate(a, b, positions=[])
    with pytest.raises(InputError, match="takes no loader"):
        interpolate(a, b, loader=[1])
    with pytest.raises(InputError, match="needs loader and loss; pass loader="):
        interpolate(a, b, path="bezier")
    with pytest.raises(InputError, match="between two models; 3 were passed"):
        interpolate(a, b, b, path="bezier", loader=[1], loss=F.cross_entropy)
    with pytest.raises(InputError, match="bends is 0"):
        interpolate(a, b, path="bezier", loader=[1], loss=F.cross_entropy, bends=0)
    with pytest.raises(StateMismatchError) as told:
        interpolate(a, Attention())
    assert "qkv.weight" in [difference.name for difference in told.value.differences]
    with pytest.raises(CheckpointError, match="does not exist"):
        interpolate(a, tmp_path / "nothing.pt")
    bad = everything(1)
    bad.cls.data[0] = torch.nan
    with pytest.raises(InputError, match=r"the first model cannot be used.*not finite"):
        interpolate(bad, b)
    with pytest.raises(InputError, match=r"the second model cannot be used.*not finite"):
        interpolate(a, bad)


def test_a_tie_that_the_other_model_lacks_is_refused() -> None:
    a, b = everything(1), everything(2)
    b.head.weight = nn.Parameter(torch.randn(7, 4))
    with pytest.raises(ArchitectureMismatchError, match="one tensor in the model, and differ"):
        interpolate(a, b)
    list(interpolate(b, a, steps=2))  # without ties both tensors have their own values


def curved(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    )


@pytest.fixture(scope="module")
def rings():
    """Two rings, and two networks that tell them apart."""
    torch.manual_seed(0)
    labels = torch.arange(200) % 2
    angle = torch.rand(200) * 2 * torch.pi
    radius = 1 + labels + 0.1 * torch.randn(200)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    models = [curved(1), curved(2)]
    for model in models:
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            optimiser.zero_grad()
            F.cross_entropy(model(points), labels).backward()
            optimiser.step()
    return [(points[:100], labels[:100]), (points[100:], labels[100:])], models


def test_a_bezier_curve_is_trained_to_a_lower_barrier(rings) -> None:
    loader, (a, b) = rings
    before = [copy.deepcopy(m.state_dict()) for m in (a, b)]
    draws = torch.get_rng_state()

    def evaluate(model: nn.Module) -> float:
        return sum(float(F.cross_entropy(model(x), y)) for x, y in loader) / len(loader)

    straight = barrier(a, b, evaluate)
    options = {"path": "bezier", "loader": loader, "loss": F.cross_entropy, "epochs": 60}
    curve = barrier(a, b, evaluate, **options, learning_rate=1e-2)
    assert straight.barrier > 0.2
    assert curve.barrier < 0.3 * straight.barrier
    two = list(interpolate(a, b, steps=5, **options, bends=2))
    again = list(interpolate(a, b, steps=5, **options, bends=2))
    other = list(interpolate(a, b, steps=5, **options, bends=2, seed=1))
    for one, same, different in zip(two[1:-1], again[1:-1], other[1:-1], strict=True):
        assert_same(one, same)
        assert not torch.equal(one[0].weight, different[0].weight)
    assert_same(two[0], a)
    assert_same(two[-1], b)
    assert torch.equal(torch.get_rng_state(), draws)
    for model, state in zip((a, b), before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_a_trained_curve_keeps_ties_frozen_tensors_and_buffers_on_the_line() -> None:
    a, b = everything(1), everything(2)
    a.cls.requires_grad_(False)
    ids = torch.arange(7)
    options = {"path": "bezier", "loader": [(ids, ids)], "loss": F.cross_entropy, "epochs": 3}
    middle = list(interpolate(a, b, steps=3, **options, learning_rate=1e-1))[1]
    line = list(interpolate(a, b, steps=3))[1]
    assert middle.head.weight is middle.embed.weight
    assert not torch.allclose(middle.embed.weight, line.embed.weight, atol=1e-2)
    for name in ("cls", "level", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(middle.state_dict()[name], line.state_dict()[name])


def test_ctrl_c_in_training_gives_the_curve_so_far(rings) -> None:
    loader, (a, b) = rings

    class Interrupting:
        def __iter__(self):
            yield loader[0]
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="the curve is used as far as it is"):
        models = list(
            interpolate(a, b, steps=3, path="bezier", loader=Interrupting(), loss=F.cross_entropy)
        )
    assert_same(models[0], a)
    assert not torch.equal(models[1][0].weight, list(interpolate(a, b, steps=3))[1][0].weight)


@pytest.mark.parametrize("path", ["quadratic", "cubic", "spline"])
def test_curves_on_which_variances_would_be_below_0_are_refused(path: str, tmp_path: Path) -> None:
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(4)]
    for model, variance in zip(models, (0.01, 5.0, 0.01, 0.01), strict=True):
        nn.init.constant_(model[1].running_var, variance)
    given = {"path": path, "steps": 10, "save_dir": tmp_path / "way"}
    with pytest.raises(InputError, match=r"1\.running_var would be below 0"):
        list(interpolate(*models, **given))
    assert not (tmp_path / "way").exists()
    for model in interpolate(*models, path="linear", steps=10):
        assert (model[1].running_var > 0).all()
    for model, variance in zip(models, (1.0, 1.5, 2.0, 1.2), strict=True):
        nn.init.constant_(model[1].running_var, variance)
    assert len(list(interpolate(*models, **given))) == 10
