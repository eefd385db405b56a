"""Batches that wait for each other, with what they hold in a temporary file."""

from __future__ import annotations

import errno
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.demo.networks import DigitsResNet
from fxrebasin.merge import sweeps
from fxrebasin.merge.held_bytes import HeldBytes
from fxrebasin.merge.overflow import Belongings, Overflow
from tests.support.small_nets import unsettled


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Chain(nn.Module):
    """A residual around two BatchNorm layers; kinds differ in what they do to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.second, self.last = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.between(self.first(x))
        views = kept[:, :3], kept.t()
        h = self.second(self.norm(kept).relu()) + views[1].t()
        h[:, :3] += views[0] + x[:, :1]
        return self.last(h)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h


class ByNumPy(Chain):
    """Works with what NumPy has of the memory."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.array = h.numpy()
        return h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + float(self.array.sum())


class ByDlpack(Chain):
    """Has the same memory once more, by a name that PyTorch does not know to be the same."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h[:, :]))


class OfTheFirst(Chain):
    """Batches of five make what all batches use."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        if len(h) == 5:
            SHARED["table"] = torch.linspace(1, 2, 6, dtype=h.dtype) * 3
        return h * SHARED["table"]


SHARED: dict[str, torch.Tensor] = {}


class Loader:
    """Counts how often it is gone through."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes += 1
        return iter(self.batches)


def vectors() -> list[torch.Tensor]:
    return [drawn(n, 4, seed=n) for n in (5, 3, 7, 4)]


def images() -> list[torch.Tensor]:
    return [drawn(n, 1, 8, 8, seed=n) for n in (5, 3, 7, 2)]


def assert_same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("most", [0, 20_000], ids=["all", "some"])
@pytest.mark.parametrize("call", ["recalibrate", "repair"])
def test_the_same_bits_in_as_few_passes(
    call: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (unsettled(DigitsResNet(4), seed).double() for seed in (1, 2))
    middle, loader = [*fxrebasin.interpolate(a, b, steps=3)][1], Loader(images())
    works: dict[str, Callable[[], nn.Module]] = {
        "recalibrate": lambda: fxrebasin.recalibrate(middle, loader),
        "repair": lambda: fxrebasin.repair(middle, a, b, loader),
    }
    wanted = works[call]()
    passes, loader.passes = loader.passes, 0
    monkeypatch.setattr(sweeps, "MOST_HELD", most)
    found = works[call]()
    assert loader.passes == passes <= 3
    assert_same(found, wanted)


@pytest.mark.parametrize("kind", [Chain, ByNumPy, ByDlpack])
def test_views_and_memory_that_others_share(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = unsettled(kind(), 1).double(), vectors()
    wanted = fxrebasin.recalibrate(model, batches)
    monkeypatch.setattr(sweeps, "MOST_HELD", 0)
    assert_same(fxrebasin.recalibrate(model, batches), wanted)


def test_what_one_batch_makes_for_another_is_not_read_while_it_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = unsettled(OfTheFirst(), 1).double(), vectors()
    wanted = fxrebasin.recalibrate(model, batches)
    monkeypatch.setattr(sweeps, "MOST_HELD", 0)
    before = threading.active_count()
    with pytest.warns(UserWarning, match="reads what another one has made"):
        found = fxrebasin.recalibrate(model, batches)
    assert_same(found, wanted)
    assert threading.active_count() == before


def test_nothing_is_in_memory_while_batches_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, settle = unsettled(Chain(), 1).double(), vectors(), sweeps.Sweep._settle
    watch, held = HeldBytes(), []

    def settled(sweep: sweeps.Sweep, *args: Any) -> None:
        alive = [made[0] for made in watch._made.values() if not made[0].expired()]
        found = [torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for ref in alive]
        held.append(sum(storage.nbytes() for storage in found))
        settle(sweep, *args)

    compute = Belongings.note

    def noted(own: Belongings, operands: Any, result: Any) -> None:
        watch.called(lambda *_: result, operands, {})  # type: ignore[arg-type]
        compute(own, operands, result)

    monkeypatch.setattr(Belongings, "note", noted)
    monkeypatch.setattr(sweeps.Sweep, "_settle", settled)
    monkeypatch.setattr(sweeps, "MOST_HELD", 0)
    fxrebasin.recalibrate(model, batches)
    moments = 2 * 6 * 8
    assert held
    assert max(held) <= len(batches) * moments


def test_a_full_disk_costs_passes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = unsettled(Chain(), 1).double(), Loader(vectors())
    wanted, write, written = fxrebasin.recalibrate(model, batches), Overflow.write, []

    def full(overflow: Overflow, storage: torch.UntypedStorage, place: int) -> None:
        written.append(place)
        if len(written) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(overflow, storage, place)

    monkeypatch.setattr(Overflow, "write", full)
    monkeypatch.setattr(sweeps, "MOST_HELD", 0)
    with pytest.warns(UserWarning, match=r"could not wait .* \(a temporary file: .*No space left"):
        found = fxrebasin.recalibrate(model, batches)
    assert_same(found, wanted)


def test_the_file_is_gone_after_a_result_and_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sweeps, "MOST_HELD", 0)
    model, made = unsettled(Chain(), 1).double(), []
    monkeypatch.setattr(sweeps, "Overflow", lambda: made.append(Overflow()) or made[-1])
    fxrebasin.recalibrate(model, vectors())

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps.Sweep, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fxrebasin.recalibrate(model, vectors())
    assert len(made) == 2
    assert all(overflow._file.closed for overflow in made)
    assert not [*tmp_path.iterdir()]
