"""The demo: its data, training, curves, picture and table, and the whole on tiny networks."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from matplotlib import image
from rich.console import Console

from fxrebasin.demo.barrier import STATISTICS_IMAGES, evaluate, walk
from fxrebasin.demo.data import load_digits
from fxrebasin.demo.networks import DigitsMLP
from fxrebasin.demo.plot import Panel, draw, line
from fxrebasin.demo.results import results_table
from fxrebasin.demo.run import PICTURE, run_demo
from fxrebasin.demo.training import Recipe, train
from fxrebasin.errors import InputError
from fxrebasin.merge import BarrierCurve, recalibrate
from tests.support.tiny_demo import TINY


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_digits_are_split_the_same_way_every_time(digits):
    again = load_digits()
    assert digits.train_images.equal(again.train_images)
    assert digits.test_labels.equal(again.test_labels)
    assert digits.test_images.shape == (450, 1, 8, 8)
    assert len(digits.train_labels) + len(digits.test_labels) == 1797
    assert abs(float(digits.train_images.mean())) < 1e-5
    assert set(digits.test_labels.tolist()) == set(range(10))


@pytest.mark.parametrize("subject", TINY, ids=lambda subject: subject.file_name)
def test_training_depends_on_the_seed_alone(subject, digits):
    def trained(seed):
        return train(subject.build, digits, subject.recipe, seed).state_dict()

    before = torch.get_rng_state()
    first = trained(1)
    assert torch.get_rng_state().equal(before)
    torch.rand(1)
    again, other = trained(1), trained(2)
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["head.weight"].equal(other["head.weight"])


def test_training_learns_and_reports_every_epoch(digits):
    epochs = []
    model = train(
        lambda: DigitsMLP(32),
        digits,
        Recipe(epochs=4, learning_rate=1e-2),
        0,
        lambda: epochs.append(1),
    )
    assert len(epochs) == 4
    assert not model.training
    assert evaluate(model, digits.test_images, digits.test_labels)[1] > 0.9


def test_the_step_size_warms_up_and_decays():
    recipe = Recipe(epochs=1, warm_up=0.25)
    assert recipe.factor(0.0) == 0
    assert recipe.factor(0.125) == 0.5
    assert recipe.factor(0.25) == 1
    assert recipe.factor(1.0) == pytest.approx(0)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_walk_starts_at_a_and_ends_at_b(digits, recompute):
    subject = TINY[1]
    models = [train(subject.build, digits, subject.recipe, seed) for seed in (0, 1)]
    states = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    curve = walk(*models, digits, steps=3, recompute_statistics=recompute)
    assert curve.positions == (0, 0.5, 1)
    for model, state, index in zip(models, states, (0, -1), strict=True):
        assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
        if recompute:
            model = recalibrate(model, [digits.train_images[:STATISTICS_IMAGES]])
        loss, accuracy = evaluate(model, digits.test_images, digits.test_labels)
        assert curve.losses[index] == pytest.approx(loss, rel=1e-6)
        assert curve.accuracies[index] == accuracy


def panel(title="a panel"):
    steps = (0.0, 0.5, 1.0)
    low = BarrierCurve(steps, (0.1, 0.2, 0.1), (1.0, 0.9, 1.0))
    high = BarrierCurve(steps, (0.1, 2.0, 0.1), (1.0, 0.1, 1.0))
    return Panel(title, (line(high, rebased=False), line(low, rebased=True, recomputed=True)))


def test_labels_tell_the_lines_apart():
    before, after = (drawn.label for drawn in panel().lines)
    assert before == "A to B: barrier 1.900"
    assert after == "A to rebased B, BatchNorm statistics recomputed: barrier 0.100"


def test_the_picture_is_the_same_every_time_and_nothing_touches_its_border():
    png = draw([panel(), panel()])
    assert png == draw([panel(), panel()])
    pixels = image.imread(io.BytesIO(png))
    assert pixels.shape[:2] == (750, 1860)
    assert pixels.std() > 0.05
    for border in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert np.all(border == 1)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo") / "out", subjects=TINY)


def test_the_demo_writes_its_picture_and_one_onnx_file_each(result):
    folder = result.picture.parent
    assert {path.name for path in folder.iterdir()} == {PICTURE, "mlp.onnx", "resnet.onnx"}
    assert image.imread(result.picture).ndim == 3
    for outcome in result.outcomes:
        onnx.checker.check_model(str(outcome.onnx_file))


def test_the_demo_proves_equivalence_and_comes_closer(result):
    mlp, resnet = result.outcomes
    for outcome in result.outcomes:
        assert outcome.float64.passed
        assert outcome.float64.max_rel <= 1e-10
        assert outcome.onnxruntime.passed
        assert outcome.distances[1] < outcome.distances[0]
        assert outcome.plain.before.losses[0] == outcome.plain.after.losses[0]
        assert outcome.plain.before.losses[-1] == pytest.approx(
            outcome.plain.after.losses[-1], rel=1e-4
        )
    # Three hidden layers; a stem with its residual stream and block, twice.
    assert (mlp.classes, resnet.classes) == (3, 4)
    assert mlp.log10_order == pytest.approx(3 * np.log10(np.arange(1, 17)).sum())
    assert mlp.recomputed is None
    assert resnet.recomputed is not None


def test_the_table_fits_a_terminal_and_says_everything(result):
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(results_table(result.outcomes))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("permutation classes", "log10", "distance", "midpoint loss", "midpoint accuracy"):
        assert words in text
    for words in ("float64", "onnxruntime", "barrier", "of 512 training images", "pass", "→"):
        assert words in text
    assert "…" not in text


def test_the_demo_replaces_nothing_unless_asked(tmp_path):
    (tmp_path / PICTURE).write_bytes(b"mine")
    with pytest.raises(InputError, match=r"barrier\.png exists already.*overwrite"):
        run_demo(tmp_path, subjects=TINY)
    assert [path.name for path in tmp_path.iterdir()] == [PICTURE]
    assert (tmp_path / PICTURE).read_bytes() == b"mine"


def test_the_demo_needs_a_folder(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="is a file, not a folder"):
        run_demo(tmp_path / "taken", subjects=TINY)


def test_the_demo_needs_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(InputError, match=r"pip install 'fxrebasin\[demo\]'"):
        run_demo(Path(tmp_path / "out"), subjects=TINY)
    assert not (tmp_path / "out").exists()
