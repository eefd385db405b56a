"""Recalibration and REPAIR are exact: the figures after them are those that were asked for."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import weight_norm

import fxrebasin
from fxrebasin.demo.networks import DigitsMLP, DigitsResNet
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.merge import interpolate, recalibrate, repair
from fxrebasin.merge.moments import Moments
from tests.support.small_nets import Attention, Residual, SelfAttention, unsettled

Draw = Callable[[int], torch.Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int) -> Draw:
    return lambda n: torch.randn(n, *shape, generator=generator(), dtype=torch.float64)


def tokens(n: int) -> torch.Tensor:
    return torch.randint(20, (n, 7), generator=generator())


class Siamese(nn.Module):
    """A trunk that runs twice with BatchNorm, and one more BatchNorm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.more = nn.Linear(5, 4)
        self.last = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = (torch.relu(self.norm(self.trunk(part))) for part in (x[:, :6], x[:, 6:]))
        return self.last(self.more(left * right))


class Recurrent(nn.Module):
    """A layer that gets what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + 0.3 * torch.tanh(self.norm(self.cell(x)))
        return self.head(x)


class Odd(nn.Module):
    """Layers without bias or affine, transposed and grouped ones, and a norm of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, bias=False)
        self.up = nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False)
        self.bare = nn.BatchNorm2d(8, affine=False)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.batch = nn.BatchNorm2d(8, track_running_stats=False, affine=False)
        self.flat = nn.ConvTranspose1d(8, 5, 2, groups=1)
        self.shared = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bare(self.up(self.stem(x).relu()).relu()).relu()
        x = self.batch(self.grouped(x).relu()).flatten(2)
        y = self.flat(x[:, :, :9]).movedim(1, 2)
        return torch.cat([self.shared(y), self.shared(y.relu() * 2)], 1)


class Volumes(nn.Module):
    """Three axes, and one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 2)
        self.norm = nn.BatchNorm3d(4)
        self.up = nn.ConvTranspose3d(4, 6, 2, groups=2)
        self.line = nn.Conv1d(6, 3, 2, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(self.up(self.norm(self.conv(x)).relu()).relu().flatten(2))


NETS: dict[str, tuple[Callable[[], nn.Module], Draw]] = {
    "mlp": (lambda: DigitsMLP(9), normal(1, 8, 8)),
    "resnet": (lambda: DigitsResNet(5), normal(1, 8, 8)),
    "grouped": (Residual, normal(3, 8, 8)),
    "attention": (Attention, tokens),
    "siamese": (Siamese, normal(12)),
    "odd": (Odd, normal(1, 8, 8)),
    "volumes": (Volumes, normal(1, 4, 4, 4)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    build, draw = NETS[name]
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(unsettled(build(), seed).double())
    return models[0], models[1], draw(40)


def loaders(x: torch.Tensor) -> list[list[torch.Tensor]]:
    return [[x], [x[:7], x[7:30], x[30:]]]


def after_training_pass(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one pass in training mode over a single batch leaves."""
    trained = copy.deepcopy(model).train()
    for layer in trained.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.momentum = None
            layer.reset_running_stats()
    with torch.no_grad():
        trained(x)
    return trained.state_dict()


@pytest.mark.parametrize("name", ["resnet", "grouped", "odd", "volumes"])
def test_statistics_are_those_of_one_training_pass_over_all_data(name: str) -> None:
    model, _, x = pair(name)
    if name == "odd":  # a norm of batches sees other data in other batches
        model.batch = nn.Identity()
    expected = after_training_pass(model, x)
    for loader in loaders(x):
        found = recalibrate(model, loader).state_dict()
        assert list(found) == list(expected)
        for key, tensor in expected.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(found[key], tensor, rtol=1e-11, atol=1e-12)
            else:
                assert found[key] == len(loader)
    moved = [k for k, t in model.state_dict().items() if not torch.equal(t, expected[k])]
    assert any(key.endswith("running_var") for key in moved)


def test_nothing_else_changes() -> None:
    model, _, x = pair("resnet")
    model.train()
    model.block1.eval()
    model.block1.norm1.momentum = 0.37
    before = copy.deepcopy(model.state_dict())
    draws = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    result = recalibrate(model, loaders(x)[1])
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert (np.random.get_state()[1] == draws[1]).all()  # noqa: NPY002
    assert random.getstate() == draws[2]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert result.block1.norm1.momentum == 0.37
    for layer, other in zip(model.modules(), result.modules(), strict=True):
        assert layer.training == other.training
        assert not layer._forward_hooks
        assert not other._forward_hooks
        assert not other._forward_pre_hooks
    for key, tensor in result.state_dict().items():
        if "running" not in key and "tracked" not in key:
            assert torch.equal(tensor, before[key])
            assert tensor.data_ptr() != model.state_dict()[key].data_ptr()


def inputs_of(model: nn.Module, name: str, batches: list[torch.Tensor]) -> torch.Tensor:
    """All that a BatchNorm gets in eval mode, `(values, units)`."""
    found: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda module, args: found.append(args[0].detach().movedim(1, -1).flatten(0, -2))
    )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    hook.remove()
    return torch.cat(found)


def test_calls_of_one_layer_are_pooled() -> None:
    model, _, x = pair("siamese")
    for loader in loaders(x):
        result = recalibrate(model, loader)
        seen = inputs_of(result, "norm", loader)
        assert len(seen) == 80
        torch.testing.assert_close(result.norm.running_mean, seen.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result.norm.running_var, seen.var(0), rtol=1e-12, atol=1e-12)


def test_a_layer_that_feeds_itself_comes_to_rest() -> None:
    torch.manual_seed(1)
    model = unsettled(Recurrent(), 1).double()
    x = normal(4)(60)
    result = recalibrate(model, [x[:20], x[20:]])
    mean, variance = result.norm.running_mean.clone(), result.norm.running_var.clone()
    # It is measured as in training mode, which divides by n; what is kept is divided by n − 1.
    result.norm.running_var.mul_(179 / 180)
    seen = inputs_of(result, "norm", [x])
    assert len(seen) == 180
    torch.testing.assert_close(mean, seen.mean(0), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(variance, seen.var(0), rtol=1e-11, atol=1e-11)


def test_a_layer_that_feeds_itself_is_repaired() -> None:
    a, b = (unsettled(Recurrent(), seed).double() for seed in (1, 2))
    x = normal(4)(60)
    middle = list(interpolate(a, b, steps=3))[1]
    result = repair(middle, a, b, [x[:20], x[20:]])
    for name in ("norm", "head"):
        one, two, found = (outputs_of(m, name, [x]) for m in (a, b, result))
        for figure in (lambda seen: seen.mean(0), lambda seen: seen.std(0, correction=0)):
            target = (figure(one) + figure(two)) / 2
            torch.testing.assert_close(figure(found), target, rtol=1e-9, atol=1e-9)


class Restless(nn.Module):
    """Statistics that chase themselves: what the layer gives drives what it gets far off."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + 10 * torch.sin(30 * self.norm(x)))


def test_layers_that_do_not_come_to_rest_are_named_in_a_warning() -> None:
    model = unsettled(Restless(), 1).double()
    with pytest.warns(UserWarning, match="recalibrate: layers that run several times"):
        recalibrate(model, [normal(2)(30)])


def test_only_so_many_batches_are_used() -> None:
    model, _, x = pair("resnet")
    parts = [x[:10], x[10:20], x[20:]]
    found = recalibrate(model, parts, max_batches=2).state_dict()
    expected = recalibrate(model, parts[:2]).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    every = recalibrate(model, parts).state_dict()
    assert not torch.equal(every["stem.1.running_mean"], found["stem.1.running_mean"])


def test_a_shuffling_loader_gives_the_same_batches_in_every_pass() -> None:
    model, other, x = pair("resnet")
    data = torch.utils.data.TensorDataset(x)
    middle = list(interpolate(model, other, steps=3))[1]
    for own in (None, generator(3)):
        loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=own)
        state = None if own is None else own.get_state()
        first, again = (recalibrate(model, loader, max_batches=3) for _ in range(2))
        assert all(torch.equal(first.state_dict()[k], t) for k, t in again.state_dict().items())
        assert own is None or torch.equal(own.get_state(), state)
        seen = []
        probe = copy.deepcopy(model)
        probe.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0].clone()))
        recalibrate(probe, loader, max_batches=3)
        passes = [torch.cat(seen[k : k + 3]) for k in range(0, len(seen), 3)]
        assert len(passes) == 2
        assert all(torch.equal(one, passes[0]) for one in passes)
        assert not torch.equal(passes[0], x[:24])
        assert repair(middle, model, other, loader, max_batches=2) is not None


def test_a_model_without_batch_norm_is_copied() -> None:
    model, _, x = pair("mlp")
    result = recalibrate(model, [x])
    assert result is not model
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in result.state_dict().items())


def test_what_cannot_be_recalibrated_is_refused() -> None:
    model, _, x = pair("resnet")
    with pytest.raises(InputError, match="can be gone through only once"):
        recalibrate(model, iter([x]))
    with pytest.raises(InputError, match="gives no batches"):
        recalibrate(model, [])
    with pytest.raises(InputError, match="max_batches is 0"):
        recalibrate(model, [x], max_batches=0)
    with pytest.raises(InputError, match="does not run on batch 0"):
        recalibrate(model, [x[:, :, 0]])
    flat = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(InputError, match="a single value per channel"):
        recalibrate(flat, [torch.ones(1, 3)])


def test_pooled_moments_are_those_of_all_values() -> None:
    x = 1e6 + torch.randn(50, 3, generator=generator(), dtype=torch.float64)
    pooled = Moments(0, torch.zeros(3).double(), torch.zeros(3).double())
    for part in (x[:1], x[1:20], x[:0], x[20:]):
        pooled = pooled.pooled(Moments.of(part, 1))
    assert pooled.count == 50
    torch.testing.assert_close(pooled.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(pooled.variance(unbiased=True), x.var(0), rtol=1e-9, atol=0)


AXES = {
    nn.Linear: -1,
    nn.Conv1d: 1,
    nn.Conv2d: 1,
    nn.Conv3d: 1,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 1,
    nn.BatchNorm3d: 1,
}


def outputs_of(model: nn.Module, name: str, batches: list[torch.Tensor]) -> torch.Tensor:
    """All that a layer gives in eval mode, `(values, units)`."""
    found: list[torch.Tensor] = []
    layer = model.get_submodule(name)
    axis = AXES[type(layer)]
    hook = layer.register_forward_hook(
        lambda module, args, output: found.append(output.detach().movedim(axis, -1).flatten(0, -2))
    )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    hook.remove()
    return torch.cat(found)


# Layers whose output goes straight into a BatchNorm, which makes up for any scale.
NORMALISED = {
    "resnet": {"stem.0", "widen.0"} | {f"block{k}.conv{j}" for k in (1, 2) for j in (1, 2)},
    "grouped": {"stem"},
    "siamese": {"trunk", "more"},
    "volumes": {"conv"},
}


@pytest.mark.parametrize("t", [0.3, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_every_unit_has_the_interpolated_mean_and_deviation(name: str, t: float) -> None:
    a, b, x = pair(name)
    middle = next(interpolate(a, b, positions=[t]))
    for loader in loaders(x):
        result = repair(middle, a, b, loader, t)
        layers = [n for n, layer in middle.named_modules() if type(layer) in AXES]
        checked = [n for n in layers if n not in NORMALISED.get(name, set())]
        assert checked
        for layer in checked:
            one, two, found = (outputs_of(m, layer, loader) for m in (a, b, result))
            mean = torch.lerp(one.mean(0), two.mean(0), t)
            deviation = torch.lerp(one.std(0, correction=0), two.std(0, correction=0), t)
            error = (found.mean(0) - mean).abs() / deviation
            assert float(error.max()) < 1e-9, (layer, len(loader))
            ratio = found.std(0, correction=0) / deviation - 1
            assert float(ratio.abs().max()) < 1e-9, (layer, len(loader))
            before = outputs_of(middle, layer, loader)
            off = before.std(0, correction=0) / deviation - 1
            assert float(off.abs().max()) > 1e-4, layer  # there was something to repair


def test_repair_keeps_statistics_of_the_inputs_of_batch_norm() -> None:
    a, b, x = pair("resnet")
    middle = list(interpolate(a, b, steps=3))[1]
    result = repair(middle, a, b, [x[:15], x[15:]])
    for name, layer in result.named_modules():
        if isinstance(layer, _BatchNorm):
            seen = inputs_of(result, name, [x])
            torch.testing.assert_close(layer.running_mean, seen.mean(0), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(layer.running_var, seen.var(0), rtol=1e-11, atol=1e-11)
            assert layer.num_batches_tracked == 2
            assert torch.equal(layer.weight.sign(), middle.get_submodule(name).weight.sign())


def test_repair_leaves_its_inputs_alone_and_adds_only_what_it_needs() -> None:
    a, b, x = pair("odd")
    middle = list(interpolate(a, b, steps=3))[1].train()
    states = [copy.deepcopy(m.state_dict()) for m in (middle, a, b)]
    draws = torch.get_rng_state()
    result = repair(middle, a, b, [x])
    assert torch.equal(torch.get_rng_state(), draws)
    for model, state in zip((middle, a, b), states, strict=True):
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    added = set(result.state_dict()) - set(states[0])
    assert added == {"stem.bias", "up.bias", "bare.weight", "bare.bias"} | {
        "batch.weight",
        "batch.bias",
    }
    assert result.training
    assert not result.stem._forward_hooks
    assert all(p.requires_grad for p in result.parameters())


def test_repair_takes_graphs_states_and_files(tmp_path) -> None:
    a, b, x = pair("grouped")
    rebased = fxrebasin.transform(b, a, x[:2])
    middle = list(interpolate(a, rebased, steps=3))[1]
    expected = repair(middle, a, rebased, [x]).state_dict()
    graph = list(interpolate(rebased, a, steps=3))[1]
    assert isinstance(graph, fx.GraphModule)
    torch.save(a.state_dict(), tmp_path / "a.pt")
    forms = [
        repair(middle, a.state_dict(), rebased, [(x, torch.zeros(40))]),
        repair(middle, tmp_path / "a.pt", rebased.state_dict(), [x]),
        repair(graph, a, rebased, [x]),
    ]
    for form in forms:
        for key, tensor in expected.items():
            torch.testing.assert_close(form.state_dict()[key], tensor, rtol=1e-9, atol=1e-9)


def test_a_constant_unit_gets_the_mean_and_keeps_its_scale() -> None:
    a, b, x = pair("mlp")
    middle = list(interpolate(a, b, steps=3))[1]
    layer = middle.get_submodule("hidden.1.0")
    with torch.no_grad():
        layer.weight[3] = 0
        layer.bias[3] = 0.7
    result = repair(middle, a, b, loaders(x)[1])
    found = outputs_of(result, "hidden.1.0", [x])
    ends = [outputs_of(m, "hidden.1.0", [x]) for m in (a, b)]
    target = (ends[0].mean(0) + ends[1].mean(0)) / 2
    torch.testing.assert_close(found.mean(0), target, rtol=1e-9, atol=1e-9)
    assert float(found[:, 3].std()) < 1e-15
    assert not result.get_submodule("hidden.1.0").weight[3].any()


class Tied(nn.Module):
    """A head that is its embedding, and a layer whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.normed = weight_norm(nn.Linear(6, 6))
        self.plain = nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.plain(self.normed(self.embed(ids)).relu()))


def test_shared_and_computed_weights_are_left_alone() -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(unsettled(Tied(), seed).double())
    a, b = models
    middle = list(interpolate(a, b, steps=3))[1]
    x = tokens(30)
    result = repair(middle, a, b, [x])
    assert list(result.state_dict()) == list(middle.state_dict())
    changed = [
        n for n, t in result.state_dict().items() if not torch.equal(t, middle.state_dict()[n])
    ]
    assert changed == ["plain.weight", "plain.bias"]
    assert result.head.weight is result.embed.weight
    ends = [outputs_of(m, "plain", [x]) for m in (a, b)]
    found = outputs_of(result, "plain", [x])
    target = (ends[0].std(0, correction=0) + ends[1].std(0, correction=0)) / 2
    torch.testing.assert_close(found.std(0, correction=0), target, rtol=1e-9, atol=0)


def test_what_cannot_be_repaired_is_refused() -> None:
    a, b, x = pair("mlp")
    middle = list(interpolate(a, b, steps=3))[1]
    for t in (-0.1, 1.1, True):
        with pytest.raises(InputError, match="t is"):
            repair(middle, a, b, [x], t)
    with pytest.raises(InputError, match="only once"):
        repair(middle, a, b, iter([x]))
    with pytest.raises(ArchitectureMismatchError):
        repair(middle, a, Residual(), [x])
    attention = SelfAttention().double()
    with pytest.raises(InputError, match="no layer that can be repaired"):
        repair(attention, attention, attention, [normal(5, 8)(3)])
    exported = torch.export.export(a, (x,)).module()
    with pytest.raises(InputError, match=r"torch\.export has operators in their place"):
        repair(exported, a, b, [x])


def test_repair_lowers_the_loss_of_a_collapsed_midpoint() -> None:
    """The point of it: networks whose units are aligned, but whose mean varies too little."""
    torch.manual_seed(0)
    x = torch.randn(400, 8, generator=generator(1))
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        net.append(nn.Linear(64, 4))
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(150):
            optimiser.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimiser.step()
        models.append(net.eval())
    a, b = models
    rebased = fxrebasin.transform(b, a, x[:2])
    middle = list(interpolate(a, rebased, steps=3))[1]

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(x), y))

    assert loss(repair(middle, a, rebased, [x])) < 0.9 * loss(middle)
