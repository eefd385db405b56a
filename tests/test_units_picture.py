"""Pictures of how alike units are: what is in them, how they look, and when they are refused."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps, image, rcParams
from torch import nn

import fxrebasin
from fxrebasin.alignment import Alignment
from fxrebasin.colours import Meaning, colour_of
from fxrebasin.errors import InputError
from fxrebasin.merge.likeness import CELLS, Comparison, chosen
from fxrebasin.merge.matrices import MOST, figure_of, scale_of
from fxrebasin.merge.states import own_state
from tests.support.commands import invoke, lay_out, load


class Net(nn.Module):
    """One hidden layer with statistics and biases."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu())


class Deep(nn.Module):
    """More classes than a picture has room for."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5)) for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def drawn_at_random(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in own_state(model).values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_()
    return model.eval()


def planted(model: nn.Module) -> tuple[nn.Module, fxrebasin.Permutation]:
    """The model with its units in another order, and what puts them back."""
    p = fxrebasin.analyze(model).random(5)
    other = copy.deepcopy(model)
    other.load_state_dict(p.permute_state_dict(model.state_dict()))
    return other, p.inverse()


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)


def compared(a: nn.Module, b: nn.Module, p: fxrebasin.Permutation | Alignment) -> Comparison:
    return Comparison.of(own_state(a), own_state(b), p)


def test_cells_hold_the_cosines_of_all_weights_of_two_units() -> None:
    a, b = drawn_at_random(Net(), 1), drawn_at_random(Net(), 2)
    p = fxrebasin.match(b, ref=a)
    comparison = compared(a, b, p)
    (c,) = comparison.classes
    found = comparison.likeness(c)
    order = torch.from_numpy(p.arrays[c.name])

    def units(model: Net) -> torch.Tensor:
        return torch.cat([model.first.weight, model.last.weight.T], dim=1).detach()

    assert not p.is_identity
    torch.testing.assert_close(found.before, cosines(units(a), units(b)))
    torch.testing.assert_close(found.after, cosines(units(a), units(b)[order]))
    assert found.own_before == pytest.approx(float(found.before.diagonal().mean()))
    assert found.own_after == pytest.approx(float(found.after.diagonal().mean()))
    assert found.own_after > found.own_before


def test_what_only_has_biases_is_compared_by_them() -> None:
    a = drawn_at_random(Net())
    b, p = planted(a)
    only = {name: t for name, t in own_state(a).items() if t.dim() < 2}
    others = {name: t for name, t in own_state(b).items() if t.dim() < 2}
    rebased = {name: p.permute_state_dict(own_state(b))[name] for name in others}
    (c,) = p.classes
    found = Comparison(only, others, rebased, p).likeness(c)
    assert found.own_after == pytest.approx(1, abs=1e-6)
    assert found.own_before < 0.9


def test_a_cell_of_several_units_holds_the_largest_by_magnitude() -> None:
    width = 2 * CELLS + 37
    a, b = drawn_at_random(Net(width), 1), drawn_at_random(Net(width), 2)
    comparison = compared(a, b, fxrebasin.match(b, ref=a))
    (c,) = comparison.classes
    found = comparison.likeness(c).before.numpy()

    def units(model: Net) -> torch.Tensor:
        return torch.cat([model.first.weight, model.last.weight.T], dim=1).detach()

    every = cosines(units(a), units(b)).numpy()
    cell = np.arange(width) * CELLS // width
    assert found.shape == (CELLS, CELLS)
    for row in range(0, CELLS, 7):
        for column in range(0, CELLS, 5):
            inside = every[np.ix_(cell == row, cell == column)].ravel()
            expected = inside[np.abs(inside).argmax()]
            assert found[row, column] == pytest.approx(expected, abs=1e-5)


def test_copies_follow_each_other() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True)
    a = drawn_at_random(layer)
    p = fxrebasin.analyze(a, torch.randn(2, 3, 8)).random(5)
    b = copy.deepcopy(a)
    b.load_state_dict(p.permute_state_dict(a.state_dict()))
    comparison = compared(a, b, p.inverse())
    inside = [c for c in comparison.classes if c.count > 1]
    assert inside
    for c in comparison.classes:
        found = comparison.likeness(c)
        assert found.before.shape == (c.count * c.size,) * 2
        torch.testing.assert_close(found.after.diagonal(), torch.ones(c.count * c.size))
    assert any(comparison.likeness(c).own_before < 0.9 for c in inside)


def test_signs_count_where_an_alignment_flips_them() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
    a = drawn_at_random(net)
    symmetry = fxrebasin.analyze(a, symmetry="signed")
    (c,) = symmetry.classes
    signs = torch.tensor([[1.0, -1, 1, -1, -1, 1]], dtype=torch.float64)
    flip = Alignment(symmetry.identity(), symmetry.groups, {c.name: signs})
    b = copy.deepcopy(a)
    b.load_state_dict(flip.apply(a.state_dict()))
    found = compared(a, b, flip.inverse()).likeness(c)
    assert found.kind is c.kind
    torch.testing.assert_close(found.before.diagonal(), signs[0].float())
    torch.testing.assert_close(found.after.diagonal(), torch.ones(6))


def test_the_picture_shows_the_diagonal_in_full_colour(tmp_path) -> None:
    a = drawn_at_random(Net())
    b, p = planted(a)
    comparison = compared(a, b, p)
    (c,) = comparison.classes
    found = comparison.likeness(c)
    figure = figure_of([found], scale_of([found]), "title", "words")
    path = fxrebasin.plot_alignment(a, b, p, tmp_path / "new" / "units.png")
    pixels = image.imread(path)[..., :3]
    high, wide = pixels.shape[:2]
    full = np.array(colormaps["RdBu_r"](1.0)[:3])
    for axes, cells in zip(figure.axes, (found.before, found.after), strict=False):
        box = axes.get_position()
        side = box.width * wide / 6
        for row in range(6):
            for column in range(6):
                y = (1 - box.y1) * high + (row + 0.5) * side
                x = box.x0 * wide + (column + 0.5) * side
                near = np.abs(pixels[int(y), int(x)] - full).max() < 0.02
                assert near == (float(cells[row, column]) > 0.99), (row, column)
    for border in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (border == 1).all()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_files_are_the_same_every_time(tmp_path, kind: str) -> None:
    settings = dict(rcParams)
    a = drawn_at_random(Net())
    b, p = planted(a)
    first, second = (
        fxrebasin.plot_alignment(a.state_dict(), b, p, tmp_path / f"{n}.{kind}").read_bytes()
        for n in range(2)
    )
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert not re.search(rb"CreationDate|dc:date", first)
    assert dict(rcParams) == settings


def test_more_classes_than_there_is_room_for(tmp_path) -> None:
    a = drawn_at_random(Deep(8))
    b, p = planted(a)
    names = [c.name for c in p.classes]
    some = [c.name for c in chosen(compared(a, b, p), MOST)]
    assert len(some) == MOST
    assert {names[0], names[-1]} <= set(some)
    assert some == [name for name in names if name in some]
    text = fxrebasin.plot_alignment(a, b, p, tmp_path / "some.svg").read_text()
    assert f"<!-- {len(names) - MOST} further classes not drawn here; a PDF has all -->" in text
    assert text.count("<!-- after: 1.00 -->") == MOST
    two = fxrebasin.plot_alignment(a, b, p, tmp_path / "two.svg", classes=names[3:5]).read_text()
    assert "further" not in two
    assert [name for name in names if f"<!-- {name} -->" in two] == names[3:5]
    pages = fxrebasin.plot_alignment(a, b, p, tmp_path / "all.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", pages)) == 2


def test_what_cannot_be_drawn_is_refused_before_any_work(tmp_path) -> None:
    a = drawn_at_random(Net())
    b, p = planted(a)
    with pytest.raises(InputError, match=r"expected one of \.png, \.svg, \.pdf"):
        fxrebasin.plot_alignment(None, None, p, tmp_path / "units.jpg")
    with pytest.raises(InputError, match="nowhere is no class"):
        fxrebasin.plot_alignment(a, b, p, tmp_path / "units.png", classes=["nowhere"])
    with pytest.raises(InputError, match="sequence of names; found the text"):
        fxrebasin.plot_alignment(a, b, p, tmp_path / "units.png", classes="first.weight[0]")
    with pytest.raises(InputError, match="a holds no tensors"):
        fxrebasin.plot_alignment({}, b, p, tmp_path / "units.png")
    with pytest.raises(InputError, match="no class whose units could be drawn"):
        fxrebasin.plot_alignment({"other": torch.ones(2)}, b, p, tmp_path / "units.png")
    assert not list(tmp_path.iterdir())
    (tmp_path / "units.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        fxrebasin.plot_alignment(None, None, p, tmp_path / "units.png")
    fxrebasin.plot_alignment(a, b, p, tmp_path / "units.png", overwrite=True)
    assert (tmp_path / "units.png").read_bytes()[1:4] == b"PNG"


def test_every_meaning_and_every_further_line_has_a_look_of_its_own() -> None:
    assert len({meaning.value for meaning in Meaning}) == len(Meaning)
    looks = [colour_of(number) for number in range(16)]
    assert len(set(looks)) == 16
    assert not {meaning.value for meaning in Meaning} & {colour for colour, _ in looks}


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets", None)
    lay_out(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("transform", "nets:Net", "--model-b", "c.pt", "--ref", "a.pt", "--out", "out.pt"),
        ("merge", "nets:Net", "a.pt", "c.pt", "--out", "out.pt"),
        ("interpolate", "nets:Net", "a.pt", "c.pt", "--out", "out.pt"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_draw_the_units_that_they_aligned(checkpoints, arguments) -> None:
    text = invoke(*arguments, "--picture", "units.svg").output
    assert "wrote units.svg" in text
    drawn = Path("units.svg").read_text()
    import nets

    a, c = nets.Net(), nets.Net()
    a.load_state_dict(load("a.pt"))
    c.load_state_dict(load("c.pt"))
    p = fxrebasin.match(c, ref=a)
    for found in map(compared(a, c, p).likeness, p.classes):
        assert f"<!-- {found.name} -->" in drawn
        assert f"<!-- before: {found.own_before + 0:.2f} -->" in drawn
        assert f"<!-- after: {found.own_after:.2f} -->" in drawn
    assert "<!-- A: a.pt   B: c.pt -->" in drawn
    refused = invoke(*arguments, "--picture", "units.jpg", code=2).output
    assert "has to end in .png or .svg or .pdf" in " ".join(refused.split())


@pytest.mark.parametrize("command", ["merge", "interpolate"])
def test_units_that_nothing_aligns_are_not_drawn(checkpoints, command: str) -> None:
    arguments = ("nets:Net", "a.pt", "c.pt", "--out", "out.pt", "--method", "none")
    text = invoke(command, *arguments, "--picture", "units.png", code=2).output
    assert "leave one of them out" in " ".join(text.split())
    assert not Path("out.pt").exists()


def test_the_page_on_matching_shows_the_call(tmp_path, monkeypatch) -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "matching.md"
    section = page.read_text("utf-8").split("## See what was matched")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    a = drawn_at_random(Net())
    b, p = planted(a)
    exec(code, {"fxrebasin": fxrebasin, "model_a": a, "model_b": b, "p": p})
    assert Path("units.png").read_bytes()[1:4] == b"PNG"
