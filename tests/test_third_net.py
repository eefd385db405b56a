"""Whatever hands out a permutation or a permuted model proves it, on a model that fools it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxrebasin
import fxrebasin.analysis
import fxrebasin.calls.request
import fxrebasin.merge.many
from fxrebasin.errors import EquivalenceError
from fxrebasin.merge import align_many, merge_many
from fxrebasin.permutation import Permutation
from fxrebasin.proof import prove_graph, prove_state
from tests.support.small_nets import draw, unsettled


class Net(nn.Module):
    """An MLP that, in truth or by mistake, scales its hidden units one by one."""

    def __init__(self, scaled: bool = False) -> None:
        super().__init__()
        self.scaled = scaled
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        return self.last(h * torch.arange(1, 9) if self.scaled else h)


def nets(count: int, scaled: bool) -> list[Net]:
    return [unsettled(Net(scaled), seed) for seed in range(count)]


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The analysis takes every net for the plain one."""
    plain = fxrebasin.analyze(Net(), draw(2, 4))
    for module in (fxrebasin.calls.request, fxrebasin.merge.many):
        monkeypatch.setattr(module, "symmetry_of", lambda *args: plain)


CALLS: dict[str, tuple[Callable[..., Any], str]] = {
    "match": (lambda a, b, x, **kw: fxrebasin.match(b, a, x, **kw), "the model does not"),
    "transform": (lambda a, b, x, **kw: fxrebasin.transform(b, a, x, **kw), "NOT equivalent"),
    "align_many": (
        lambda a, b, x, **kw: align_many([a, b], example_inputs=x, **kw),
        r"models\[1\] does not compute the same",
    ),
    "merge_many": (
        lambda a, b, x, **kw: merge_many([a, b], "merge_many", example_inputs=x, **kw),
        r"models\[1\] does not compute the same",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_symmetry_is_not_handed_out(name: str, wrong: None) -> None:
    call, message = CALLS[name]
    a, b = nets(2, scaled=True)
    states = [copy.deepcopy(net.state_dict()) for net in (a, b)]
    with pytest.raises(EquivalenceError, match=message):
        call(a, b, draw(2, 4))
    call(a, b, draw(2, 4), verify=False)
    for net, state in zip((a, b), states, strict=True):
        assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", CALLS)
def test_a_right_symmetry_passes(name: str) -> None:
    call, _ = CALLS[name]
    call(*nets(2, scaled=False), draw(2, 4))
    call(*nets(2, scaled=True), draw(2, 4))


def test_apply_proves_a_certificate_from_elsewhere(tmp_path: Path) -> None:
    fxrebasin.analyze(Net(), draw(2, 4)).random(0).save(tmp_path / "p.safetensors")
    permutation = Permutation.load(tmp_path / "p.safetensors")
    plain, scaled = nets(1, scaled=False)[0], nets(1, scaled=True)[0]
    fxrebasin.apply(plain, permutation, draw(2, 4))
    with pytest.raises(EquivalenceError, match="exceeds the tolerance"):
        fxrebasin.apply(scaled, permutation, draw(2, 4))
    fxrebasin.apply(scaled, permutation, draw(2, 4), verify=False)


def test_files_and_the_third_of_three_are_proved(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        """A buffer that is uniform at first, and not in the third file."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
            self.register_buffer("gain", torch.ones(1, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.relu(self.first(x)) @ torch.diag(self.gain[0]))

    permutation = fxrebasin.analyze(nets(1, False)[0], draw(2, 4)).random(1)
    model = Frozen()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prove_state(model, state, permutation, ((draw(2, 4),), {}), label="models[0]")
    state["gain"] = torch.rand(1, 8) + 0.5
    with pytest.raises(EquivalenceError, match=r"models\[2\] does not compute the same"):
        prove_state(model, state, permutation, ((draw(2, 4),), {}), label="models[2]")


class ByBatch(nn.Module):
    """A tracer sees one way only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last(torch.tanh(self.first(x)))
        return y * 2 if x.shape[0] > 2 else y


def test_a_graph_for_one_batch_size_is_no_fault_of_the_permutation() -> None:
    a, b = unsettled(ByBatch(), 0), unsettled(ByBatch(), 1)
    report = fxrebasin.transform(b, a, draw(2, 4)).meta["fxrebasin"]
    assert report.equivalence.passed
    assert any("batch size" in note for note in report.notes)


def test_a_wrong_graph_of_the_same_batch_size_is_refused() -> None:
    model = nets(1, scaled=False)[0]
    permutation = fxrebasin.analyze(model, draw(2, 4)).random(0)
    traced = fxrebasin.passes.trace.trace.trace(model, (draw(2, 4),))
    result = fxrebasin.apply(model, permutation, draw(2, 4))
    with torch.no_grad():
        result.get_parameter("last.bias")[0] += 1e-6
    with pytest.raises(EquivalenceError, match=r"other bits than they should: last\.bias"):
        prove_graph(model, traced, result, permutation, ((draw(2, 4),), {}))
