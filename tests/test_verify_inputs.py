"""Comparisons go beyond the example: other values, batch sizes and ways through a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxrebasin.errors import EquivalenceError
from fxrebasin.exporters.verify.equivalence import compare_float64, verify
from fxrebasin.exporters.verify.input_sets import example_set, other_sets
from fxrebasin.exporters.verify.state_reads import StateReads
from fxrebasin.models.redraw import Manner, redrawn
from tests.support.small_nets import draw, unsettled


class Base(nn.Module):
    """A hidden layer, a layer that some inputs go through, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.rare = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.first(x))


class BySign(Base):
    def forward(self, x):
        h = self.hidden(x)
        return self.head(self.rare(h) if float(h[:, 0].mean()) > 0 else h)


class ByRow(Base):
    def forward(self, x):
        h = self.hidden(x)
        return self.head(torch.stack([self.rare(r) if bool(r[0] > 0.5) else r for r in h]))


class ByNumpy(Base):
    def forward(self, x):
        h = self.hidden(x)
        return self.head(self.rare(h) if h[:, 0].numpy().max() > 0.5 else h)


class ByList(Base):
    def forward(self, x):
        h = self.hidden(x)
        marks = h[:, 0].tolist()
        rows = [self.rare(row) if mark > 0.5 else row for row, mark in zip(h, marks, strict=True)]
        return self.head(torch.stack(rows))


class ByMask(Base):
    def forward(self, x):
        h = self.hidden(x)
        chosen = (h[:, 0] > 0.5).nonzero().flatten()
        return self.head(h.index_copy(0, chosen, self.rare(h[chosen])))


class ByBatch(Base):
    def forward(self, x):
        h = self.hidden(x)
        return self.head(self.rare(h) if len(x) % 2 else h)


class ByFlag(Base):
    def forward(self, x, flag=None):
        h = self.hidden(x)
        return self.head(torch.where(flag[:, None], self.rare(h), h))


class Expert(Base):
    """A stack of experts of which one row takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = nn.ParameterList([nn.Parameter(torch.zeros(4, 8, 8))])

    def forward(self, x):
        h = self.hidden(x)
        chosen = [int(k) for k in h[:, :4].argmax(1)]
        return self.head(torch.stack([h[i] @ self.rare[0][k] for i, k in enumerate(chosen)]))


def low(model: Base) -> torch.Tensor:
    """Two rows with small first hidden values: not those that take the other way."""
    x = draw(400, 4)
    return x[model.hidden(x)[:, 0].argsort()[:2]].detach()


def unused(model: Base, x: torch.Tensor) -> Any:
    """Index of what the rows do not go through: all, or the experts that none of them takes."""
    if not isinstance(model, Expert):
        return slice(None)
    taken = model.hidden(x)[:, :4].argmax(1).tolist()
    return [k for k in range(4) if k not in taken]


ROUTED: dict[str, tuple[Callable[[], Base], Callable[[torch.Tensor], dict[str, Any]]]] = {
    "sign": (BySign, lambda x: {}),
    "row": (ByRow, lambda x: {}),
    "numpy": (ByNumpy, lambda x: {}),
    "list": (ByList, lambda x: {}),
    "mask": (ByMask, lambda x: {}),
    "batch": (ByBatch, lambda x: {}),
    "flag": (ByFlag, lambda x: {"flag": torch.zeros(len(x), dtype=torch.bool)}),
    "expert": (Expert, lambda x: {}),
}


@pytest.mark.parametrize("name", ROUTED)
@pytest.mark.parametrize("rows", [0, 256])
def test_a_way_that_the_example_does_not_take_is_compared(name: str, rows: int) -> None:
    make, kwargs_of = ROUTED[name]
    torch.manual_seed(0)
    model = unsettled(make(), 3)
    x = low(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.rare.parameters():
            parameter[unused(model, x)] *= -1
    kwargs = kwargs_of(x)
    with torch.no_grad():
        assert torch.equal(model(x, **kwargs), other(x, **kwargs))
    assert not compare_float64(model, other, (x,), kwargs, rows=rows).passed
    assert compare_float64(model, copy.deepcopy(model), (x,), kwargs, rows=rows).passed


class ByToken(Base):
    """Both ways are computed, and a token chooses."""

    def forward(self, x: torch.Tensor, *, ids: torch.Tensor) -> torch.Tensor:
        h = self.hidden(x)
        return self.head(torch.where(ids[:, :1] == 2, self.rare(h), h))


def test_keyword_tokens_take_other_values() -> None:
    model = unsettled(ByToken())
    other = copy.deepcopy(model)
    nn.init.zeros_(other.rare.weight)
    x, ids = draw(2, 4), torch.tensor([[0, 1, 2], [0, 2, 1]])
    with torch.no_grad():
        assert torch.equal(model(x, ids=ids), other(x, ids=ids))
    assert not verify(model, other, x, {"ids": ids}).passed


class Fixed(nn.Module):
    """Rows are folded into a shape that holds as many as it says."""

    def __init__(self, rows: int | None) -> None:
        super().__init__()
        self.rows, self.linear = rows, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(self.rows or len(x), 4))


@pytest.mark.parametrize(
    ("rows", "refusing"), [((2, 2), "the model refuses"), ((None, 2), "the other model refuses")]
)
def test_a_note_says_where_no_other_batch_is_taken(rows: Any, refusing: str) -> None:
    model, other = (unsettled(Fixed(count)) for count in rows)
    other.load_state_dict(model.state_dict())
    report = verify(model, other, draw(2, 4))
    assert report.passed
    assert report.inputs == (
        *("example", "redrawn"),
        *("beyond #1 to #32", "far #1 to #32", "wide #1 to #31", "free #1 to #31"),
    )
    assert report.rows == 256
    (note,) = report.notes
    assert note.startswith(f"no other batch size than 2 was compared: {refusing} (redrawn batch of")
    with torch.no_grad():
        other.linear.bias[0] += 1e-6
    assert not verify(model, other, draw(2, 4)).passed


class Pairs(nn.Module):
    """Real and generated rows in one batch, as critics get them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = self.linear(x).view(2, -1, 3)
        return one * two.roll(1, 0)


def test_rows_that_come_in_pairs_are_compared_with_twice_as_many() -> None:
    report = compare_float64(Pairs(), Pairs(), (draw(2, 4),), {})
    assert not report.passed
    assert report.inputs == ("example", "redrawn batch of 4")
    assert report.notes[0].startswith("inputs left out (redrawn batch of 3): RuntimeError")


def test_a_model_that_takes_the_example_only_is_said_to() -> None:
    class Only(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape != (2, 3) or float(x[0, 0]) != 0.25:
                raise ValueError("not this")
            return super().forward(x)

    model = Only(3, 2)
    report = verify(model, model, torch.full((2, 3), 0.25))
    assert report.passed
    assert report.inputs == ("example",)
    assert report.notes[0].startswith("only the example inputs were compared: the model refuses")
    alone = verify(nn.Embedding(3, 2), nn.Embedding(3, 2), torch.zeros((), dtype=torch.long))
    assert "they have no other values" in alone.notes[0]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_an_empty_comparison_fails(shape: tuple[int, ...]) -> None:
    class Empty(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return {"boxes": super().forward(x).new_zeros(shape), "labels": [x[:0].long()]}

    model = Empty(3, 2)
    report = verify(model, model, draw(2, 3))
    assert not report.passed
    assert report.smallest_tolerance == math.inf
    (failure,) = report.failures
    assert failure.startswith(f"nothing was compared: boxes has the shape {shape}, labels.0 has")
    with pytest.raises(EquivalenceError, match="nothing was compared"):
        report.raise_if_failed()


def test_one_empty_output_among_others_is_noted() -> None:
    class Partly(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": super().forward(x), "boxes": x[:0]}

    model = unsettled(Partly(3, 2))
    report = verify(model, model, draw(2, 3))
    assert report.passed
    assert report.notes == (
        "boxes has no elements in any run, so that nothing about it was compared",
    )


# --- what was read ------------------------------------------------------------------------------


class Parts(nn.Module):
    """Parameters that are read in every way that there is, and in none."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("seen", "shape", "view", "rows", "unbound", "stacked", "none", "empty"):
            self.register_parameter(name, nn.Parameter(torch.randn(4, 4)))
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lstm((x @ self.seen.t())[:, None])[0][:, 0]
        x = x.reshape(-1, self.shape.shape[0])
        self.view.view(2, 8).t()
        x = x @ self.rows[1:3, :].t() @ self.rows[1:3]
        x = x + self.unbound.unbind(0)[2]
        x = x + torch.stack([self.stacked[k] for k in range(4)]).sum(0)
        return x + (x[:0] @ self.empty).sum()


def test_reads_are_those_of_operators_and_not_of_views() -> None:
    model = Parts()
    reads = StateReads(dict(model.named_parameters()))
    with torch.no_grad(), reads:
        model(draw(3, 4))
    assert reads.unread() == {
        **{"shape": 16, "view": 16, "rows": 8, "unbound": 12, "none": 16, "empty": 16}
    }
    assert reads.untouched() == ["shape", "view", "none", "empty"]
    assert not reads.looked


def test_what_no_run_read_is_listed() -> None:
    model = unsettled(Parts())
    report = verify(model, model, draw(3, 4))
    assert report.passed
    assert report.notes == (
        "no run read 4 parameters (shape, view, none, empty), so that nothing is known about them",
        "4 units were active on no row (0, 1, 2, 3 on axis 1 of lstm.weight_hh_l0), so that nothing"
        " is known about the weights that they are multiplied with",
    )


class NeverTaken(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.hidden(x)
        return self.head(self.rare(h) if float(h.max()) > 2 else h)


def test_a_way_that_no_input_takes_is_listed() -> None:
    model = unsettled(NeverTaken())
    report = compare_float64(model, model, (draw(2, 4),), {})
    assert report.inputs[1:] == (*("redrawn batch of 3", "wide batch of 64 #1 to #2"),)
    assert "no run read 2 parameters (rare.weight, rare.bias)" in report.notes[0]


def test_a_plain_model_takes_two_forwards_of_few_rows() -> None:
    calls: list[int] = []

    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return super().forward(x)

    for rows, expected in ((1, 2), (4, 5), (64, 7)):
        calls.clear()
        model = Counting(3, 2)
        compare_float64(model, model, (draw(rows, 3),), {})
        assert calls == [rows, expected] * 2


def test_state_that_a_run_leaves_in_a_model_does_not_reach_the_next() -> None:
    class Counter(nn.Linear):
        def __init__(self, refusals: int) -> None:
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.refusals = refusals

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if len(x) == 3 and self.refusals:
                raise ValueError("three")
            return super().forward(x) + self.calls + torch.rand(2)

    model, other = Counter(1), Counter(0)
    other.load_state_dict(model.state_dict())
    assert compare_float64(model, other, (draw(2, 3),), {}).passed


# --- redrawn inputs -----------------------------------------------------------------------------

KINDS: dict[str, torch.Tensor] = {
    "ids": torch.tensor([[5, 3, 9, 1], [2, 7, 7, 0]]),
    "labels": torch.tensor([[-100, 3, 9, 1], [2, 7, -100, 0]]),
    "lengths": torch.tensor([9, 7, 4, 4, 1]),
    "offsets": torch.tensor([0, 3, 3, 8, 11], dtype=torch.int32),
    "positions": torch.arange(12).expand(2, 12),
    "one hot": F.one_hot(torch.tensor([[2, 0, 1], [1, 1, 3]]), 4),
    "one hot bool": torch.eye(4, dtype=torch.bool),
    "padding": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    "causal": torch.ones(5, 5, dtype=torch.bool).tril(),
    "all true": torch.ones(3, 6, dtype=torch.bool),
    "all false": torch.zeros(3, 6, dtype=torch.bool),
    "step": torch.tensor(500),
    "start": torch.full((3, 1), 7),
    "image": torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4),
    "shares": torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).softmax(-1),
    "boxes": torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.2, 0.3, 0.9, 0.4]]),
    "zeros": torch.zeros(2, 3),
    "additive": torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, -math.inf),
    "half": torch.tensor([0.5, 2.0], dtype=torch.float16),
    "complex": torch.complex(torch.ones(3), torch.arange(3.0)),
    "empty": torch.zeros(0, 3),
    "one": torch.tensor([3]),
}


@pytest.mark.parametrize("manner", Manner)
@pytest.mark.parametrize("name", KINDS)
def test_redrawn_tensors_are_of_the_same_kind(name: str, manner: Manner) -> None:
    given, before = KINDS[name], KINDS[name].clone()
    for seed in range(5):
        drawn, again = (redrawn([given], seed, manner)[0] for _ in "ab")
        assert torch.equal(drawn, again)
        assert torch.equal(given, before)
        assert (drawn.shape, drawn.dtype) == (given.shape, given.dtype)
        if not given.is_floating_point() and not given.is_complex() and given.numel():
            assert drawn.min() >= given.min().clamp(max=0)
            assert drawn.max() <= given.max().clamp(min=1)
        if name in ("lengths", "offsets"):
            steps = drawn.diff() * (-1 if name == "lengths" else 1)
            assert (steps >= 0).all()
            assert torch.equal(drawn[[0, -1]], given[[0, -1]])
        if name in ("ids", "labels", "positions", "image"):
            assert set(drawn.flatten().tolist()) <= set(given.flatten().tolist())
        if name.startswith("one hot"):
            assert (drawn.sum(-1) == 1).all()
        if name in ("padding", "causal", "all true"):
            assert drawn.any(-1).all()
        if name == "all false":
            assert not drawn.all(-1).any()
        if name == "additive":
            assert torch.equal(drawn, given)


CHANGING = [name for name in KINDS if name not in ("additive", "empty", "one")]


@pytest.mark.parametrize("name", CHANGING)
def test_free_draws_change_every_kind(name: str) -> None:
    drawn = [redrawn(KINDS[name], seed, Manner.FREE) for seed in range(5)]
    assert not all(torch.equal(one, KINDS[name]) for one in drawn)


def test_close_draws_keep_what_holds_for_every_row() -> None:
    shares, boxes = redrawn((KINDS["shares"], KINDS["boxes"]), 0, Manner.CLOSE)
    assert torch.allclose(shares.sum(-1), torch.ones(4))
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert not torch.equal(shares, KINDS["shares"])
    one, two = redrawn((KINDS["shares"], KINDS["shares"] * 2), 0, Manner.CLOSE)
    assert torch.allclose(one * 2, two)


class Strict(nn.Module):
    """Checks its inputs as libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.bag = nn.EmbeddingBag(12, 4)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor
    ) -> torch.Tensor:
        if not torch.allclose(x.sum(-1), torch.ones(x.shape[:2])):
            raise ValueError("shares have the sum 1")
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.lstm(packed)[1][0][-1] + self.bag(ids, offsets).sum()


def test_a_model_that_checks_its_inputs_is_compared_on_others() -> None:
    model = unsettled(Strict())
    x = draw(3, 6, 4).softmax(-1)
    given = (x, torch.tensor([6, 4, 2]), torch.arange(10), torch.tensor([0, 4, 7, 9]))
    report = compare_float64(model, copy.deepcopy(model), given, {})
    assert report.passed
    assert report.inputs == ("example", "redrawn batch of 4")
    assert report.notes == tuple(
        f"inputs left out ({label}): ValueError: shares have the sum 1"
        for label in ("redrawn batch of 4", "wide batch of 64 #1", "wide batch of 64 #2")
    )


def test_rows_of_other_batches_stay_in_order() -> None:
    example = example_set((draw(3, 2), torch.tensor([9, 5, 2])), {})
    sizes = {one.batch: one.args[1].tolist() for one in other_sets(example)}
    assert sizes[6][0] == 9
    assert sizes[6] == sorted(sizes[6], reverse=True)
