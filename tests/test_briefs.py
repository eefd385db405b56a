"""Objects that people look at show themselves in a few lines, in a terminal and in a notebook."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxrebasin
from fxrebasin.facts import Brief, facts_text
from fxrebasin.models.by_name import build_model

CLASSES = {
    value
    for value in (getattr(fxrebasin, name) for name in fxrebasin.__all__)
    if isinstance(value, type) and not issubclass(value, Exception)
}


def net(seed: int) -> nn.Module:
    """With a stream that 400 tensors share, and <names> that HTML would take for tags."""
    torch.manual_seed(seed)
    blocks = nn.Sequential()
    for number in range(200):
        blocks.add_module(f"a<b>&{number}", nn.Linear(4, 4))
    return blocks


@pytest.fixture(scope="module")
def objects() -> list[object]:
    a, b = net(0), net(1)
    graph = fxrebasin.transform(b, a, torch.randn(2, 4))
    report = graph.meta["fxrebasin"]

    def evaluate(model):
        return model(torch.ones(3, 4)).square().mean(), 0.5

    stats = fxrebasin.merge_stats(a, b, graph, evaluate=evaluate, steps=31)
    found = [
        fxrebasin.analyze(build_model("torchvision:resnet18")),
        fxrebasin.analyze(b, torch.randn(2, 4)),
        report,
        report.equivalence,
        report.certificate,
        *report.certificate.classes[:2],
        stats,
        stats.barrier_before,
        fxrebasin.match(b, a, torch.randn(2, 4), symmetry="signed"),
    ]
    found.append(fxrebasin.analyze(build_model("torchvision:resnet18")).classes[0])
    return found


def test_every_public_class_is_among_them(objects):
    assert {type(value) for value in objects} == CLASSES
    assert all(isinstance(value, Brief) for value in objects)


def test_they_fit_ten_lines_of_a_terminal(objects):
    for value in objects:
        lines = repr(value).splitlines()
        assert 1 <= len(lines) <= 10, repr(value)
        assert max(map(len, lines)) <= 120, repr(value)
        assert type(value).__name__ in lines[0]


def test_what_they_show_is_what_they_hold(objects):
    symmetry = objects[0]
    text = repr(symmetry)
    for words in ("12 classes", "5934.493", "11689512"):
        assert words in text.replace(",", "")
    assert "20 " not in repr(objects[-1]).split(";")[0]
    assert "64 units" in repr(objects[-1])
    assert "barrier" in repr(objects[7])


def test_notebooks_get_tables_without_tags_of_strangers(objects):
    for value in objects:
        html = value._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == html.count("</tr>") > 0
        assert "a<b>" not in html
    assert "a&lt;b&gt;&amp;" in objects[5]._repr_html_()


def test_long_texts_are_broken_at_the_width_of_the_terminal():
    facts = [("note", "one two three four five six seven eight nine ten " * 3), ("x", "")]
    lines = facts_text(facts, width=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("      ") for line in lines[1:-1])
    assert len(facts_text(facts).splitlines()) == 2
