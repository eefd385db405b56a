"""The barrier between two models, its picture, and the report of a pair."""

from __future__ import annotations

import copy
import io
import json
import math

import pytest
import torch
from matplotlib import image, rcParams
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import fxrebasin
from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.merge import BarrierCurve, barrier, interpolate, merge_stats, plot_barrier
from tests.support.small_nets import Attention, Residual, unsettled

STEPS = (0.0, 0.5, 1.0)


def images(count: int = 12) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return unsettled(Residual(), 1), unsettled(Residual(), 2)


def score(model: nn.Module) -> tuple[torch.Tensor, float]:
    labels = torch.arange(12) % 5
    logits = model(images())
    assert not logits.requires_grad
    assert not model.training
    return F.cross_entropy(logits, labels), float((logits.argmax(1) == labels).float().mean())


def test_the_barrier_is_measured_against_the_line_between_the_ends() -> None:
    assert BarrierCurve(STEPS, (0.0, 3.0, 2.0), (1.0, 0.4, 1.0)).barrier == 2
    assert BarrierCurve(STEPS, (1.0, 0.5, 1.0)).barrier == 0
    assert BarrierCurve(STEPS, (0.0, 3.0, 2.0), (1.0, 0.4, 1.0)).midpoint == (3.0, 0.4)
    assert BarrierCurve((0.0, 0.4, 0.8, 1.0), (0.0, 1.0, 2.0, 3.0)).midpoint == (1.0, None)
    assert BarrierCurve((0.0, 1.0), (1.0, 2.0)).barrier == 0
    assert math.isnan(BarrierCurve(STEPS, (0.0, math.nan, 2.0)).barrier)
    assert BarrierCurve(STEPS, (0.0, math.inf, 2.0)).barrier == math.inf
    curve = BarrierCurve(STEPS, (0.0, 3.0, 2.0), (1.0, 0.4, 1.0))
    assert json.loads(json.dumps(curve.as_dict())) == {
        "positions": [0, 0.5, 1],
        "losses": [0, 3, 2],
        "accuracies": [1, 0.4, 1],
        "barrier": 2,
    }


def test_every_model_on_the_way_is_evaluated_ends_included() -> None:
    a, b = pair()
    a.train()
    curve = barrier(a, b, score, steps=5)
    assert a.training
    assert curve.positions == (0, 0.25, 0.5, 0.75, 1)
    with torch.no_grad():
        expected = [score(model.eval()) for model in interpolate(a, b, steps=5)]
    assert curve.losses == tuple(float(loss) for loss, _ in expected)
    assert curve.accuracies == tuple(accuracy for _, accuracy in expected)
    only = barrier(a, b, lambda model: score(model)[0], steps=3)
    assert only.accuracies is None
    assert only.losses == curve.losses[::2]


def test_models_are_prepared_first() -> None:
    a, b = pair()

    def prepare(model: nn.Module) -> nn.Module:
        changed = copy.deepcopy(model)
        nn.init.zeros_(changed.head.weight)
        nn.init.zeros_(changed.head.bias)
        return changed

    curve = barrier(a, b, score, steps=3, prepare=prepare)
    assert curve.losses == pytest.approx([math.log(5)] * 3)


def test_what_evaluate_returns_is_checked() -> None:
    a, b = pair()
    for wrong in (None, "low", (1.0, 2.0, 3.0), torch.zeros(2), (1.0, None)):
        with pytest.raises(InputError, match="evaluate has to return a loss, or a loss and an acc"):
            barrier(a, b, lambda model, wrong=wrong: wrong, steps=2)
    with pytest.raises(InputError, match="positions begin at 0, end at 1"):
        barrier(a, b, score, positions=[0.0, 0.5])


def curves() -> tuple[BarrierCurve, BarrierCurve]:
    return (
        BarrierCurve(STEPS, (0.1, 2.0, 0.3), (1.0, 0.1, 0.9)),
        BarrierCurve(STEPS, (0.1, 0.2, 0.3), (1.0, 0.9, 0.9)),
    )


def test_the_picture_has_both_panels_and_is_the_same_every_time(tmp_path) -> None:
    settings = dict(rcParams)
    before, after = curves()
    path = plot_barrier(before, after, tmp_path / "new" / "line.png", title="a pair")
    assert path == tmp_path / "new" / "line.png"
    pixels = image.imread(path)
    assert pixels.shape[:2] == (750, 1860)
    for border in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (border == 1).all()
    again = plot_barrier(before, after, tmp_path / "again.png", title="a pair")
    assert again.read_bytes() == path.read_bytes()
    alone = plot_barrier(BarrierCurve(STEPS, (0.1, 2.0, 0.3)), path=tmp_path / "alone.png")
    assert image.imread(alone).shape[:2] == (750, 930)
    assert dict(rcParams) == settings


def test_the_ends_are_marked_and_the_legend_has_every_barrier(tmp_path) -> None:
    before, after = curves()
    others = {"REPAIR": BarrierCurve(STEPS, (0.1, 0.25, 0.3))}
    path = plot_barrier(before, after, tmp_path / "line.svg", others=others)
    text = path.read_text(encoding="utf-8")
    for words in (
        "A to B: barrier 1.800",
        "A to rebased B: barrier 0.000",
        "REPAIR: barrier 0.050",
        "accuracy",
        "midpoint",
    ):
        assert f"<!-- {words} -->" in text, words
    from fxrebasin.merge.figures import DrawnCurve, draw_losses, new_figure

    axes = new_figure(1, None).add_subplot(1, 1, 1)
    draw_losses(axes, [DrawnCurve(before, "one", "#D55E00")], "loss")
    big = [line for line in axes.lines if line.get_markersize() == 8]
    assert [list(line.get_xdata()) for line in big] == [[0, 1]]
    assert [list(line.get_ydata()) for line in big] == [[0.1, 0.3]]


def test_a_loss_that_is_not_finite_can_be_drawn(tmp_path) -> None:
    plot_barrier(BarrierCurve(STEPS, (0.1, math.inf, 0.3)), path=tmp_path / "inf.png")
    plot_barrier(BarrierCurve(STEPS, (0.1, math.nan, 0.3)), path=tmp_path / "nan.png")
    plot_barrier(BarrierCurve(STEPS, (0.0, 0.0, 0.0)), path=tmp_path / "flat.png")


def test_a_picture_replaces_nothing_unless_asked(tmp_path) -> None:
    before, after = curves()
    (tmp_path / "line.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        plot_barrier(before, after, tmp_path / "line.png")
    assert (tmp_path / "line.png").read_bytes() == b"mine"
    plot_barrier(before, after, tmp_path / "line.png", overwrite=True)
    assert (tmp_path / "line.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(InputError, match="does not have the name of a picture"):
        plot_barrier(before, after, tmp_path / "line.txt")


def printed(table: object) -> str:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def test_the_report_of_a_pair_has_the_figures_of_the_definition() -> None:
    a, b = pair()
    symmetry = fxrebasin.analyze(a, images(2))
    p = fxrebasin.match(b, a, images(2))
    stats = merge_stats(a, b, p, evaluate=score, steps=3)
    moved = p.permute_state_dict(b.state_dict())
    names = [name for name, _ in a.named_parameters()]

    def flat(state, names):
        return torch.cat([state[name].double().flatten() for name in names])

    one, two, three = (flat(state, names) for state in (a.state_dict(), b.state_dict(), moved))
    assert stats.distance_before == pytest.approx(float((one - two).norm()))
    assert stats.distance_after == pytest.approx(float((one - three).norm()))
    assert stats.cosine_before == pytest.approx(float(F.cosine_similarity(one, two, dim=0)))
    assert [c.name for c in stats.classes] == [c.name for c in symmetry.classes]
    for c, agreement in zip(symmetry.classes, stats.classes, strict=True):
        held = [name for name in names if name in dict(c.axes)]
        sides = [flat(state, held) for state in (a.state_dict(), b.state_dict(), moved)]
        assert (agreement.size, agreement.count) == (c.size, c.count)
        assert agreement.parameters == len(held)
        for found, other in ((agreement.before, sides[1]), (agreement.after, sides[2])):
            assert found == pytest.approx(float(F.cosine_similarity(sides[0], other, dim=0)))
    assert stats.barrier_before == barrier(a, b, score, steps=3)
    assert stats.barrier_after == barrier(a, moved, score, steps=3)
    read = json.loads(stats.to_json())
    assert read == json.loads(json.dumps(stats.as_dict()))
    assert read["classes"][0]["name"] == stats.classes[0].name
    text = printed(stats.table())
    for words in (
        "distance",
        "barrier",
        "cosine",
        "accuracy half way",
        *[c.name for c in stats.classes],
    ):
        assert words in text
    assert f"{stats.distance_after:.4g}" in text


def test_the_report_takes_the_rebased_model_in_any_form() -> None:
    torch.manual_seed(1)
    a, b = unsettled(Attention(), 1), unsettled(Attention(), 2)
    ids = torch.arange(10).reshape(2, 5)
    p = fxrebasin.match(b, a, ids)
    expected = merge_stats(a, b, p)
    assert expected.barrier_before is None
    assert expected.as_dict()["barrier_after"] is None
    assert "barrier" not in printed(expected.table())
    graph = fxrebasin.transform(b, a, ids)
    moved = copy.deepcopy(b)
    moved.load_state_dict(graph.state_dict())
    for form in (graph, moved, moved.state_dict()):
        assert merge_stats(a, b.state_dict(), form, example_inputs=ids) == expected
    assert merge_stats(a, a, symmetry_identity(a, ids)).cosine_after == pytest.approx(1)
    with pytest.raises(ArchitectureMismatchError):
        merge_stats(a, Residual(), p)
    with pytest.raises(ArchitectureMismatchError, match="another model"):
        merge_stats(*pair(), p)


def symmetry_identity(model: nn.Module, ids: torch.Tensor) -> fxrebasin.Permutation:
    return fxrebasin.analyze(model, ids).identity()
