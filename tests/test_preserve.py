"""`preserve` undoes everything that running a model can do to it."""

from __future__ import annotations

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxrebasin.running.preserve import preserve


class Vandal(nn.Module):
    """Changes in its forward pass all that a module can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("steps", torch.zeros(2))
        self.cache: dict[str, object] = {"kept": {"inner": [1]}}
        self.history = [1]
        self.seen = {1}
        self.recent = deque([1])
        self.scale = torch.ones(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache["new"] = x
        self.cache["kept"]["inner"].append(2)
        self.history.append(2)
        self.seen.clear()
        self.recent.append(3)
        self.answer = 42
        self.steps.add_(1)
        self.scale[0] = 7
        self.linear.weight.data.mul_(2)
        self.linear.bias.data = torch.zeros(3)
        self.norm.running_var.resize_(10)
        self.norm.running_mean[1:].fill_(5)
        torch._foreach_add_([self.norm.weight], 1.0)
        F.batch_norm(x, self.norm.running_mean, torch.ones(3), training=True)
        self.linear.weight.grad = torch.ones(3, 3)
        self.linear.bias.requires_grad_(False)
        self.extra = nn.Linear(2, 2)
        self.register_buffer("late", torch.zeros(1))
        del self.steps
        self.linear.train()
        torch.rand(2), np.random.random(), random.random()  # noqa: NPY002
        return self.linear(x)


def state_of(model: nn.Module) -> list[object]:
    """A deep copy of all that the test compares, in order."""
    return [
        {k: (v.clone(), v.shape, v.stride()) for k, v in model.state_dict().items()},
        [(n, m.training, sorted(vars(m))) for n, m in model.named_modules()],
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
    ]


def numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the state that models draw from


def assert_same(left: object, right: object) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def test_everything_is_as_it_was() -> None:
    model = Vandal()
    model.norm.eval()
    parameters, attributes = dict(model.named_parameters()), dict(vars(model))
    before, containers = state_of(model), copy.deepcopy((model.cache, model.history, model.seen))
    with preserve(model):
        assert not any(m.training for m in model.modules())
        model(torch.ones(4, 3))
    assert_same(state_of(model), before)
    assert (model.cache, model.history, model.seen) == containers
    assert model.recent == deque([1])
    assert torch.equal(model.scale, torch.ones(3))
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert vars(model).keys() == attributes.keys()
    assert all(vars(model)[name] is value for name, value in attributes.items())
    assert model.training
    assert not model.norm.training


def test_it_is_so_after_an_exception() -> None:
    model = Vandal()
    before = state_of(model)

    def run_and_fail() -> None:
        with preserve(model):
            model(torch.ones(4, 3))
            raise KeyError("from inside")

    with pytest.raises(KeyError, match="from inside"):
        run_and_fail()
    assert_same(state_of(model), before)


def test_gradients_are_kept() -> None:
    model = Vandal()
    gradient = torch.full((3, 3), 2.0)
    model.linear.weight.grad = gradient
    with preserve(model):
        gradient.add_(1)
        model(torch.ones(4, 3))
    assert model.linear.weight.grad is gradient
    assert torch.equal(gradient, torch.full((3, 3), 2.0))


def test_random_states_grad_mode_and_fast_path_are_kept() -> None:
    model = Vandal()
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with preserve(model):
        assert not torch.is_grad_enabled()
        assert not torch.backends.mha.get_fastpath_enabled()
        model(torch.ones(4, 3))
        torch.set_grad_enabled(True)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy_state() == states[1]
    assert random.getstate() == states[2]
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is fast_path


def test_the_order_of_the_state_dict_is_kept() -> None:
    class Shuffler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.a
            del self.a
            self.a = a
            return self.a(self.b(x))

    model = Shuffler()
    keys = list(model.state_dict())
    with preserve(model):
        model(torch.ones(1, 1))
        assert list(model.state_dict()) != keys
    assert list(model.state_dict()) == keys


def test_a_model_that_merges_its_weights_in_eval_mode_is_restored_bit_for_bit() -> None:
    class Adapter(nn.Linear):
        """Adds its low-rank part to the weight in eval mode, as adapters do."""

        merged = False

        def train(self, mode: bool = True) -> Adapter:
            if mode == self.merged:
                self.weight.data += (-0.1 if mode else 0.1) * torch.ones_like(self.weight)
                self.merged = not mode
            return super().train(mode)

    model = Adapter(3, 3)
    weight = model.weight.detach().clone()
    with preserve(model):
        assert model.merged
        assert not torch.equal(model.weight, weight)
    assert torch.equal(model.weight, weight)
    assert not model.merged


def test_unchanged_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    clone = torch.UntypedStorage.clone
    monkeypatch.setattr(
        torch.UntypedStorage, "clone", lambda self: copied.append(self.nbytes()) or clone(self)
    )
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    with preserve(model):
        model(torch.ones(2, 64))
    assert copied == []


def test_exported_modules_which_refuse_eval_are_run_all_the_same() -> None:
    exported = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)).module()
    flags = [module.training for module in exported.modules()]
    with preserve(exported):
        assert not any(module.training for module in exported.modules())
    assert [module.training for module in exported.modules()] == flags
