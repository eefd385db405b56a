"""Weights in float64 that have memory only while operators read them."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.exporters.verify import pages as pages_module
from fxrebasin.exporters.verify import runs as runs_module
from fxrebasin.exporters.verify.equivalence import compare_float64
from fxrebasin.exporters.verify.input_sets import example_set
from fxrebasin.exporters.verify.pages import Pages
from fxrebasin.exporters.verify.runs import MadeWhenAsked, Subject, in_float64, run_float64
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.proof import prove_state
from fxrebasin.running.watching import OperatorMode
from tests.support.small_nets import draw, unsettled


def held(tensors):
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class Held(OperatorMode):
    """The most memory that some tensors have together when an operator is called."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors, self.most = list(tensors), 0

    def called(self, func, args, kwargs):
        result = func(*args, **kwargs)
        self.most = max(self.most, held(self.tensors))
        return result


def paged(*shape, seed=0):
    pages, source = Pages(kept=64), draw(*shape, seed=seed)
    return pages, source, pages.stand_in(source, torch.float64)


def test_a_run_holds_what_is_read_and_little_else(monkeypatch):
    model = unsettled(nn.Sequential(*[nn.Linear(32, 32) for _ in range(12)]))
    one = example_set((draw(3, 32),), {})
    copies = []
    monkeypatch.setattr(runs_module, "_LITTLE_BYTES", 64)
    with in_float64(Subject(model), little_memory=True) as run:
        parameters = list(run._twin.parameters())
        assert held(parameters) == 0
        probe = Held(parameters)
        with probe:
            found = run(one)
        copies += [weakref.ref(parameter) for parameter in parameters]
        whole = 2 * sum(parameter.nbytes for parameter in model.parameters())
        largest = 2 * model[0].weight.nbytes
        assert largest <= probe.most <= 2 * largest < whole // 4
        assert held(parameters) <= 64
    assert held(parameters) == 0
    expected = nn.Sequential(*model).double()(one.args[0].double())
    assert torch.allclose(found["output"], expected, rtol=1e-14, atol=0)


def test_memory_of_emptied_pages_is_handed_back_now_and_then(monkeypatch):
    handed = []
    monkeypatch.setattr(pages_module, "give_back_memory", lambda: handed.append(True))
    monkeypatch.setattr(pages_module, "_HANDED_BACK", 3 * 512)
    pages = Pages(kept=64)
    wide = [pages.stand_in(draw(64, seed=at), torch.float64) for at in range(8)]
    for count, one in enumerate(wide, start=1):
        with pages:
            one.sum()
        assert held(wide) == 0
        assert len(handed) == count // 3


def test_weights_that_a_run_comes_back_to_stay_up_to_a_quarter_of_all():
    pages = Pages(kept=64)
    wide = [pages.stand_in(draw(64, seed=at), torch.float64) for at in range(12)]
    often, others = wide[:2], wide[2:]
    with pages:
        for one in wide:
            one.sum()
        assert held(wide) == 0
        for step in range(4):  # as a recurrent layer does
            for one in often:
                one.sum()
            assert held(often) == (512, 1024)[min(step, 1)]
        for one in others:
            one.sum()
            assert held(wide) <= 12 * 512 // 4
    with pages:
        others[0].sum()
        assert held(wide) == 0


def test_no_copy_outlives_a_comparison():
    model = unsettled(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 2)))
    made = []
    stand_in = Pages.stand_in

    def noted(self, source, dtype, form=None):
        wide = stand_in(self, source, dtype, form)
        made.append((weakref.ref(wide), wide.untyped_storage()))
        return wide

    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Pages, "stand_in", noted)
            assert compare_float64(model, model, (draw(4, 5),), {}).passed
        assert len(made) == 12
        assert all(storage.nbytes() == 0 for _, storage in made)
        assert all(reference() is None for reference, _ in made)
    finally:
        gc.enable()


def test_a_model_that_cannot_be_copied_has_its_own_numbers():
    model = unsettled(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    model.cache = {"twice": model[0].weight * 2}  # no leaf, which refuses to be copied
    state = dict(model.named_parameters())
    expected = model(draw(3, 4)).double()
    with in_float64(Subject(model, state)) as run:
        found = run(example_set((draw(3, 4),), {}))["output"]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert expected.abs().max() > 0.1
    assert torch.equal(model(draw(3, 4)).double(), expected)


def test_views_are_made_without_numbers_and_read_with_them():
    pages, source, wide = paged(6, 4)
    with pages:
        turned = wide.t()[1:]
        assert torch.equal(turned.reshape(-1), source.double().t()[1:].reshape(-1))
        other = pages.stand_in(source + 1, torch.float64)
        assert torch.equal(other + 0, (source + 1).double())  # empties the first one
        assert torch.equal(turned * 2, source.double().t()[1:] * 2)


def test_what_is_written_stays_until_the_end():
    pages, source, wide = paged(8, 8)
    with pages, torch.no_grad():
        wide[2].mul_(3)
        others = [pages.stand_in(source, torch.float64) for _ in range(6)]
        assert sum(float(other.sum()) for other in others) == pytest.approx(
            6 * float(source.double().sum())
        )
        expected = source.double()
        expected[2] *= 3
        assert torch.equal(wide + 0, expected)
    assert wide.untyped_storage().nbytes() == 0
    with pages:
        assert torch.equal(wide + 0, source.double())


@pytest.mark.parametrize(
    "leave", [lambda t: t.numpy(), np.asarray, np.from_dlpack, lambda t: np.array(t.tolist())]
)
def test_what_leaves_torch_has_numbers(leave):
    pages, source, wide = paged(5, 5)
    with pages:
        array = leave(wide.t())
        pages.stand_in(source, torch.float64).sum()
        assert np.array_equal(array, source.double().t().numpy())
    assert np.array_equal(array, source.double().t().numpy())


def test_a_returned_weight_is_compared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 6)

        def forward(self, ids):
            return self.table(ids), self.table.weight.t()

    model, other = Tied(), Tied()
    unsettled(model)
    other.load_state_dict(model.state_dict())
    ids = torch.tensor([[1, 2, 5]])
    assert compare_float64(model, other, (ids,), {}).passed
    with torch.no_grad():
        other.table.weight[7, 3] += 1e-3  # no row reads it
    assert not compare_float64(model, other, (ids,), {}).passed


def test_a_model_that_writes_to_its_weights_starts_each_run_as_it_was():
    class Clipped(nn.Linear):
        def forward(self, x):
            self.weight.data.clamp_(-0.1, 0.1)
            return super().forward(x)

    model = unsettled(Clipped(4, 3))
    before = model.weight.clone()
    report = compare_float64(model, model, (draw(2, 4),), {})
    assert report.passed
    assert len(report.inputs) > 1
    with in_float64(Subject(model)) as run:
        first, second = (run(example_set((draw(2, 4),), {}))["output"] for _ in "ab")
    expected = draw(2, 4).double() @ before.double().clamp(-0.1, 0.1).t() + model.bias.double()
    assert torch.equal(first, second)
    assert torch.allclose(first, expected, rtol=1e-12)
    assert torch.equal(model.weight, before)


PICKS = {
    "embedding": lambda table, ids: nn.functional.embedding(ids, table),
    "index_select": lambda table, ids: table.index_select(0, ids),
    "index": lambda table, ids: table[ids],
}


@pytest.mark.parametrize("pick", PICKS.values(), ids=PICKS)
def test_rows_of_a_table_are_widened_when_they_are_picked(pick):
    pages, source, wide = paged(50, 8)
    ids = torch.tensor([3, 49, 3])
    with pages:
        found = pick(wide, ids)
        assert held([wide]) == 0
        assert torch.equal(found, pick(source.double(), ids))
        found.mul_(2)  # is nobody else's
        assert torch.equal(pick(wide[1:], ids - 1), pick(source.double(), ids))
        wide.mul_(3)
        assert torch.equal(pick(wide, ids), 3 * pick(source.double(), ids))
    assert torch.equal(source, draw(50, 8, seed=0))


class NotCopyable(nn.Module):
    """Holds a lock, so that its own parameters are read."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(7, 5), nn.Linear(5, 9)
        self.last = nn.Linear(9, 3)
        self.lock = threading.Lock()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(self.table(ids)).relu())


@pytest.mark.parametrize("copyable", [True, False])
def test_a_state_that_is_made_when_it_is_read_is_that_made_before(copyable: bool) -> None:
    model = unsettled(NotCopyable(), 1)
    if copyable:
        del model.lock
    ids = torch.randint(0, 7, (3, 4))
    order = fxrebasin.analyze(model, ids).random(seed=0)
    state = named_state(model)
    before = {name: tensor.clone() for name, tensor in state.items()}
    moved = order.permute_state_dict(state)
    made = MadeWhenAsked(state, order.permute_tensor)
    sets = [example_set((ids,), {})]
    found = [run_float64(Subject(model, own), sets, little_memory=True) for own in (moved, made)]
    assert found[0][0].keys() == found[1][0].keys()
    assert all(torch.equal(a, found[1][0][name]) for name, a in found[0][0].items())
    assert prove_state(model, state, order, ((ids,), {})).passed
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
