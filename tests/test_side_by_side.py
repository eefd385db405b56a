"""Batches that go through a model side by side give what one pass for every layer gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.demo.networks import DigitsResNet
from fxrebasin.errors import InputError
from fxrebasin.merge import lanes, sweeps
from tests.support.small_nets import unsettled


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Counted:
    """A loader that counts how often it is gone through."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes += 1
        return iter(self.batches)


class Stash(nn.Module):
    """Keeps what it computes in attributes until a later layer needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.second, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.first(x)
        h = self.second(self.norm(self.kept).relu())
        return self.last(h + self.kept)


class Forks(nn.Module):
    """Batches take their layers in an order, and as often, as their data say."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = (nn.BatchNorm1d(4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x[0, 0] > 0:
            x = self.left(x) + 0.1 * self.right(x.tanh())
        else:
            x = self.right(x) + 0.3 * self.left(x.sin())
        return self.last(x)


class Remembers(nn.Module):
    """What it gives for a batch depends on the batches before."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.last(self.norm(x * self.count).relu())


def resnet() -> nn.Module:
    return unsettled(DigitsResNet(4), 1).double()


def images() -> list[torch.Tensor]:
    return [drawn(n, 1, 8, 8, seed=n) for n in (5, 3, 7, 2)]


def vectors() -> list[torch.Tensor]:
    batches = [drawn(n, 4, seed=n) for n in (5, 3, 7, 4)]
    for k, batch in enumerate(batches):
        batch[0, 0] = (-1.0) ** k
    return batches


@pytest.mark.parametrize("call", ["recalibrate", "repair"])
def test_at_most_three_passes_over_the_data(call: str) -> None:
    model, loader = resnet(), Counted(images())
    if call == "recalibrate":
        fxrebasin.recalibrate(model, loader)
        assert loader.passes == 2
    else:
        fxrebasin.repair(model, model, model, loader)
        assert loader.passes == 3


def assert_close(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("most", [0, 30_000], ids=["no memory", "memory for some"])
@pytest.mark.parametrize("call", ["recalibrate", "repair"])
def test_the_result_is_that_of_a_pass_for_every_layer(
    call: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, loader = resnet(), Counted(images())
    others = {"recalibrate": model, "repair": unsettled(DigitsResNet(4), 2).double()}
    middle = [*fxrebasin.interpolate(model, others[call], steps=3)][1]
    works: dict[str, Callable[[], nn.Module]] = {
        "recalibrate": lambda: fxrebasin.recalibrate(middle, loader),
        "repair": lambda: fxrebasin.repair(middle, model, others[call], loader),
    }
    found = works[call]()
    monkeypatch.setattr(sweeps, "MOST_HELD", most)
    monkeypatch.setattr(sweeps, "room_for_overflow", lambda: 0)
    few = loader.passes
    with pytest.warns(UserWarning, match=r"GiB of a temporary file, for which there is no room"):
        wanted = works[call]()
    assert loader.passes - few > few
    assert_close(found, wanted)


def moments_of_norms(model: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What really comes to each BatchNorm: means and variances."""
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0])
            )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    whole = {name: torch.cat(parts) for name, parts in seen.items()}
    return {
        **{f"{name}.running_mean": values.mean(0) for name, values in whole.items()},
        **{f"{name}.running_var": values.var(0) for name, values in whole.items()},
    }


@pytest.mark.parametrize("kind", [Stash, Forks])
def test_statistics_are_those_of_what_comes(kind: type[nn.Module]) -> None:
    model, batches = unsettled(kind(), 1).double(), vectors()
    found = fxrebasin.recalibrate(model, batches).eval()
    state = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    for name, exact in moments_of_norms(with_divisor_n(found, batches), batches).items():
        torch.testing.assert_close(state[name], exact, rtol=1e-10, atol=1e-10)


def with_divisor_n(model: nn.Module, batches: list[torch.Tensor]) -> nn.Module:
    """The model as it was measured: with variances that divide by n, where it keeps n − 1."""
    rows = sum(map(len, batches))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_var *= (rows - 1) / rows
    return model


def test_a_model_that_remembers_sees_its_batches_one_after_the_other() -> None:
    model, batches = unsettled(Remembers(), 1).double(), vectors()
    found = fxrebasin.recalibrate(model, batches)
    whole = torch.cat([batch * (k + 1 + float(model.count)) for k, batch in enumerate(batches)])
    torch.testing.assert_close(found.norm.running_mean, whole.mean(0))
    torch.testing.assert_close(found.norm.running_var, whole.var(0))
    assert found.count == model.count


class Fails(Stash):
    """Does not run on some batches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        if len(x) == 7 and (self.norm.running_mean == 0).sum() != 6:
            raise ValueError("no batches of seven")
        return self.last(self.second(self.norm(h)))


def test_a_failure_and_an_interruption_leave_no_thread_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = threading.active_count()
    with pytest.raises(InputError, match=r"does not run on batch 2 of the loader: .*of seven"):
        fxrebasin.recalibrate(unsettled(Fails(), 1).double(), vectors())

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps.Sweep, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fxrebasin.recalibrate(unsettled(Stash(), 1).double(), vectors())
    assert threading.active_count() == before


class Chain(Stash):
    """The same, with nothing in its attributes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.first(x)
        return self.last(self.second(self.norm(kept).relu()) + kept)


class Guarded(Chain):
    """Few batches at a time are let in, by something outside of the model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = GATE["here"]
        gate.acquire()
        out = super().forward(x)
        gate.release()
        return out


class Patient:
    """A lock that is not waited for without end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.release = self._lock.release

    def acquire(self) -> bool:
        if not self._lock.acquire(timeout=2):
            raise TimeoutError("nobody gives the lock back")
        return True


class OfOneThread(Chain):
    """Works with what only one thread has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(OWN.scale * x)


GATE: dict[str, Any] = {}
OWN = threading.local()
SCALE: ContextVar[float] = ContextVar("scale", default=1.0)


class Scaled(Chain):
    """Works with a variable of the context."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(SCALE.get() * x)


def wanted(model: Stash, scale: float = 1.0) -> nn.Module:
    plain = Chain().double()
    plain.load_state_dict(model.state_dict())
    return fxrebasin.recalibrate(plain, [scale * batch for batch in vectors()])


GATES: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "lock of a thread": threading.RLock,
    "room for two": lambda: threading.Semaphore(2),
}


@pytest.mark.parametrize("gate", GATES)
def test_batches_that_would_wait_for_each_other_run_one_by_one(
    gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "_PATIENCE", 0.5)
    monkeypatch.setitem(GATE, "here", GATES[gate]())
    model, before = unsettled(Guarded(), 1).double(), threading.active_count()
    words = (
        r"recalibrating: batches could not wait .* inside of the model \(a batch waited for 0\.5"
    )
    with pytest.warns(UserWarning, match=words):
        found = fxrebasin.recalibrate(model, vectors())
    assert_close(found, wanted(model))
    assert GATE["here"].acquire(timeout=1)
    assert threading.active_count() == before


@pytest.mark.filterwarnings("ignore:.*for which there is no room")
@pytest.mark.parametrize("room", [0, 10**6], ids=["no file", "a file"])
@pytest.mark.parametrize("most", [0, 1_400], ids=["no memory", "memory for one"])
def test_batches_without_memory_give_back_what_they_hold(
    most: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that an error leaves held, or a batch that waits, would stop the next for ever."""
    monkeypatch.setattr(sweeps, "MOST_HELD", most)
    monkeypatch.setattr(sweeps, "room_for_overflow", lambda: room)
    monkeypatch.setattr(lanes, "_PATIENCE", 0.3)
    monkeypatch.setitem(GATE, "here", Patient())
    model, before = unsettled(Guarded(), 1).double(), threading.active_count()
    told = pytest.warns(UserWarning, match=r"could not wait .* \(a batch waited for 0\.3")
    with told if most or room else nullcontext():
        found = fxrebasin.recalibrate(model, vectors())
    assert_close(found, wanted(model))
    assert GATE["here"].acquire()
    assert threading.active_count() == before


def test_a_lock_that_the_caller_holds_does_not_stop_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "_PATIENCE", 0.5)
    monkeypatch.setitem(GATE, "here", threading.RLock())
    model, before = unsettled(Guarded(), 1).double(), threading.active_count()
    with GATE["here"], pytest.warns(UserWarning, match="could not wait for each other"):
        found = fxrebasin.recalibrate(model, vectors())
    assert_close(found, wanted(model))
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(5)
    assert threading.active_count() <= before


def test_an_interruption_reaches_a_batch_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_PATIENCE", 0.5)
    waited = lanes.Lane._event

    def interrupted(lane: lanes.Lane) -> Any:
        try:
            return waited(lane)
        except lanes.NotAbreastError:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(lanes.Lane, "_event", interrupted)
    monkeypatch.setitem(GATE, "here", threading.Lock())
    with pytest.raises(KeyboardInterrupt):
        fxrebasin.recalibrate(unsettled(Guarded(), 1).double(), vectors())


def test_a_model_that_needs_the_thread_of_the_caller_runs_there() -> None:
    OWN.scale = 2.0
    model = unsettled(OfOneThread(), 1).double()
    with pytest.warns(UserWarning, match=r"could not wait .*no attribute 'scale'"):
        found = fxrebasin.recalibrate(model, vectors())
    assert_close(found, wanted(model, 2.0))


def test_variables_of_the_context_are_those_of_the_caller() -> None:
    model = unsettled(Scaled(), 1).double()
    token = SCALE.set(3.0)
    try:
        found = fxrebasin.recalibrate(model, vectors())
    finally:
        SCALE.reset(token)
    assert_close(found, wanted(model, 3.0))
