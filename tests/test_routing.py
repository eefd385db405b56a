"""Models that look at data: what was not reached is pinned where it may matter, and it is said."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxrebasin
from tests.support.randomise import log10_factorial, permuted, randomise


class Routed(nn.Module):
    """Hidden units, a way through that data decide, and an output."""

    def __init__(self, way: Callable[[Routed, Tensor], Tensor], parts: int = 8) -> None:
        super().__init__()
        self.enter, self.gate, self.leave = nn.Linear(4, 8), nn.Linear(8, parts), nn.Linear(8, 3)
        self.parts = nn.ModuleList(nn.Linear(8, 8) for _ in range(parts))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x))
        found: Tensor = self.leave(self.way(self, h)) + 0 * self.gate(h).sum(-1, keepdim=True)
        return found


def by_argmax(model: Routed, h: Tensor) -> Tensor:
    chosen = model.gate(h).argmax(-1)
    return torch.stack([row + model.parts[int(i)](row) for row, i in zip(h, chosen, strict=True)])


def by_one_hot(model: Routed, h: Tensor) -> Tensor:
    out = h.clone()
    chosen = nn.functional.one_hot(model.gate(h).argmax(-1), len(model.parts))
    for index, part in enumerate(model.parts):
        (rows,) = torch.where(chosen[:, index] > 0)
        out.index_add_(0, rows, part(h[rows]))
    return out


def by_mask(model: Routed, h: Tensor) -> Tensor:
    out = h.clone()
    chosen = model.gate(h).argmax(-1)
    for index, part in enumerate(model.parts):
        out[chosen == index] += part(h[chosen == index])
    return out


def where_masked(model: Routed, h: Tensor) -> Tensor:
    """No state of its own, and no number that Python asks for."""
    out = model.parts[0](h)
    for part in model.parts[1:]:
        out = out + part(h)
    rows = model.gate(h).argmax(-1) == 2
    out[rows] = h[rows].cumsum(-1)
    return out


def if_ever(model: Routed, h: Tensor) -> Tensor:
    return model.parts[0](h) if h.sum() > 1e9 else h


def if_item(model: Routed, h: Tensor) -> Tensor:
    return model.parts[0](h) if h.sum().item() > 50 else h


def flipped_if(model: Routed, h: Tensor) -> Tensor:
    return h.flip(-1) if bool((h.sum() > 60) & (h.sum() < 61)) else h


def in_a_loop(model: Routed, h: Tensor) -> Tensor:
    while h.abs().max() > 1:
        h = torch.relu(model.parts[0](h)) / 2 if h.sum() > 1e9 else h / 2
    return h


def raised_if(model: Routed, h: Tensor) -> Tensor:
    if torch.isnan(h).any():
        raise ValueError("not a number")
    return model.parts[0](h)


def failing_if(model: Routed, h: Tensor) -> Tensor:
    """One way fails for data that usually do not lead there."""
    if h.sum() > 1e9:
        h = h.index_select(-1, (h.sum() - 1e9).long() + torch.arange(8))
        return model.parts[0](h)
    return h


def half_way(model: Routed, h: Tensor) -> Tensor:
    """The other way reads state, and then raises before it meets anything."""
    if h.sum() > 1e9:
        read = model.parts[0](h)
        if not h.sum() > 1e9 or read.shape[0] < 3:
            raise ValueError("too few")
        return h + read
    return h


def by_row(model: Routed, h: Tensor) -> Tensor:
    """All of one row of a matrix, and nothing of the others."""
    row = model.parts[0].weight[int(h[0].argmax())]
    return h + (h @ row)[:, None] + model.parts[0].bias


def both(model: Routed, h: Tensor) -> Tensor:
    """Neither answer alone leads anywhere."""
    one, other = bool(h.sum() > 1e9), bool(h.max() < 0)
    return model.parts[0](h) if one and other else h


def warned(model: Routed, h: Tensor) -> Tensor:
    if 0.0 in h:
        logging.getLogger(__name__).warning("there are zeros")
    return h


def rows_with(needed: int, model: Routed, h: Tensor) -> Tensor:
    """Answers that are counted."""
    return model.parts[0](h) if sum(bool(row.sum() > 20) for row in h) >= needed else h


def any_row(model: Routed, h: Tensor) -> Tensor:
    return rows_with(1, model, h)


def four_rows(model: Routed, h: Tensor) -> Tensor:
    return rows_with(4, model, h)


def kept_aside(model: Routed, h: Tensor) -> Tensor:
    """What one way only keeps meets something at a later look, which is none of yes or no."""
    kept = h if h.sum() > 1e9 else None
    h = torch.relu(model.parts[1](h))
    if int(h.sum()) == 123456789 and kept is not None:
        return h + model.parts[0](kept)
    return h


TAKEN = (if_ever, flipped_if, both, warned, raised_if)
"""Few looks, of which both answers are tried, and all that follows from them."""

IN_DOUBT = (
    by_argmax,
    by_one_hot,
    by_mask,
    by_row,
    if_item,
    in_a_loop,
    any_row,
    half_way,
    four_rows,
    kept_aside,
    failing_if,
)

WAYS = (*TAKEN, *IN_DOUBT, where_masked)


def routed(way: Callable[[Routed, Tensor], Tensor], **options: int) -> Routed:
    model = Routed(way, **options)
    randomise(model.double())
    return model.eval()


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("way", WAYS)
def test_no_input_sees_a_random_element(
    way: Callable[[Routed, Tensor], Tensor], rows: int, generator: torch.Generator
) -> None:
    model = routed(way)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    symmetry = fxrebasin.analyze(model, x)
    others = 3 * torch.randn(500, 1, 4, generator=generator, dtype=torch.float64)
    for seed in range(2):
        moved = permuted(model, symmetry.random(seed))
        with torch.no_grad():
            for other in others:
                torch.testing.assert_close(moved(other), model(other), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", [*TAKEN, *IN_DOUBT])
def test_the_notes_say_where_the_model_looks(way: Callable[[Routed, Tensor], Tensor]) -> None:
    """Unless all ways were taken from there."""
    notes = fxrebasin.analyze(routed(way), torch.randn(2, 4).double()).notes
    found = any("looks at data" in note and __file__ in note for note in notes)
    assert found != (way in TAKEN)


FREE = {
    **dict.fromkeys((both, if_ever, warned, raised_if), 8),
    **dict.fromkeys((half_way, any_row, four_rows, kept_aside, failing_if), 0),
}


@pytest.mark.parametrize("way", FREE)
def test_a_look_both_ways_of_which_were_taken_pins_nothing(
    way: Callable[[Routed, Tensor], Tensor],
) -> None:
    """State that no way reads is left alone; other ways may be there after the third look."""
    symmetry = fxrebasin.analyze(routed(way), torch.randn(2, 4).double())
    enter = [c.size for c in symmetry.classes if ("enter.weight", 0) in c.axes]
    assert enter == [FREE[way]] * bool(FREE[way])


def test_what_is_gone_before_a_look_keeps_its_freedom() -> None:
    """One look both ways of which are taken, and a later one that asks for a number."""

    def way(model: Routed, h: Tensor) -> Tensor:
        g = model.parts[1](torch.relu(model.parts[2](h))) if not torch.isnan(h).any() else h
        del h
        return model.parts[0](g) if int(g.sum()) == 123456789 else g

    symmetry = fxrebasin.analyze(routed(way), torch.randn(2, 4).double())
    assert [c.axes[0] for c in symmetry.classes] == [("parts.1.weight", 1)]
    assert "may meet state that was not read" in symmetry.pins["parts.1.weight", 0]


def test_experts_that_were_not_reached_are_named_and_pin_what_they_meet() -> None:
    model = routed(by_argmax)
    with torch.no_grad():
        model.gate.bias[3] = -1e9
    symmetry = fxrebasin.analyze(model, torch.randn(2, 4).double())
    assert any("parts.3.weight" in note and "not read" in note for note in symmetry.notes)
    assert "may meet state that was not read" in symmetry.pins["enter.weight", 0]
    assert symmetry.log10_order() == 0


def given_every_row(model: Routed, expert: int) -> Routed:
    """The model with a gate that chooses one expert for all rows."""
    with torch.no_grad():
        model.gate.bias.fill_(-1e9)
        model.gate.bias[expert] = 0
    return model


@pytest.mark.parametrize(("way", "order"), [(by_one_hot, 8), (by_mask, 8), (where_masked, 1)])
def test_masks_that_choose_nothing_are_turned_round(
    way: Callable[[Routed, Tensor], Tensor], order: int, generator: torch.Generator
) -> None:
    """No input of the analysis gives a row to any expert but the first."""
    symmetry = fxrebasin.analyze(given_every_row(routed(way), 0), torch.randn(2, 4).double())
    assert symmetry.log10_order() == pytest.approx(log10_factorial(order))
    assert not any("not read" in note for note in symmetry.notes)
    other = given_every_row(routed(way), 2)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    for seed in range(2):
        moved = permuted(other, symmetry.random(seed))
        with torch.no_grad():
            torch.testing.assert_close(moved(x), other(x), rtol=1e-9, atol=1e-9)


class Turning(nn.Module):
    """The order of units hangs on a number, and all state is read on both ways."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.enter, self.leave, self.threshold = nn.Linear(4, 8), nn.Linear(8, 3), threshold

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).relu()
        return self.leave(h if float(h.sum()) > self.threshold else h.roll(1, -1))


@pytest.mark.parametrize("threshold", [0.01, 12.0, 20.0])
def test_larger_and_smaller_numbers_than_the_data_have_are_tried(threshold: float) -> None:
    model = Turning(threshold)
    randomise(model.double())
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double()
    symmetry = fxrebasin.analyze(model.eval(), x)
    assert symmetry.log10_order() == 0


def test_rows_that_were_not_reached_are_not_read_because_another_one_is() -> None:
    model = routed(by_row, parts=1)
    symmetry = fxrebasin.analyze(model, torch.zeros(2, 4).double())
    assert any("parts.0.weight were not read, or not all" in note for note in symmetry.notes)
    assert symmetry.log10_order() == 0


@pytest.mark.parametrize("way", [by_argmax, by_one_hot, by_mask])
def test_experts_that_all_are_reached_keep_their_freedom(
    way: Callable[[Routed, Tensor], Tensor],
) -> None:
    model = routed(way, parts=3)
    with torch.no_grad():
        model.gate.weight.copy_(torch.eye(3, 8) * 5)
        model.gate.bias.zero_()
    symmetry = fxrebasin.analyze(model, torch.randn(2, 4).double())
    assert not any("not read" in note for note in symmetry.notes)
    assert symmetry.log10_order() == pytest.approx(log10_factorial(8))


def test_a_branch_that_no_input_took_is_taken() -> None:
    symmetry = fxrebasin.analyze(routed(flipped_if), torch.randn(2, 4).double())
    assert ("enter.weight", 0) in symmetry.pins


def test_the_trace_error_does_not_recommend_what_is_in_doubt() -> None:
    model, other = routed(by_argmax), routed(by_argmax)
    with pytest.raises(fxrebasin.TraceError) as caught:
        fxrebasin.transform(model, ref=other, example_inputs=torch.randn(2, 4).double())
    assert "looks at data" in str(caught.value)
    assert "permute_state_dict" not in str(caught.value)


def test_code_that_was_not_read_from_a_file_goes_its_own_way() -> None:
    """Its lines have no name, by which answers are turned round in runs of their own."""
    names: dict[str, type[nn.Sequential]] = {"Sequential": nn.Sequential}
    exec(
        "class Checked(Sequential):\n"
        "    def forward(self, x):\n"
        "        if not bool((self[0](x).exp() > 0).all()):\n"
        "            raise ValueError('never')\n"
        "        return super().forward(x)",
        names,
    )
    model = names["Checked"](nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    symmetry = fxrebasin.analyze(model, torch.randn(3, 4))
    assert symmetry.log10_order() == pytest.approx(log10_factorial(8))
