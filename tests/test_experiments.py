"""The experiments: their quick forms run, data are read as distributed, text is true."""

from __future__ import annotations

import csv
import gzip
import pickle
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.experiments import gpt, mlp_weight_decay, peers, verdicts
from benchmarks.experiments.__main__ import main
from benchmarks.experiments.data.cifar import FOLDER_10, FOLDER_100, load_cifar
from benchmarks.experiments.data.find import load_images
from benchmarks.experiments.data.imagenet import load_imagenet
from benchmarks.experiments.data.mnist import NAMES, load_mnist
from benchmarks.experiments.data.source import Batches, InMemory, Subset, fingerprint
from benchmarks.experiments.data.text import load_text
from benchmarks.experiments.figures import Dots, Panel, Series, draw, draw_dots
from benchmarks.experiments.lines import AFTER, BEFORE, PLAIN, Line
from benchmarks.experiments.networks.resnet import SpeedyResNet
from benchmarks.experiments.report import ExperimentError, Report, require
from benchmarks.experiments.store import Store
from benchmarks.experiments.training import Subject, Training, fresh, train
from fxrebasin.errors import InputError
from fxrebasin.merge import BarrierCurve

_TWO_FILES = ("--checkpoint-a", __file__, "--checkpoint-b", __file__)
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Where the quick forms keep what they train, so that `peers` has nothing to train."""
    return tmp_path_factory.mktemp("trained")


def quick(name, folder, trained, *more):
    arguments = [name, "--quick", "--output", str(folder), "--cache", str(trained), *more]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return folder / name


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def check_files(folder, tables, pictures):
    page = (folder / f"{folder.name}.md").read_text()
    assert f"Made by `python -m benchmarks.experiments {folder.name} --quick` in" in page
    assert "scikit-learn's digits" in page or "standard library" in page or folder.name == "peers"
    for name in tables:
        assert rows_of(folder / f"{name}.csv")
    for name in pictures:
        assert (folder / f"{name}.png").read_bytes().startswith(PNG)
        assert f"]({name}.png)" in page
    assert {path.stem for path in folder.iterdir()} == {folder.name, *tables, *pictures}
    return page


def test_mlp_weight_decay(tmp_path, trained):
    folder = quick("mlp-weight-decay", tmp_path, trained)
    page = check_files(
        folder, ["points", "barriers", "merge_many"], ["lines", "barrier", "merge_many"]
    )
    assert "3 networks were rebased" in page
    lines = rows_of(folder / "barriers.csv")
    assert {line["setting"] for line in lines} == {"0.0", "0.01", "0.0/16"}
    for setting in ("0.0", "0.01"):
        found = {x["line"]: float(x["barrier"]) for x in lines if x["setting"] == setting}
        assert found[AFTER] < found[BEFORE]
    merged = rows_of(folder / "merge_many.csv")
    assert [(m["models"], m["method"]) for m in merged[:2]] == [("2", "merge_many"), ("2", "mean")]
    for m in merged:
        ratio = float(m["loss_models"]) / float(m["loss_merged"])
        assert float(m["loss_normalised"]) == pytest.approx(ratio)


def test_gpt(tmp_path, trained):
    folder = quick("gpt", tmp_path, trained)
    check_files(folder, ["points", "barriers", "equivalence"], ["lines"])
    changes = [float(row["loss_change"]) for row in rows_of(folder / "equivalence.csv")]
    assert len(changes) == 3
    assert max(changes) <= gpt.SAME_LOSS


def test_resnet_filter_size(tmp_path, trained):
    folder = quick("resnet-filter-size", tmp_path, trained)
    check_files(folder, ["points", "barriers", "merge_many"], ["lines", "barrier", "merge_many"])
    methods = [row["method"] for row in rows_of(folder / "merge_many.csv")]
    assert methods == ["MergeMany", "plain mean", "one of the models", "from scratch"]


def test_torchvision_pairs(tmp_path, trained):
    folder = quick("torchvision-pairs", tmp_path, trained)
    check_files(folder, ["points", "barriers"], ["lines"])


def test_symmetries(tmp_path, trained):
    kept = tmp_path / "kept"
    more = ("--networks", "tanh MLP, Llama", "--keep", str(kept))
    folder = quick("symmetries", tmp_path, trained, *more)
    page = (folder / "symmetries.md").read_text()
    assert "symmetries --networks 'tanh MLP, Llama' --quick` in" in page
    assert "tanh MLP: " in page
    rows = rows_of(folder / "barriers.csv")
    found = {(row["network"], row["way"]): float(row["barrier"]) for row in rows}
    assert found["Llama", "learned, 30 steps (all)"] < found["Llama", "weight (permutation)"]
    assert found["tanh MLP", "weight (signed)"] < found["tanh MLP", "untouched"]
    assert max(float(row["error"]) for row in rows) <= 1e-12
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert len(before) == len(rows)
    assert quick("symmetries", tmp_path, trained, *more) == folder  # from what is kept
    assert rows_of(folder / "barriers.csv") == rows
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_a_network_that_does_not_exist_is_refused(tmp_path):
    arguments = ["symmetries", "--quick", "--networks", "brain", "--output", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "no network 'brain'; there are: ViT, GPT, Llama" in result.output


def test_peers_take_the_pairs_of_the_others(tmp_path, trained):
    before = {path.name for path in trained.iterdir()}
    folder = quick("peers", tmp_path, trained)
    page = check_files(folder, ["barriers", "verdicts"], ["barriers"])
    assert {path.name for path in trained.iterdir()} == before
    assert "rebasin was not run" in page
    assert "plain git-re-basin on gpt: " in page


@pytest.mark.slow
def test_the_worse_checkpoint_is_rebased_to_the_better(tmp_path, trained, monkeypatch):
    from benchmarks.experiments import torchvision_pairs

    monkeypatch.setattr(torchvision_pairs, "_FULL_SIDE", 32)
    from torchvision import models

    for number, letter in enumerate("ab"):
        torch.manual_seed(number)
        state = models.mobilenet_v3_large(num_classes=10).state_dict()
        torch.save(state, tmp_path / f"{letter}.pt")
    files = [f"--checkpoint-{letter}={tmp_path / letter}.pt" for letter in "ab"]
    options = ["--models", "mobilenet_v3_large", "--images", "16", *files]
    monkeypatch.setattr(torchvision_pairs, "_assert_robust", lambda study: None)
    folder = quick("torchvision-pairs", tmp_path / "out", trained, *options)
    page = (folder / "torchvision-pairs.md").read_text()
    assert "The weights of a.pt and b.pt; A is the better of them" in page
    lines = [x for x in rows_of(folder / "barriers.csv") if x["line"] == BEFORE]
    assert all(float(line["loss_a"]) <= float(line["loss_b"]) for line in lines[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "alexnet"], "no model alexnet; there are vit_b_16"),
        (["--checkpoint-a", __file__], "pass --checkpoint-a and --checkpoint-b, or neither"),
        (
            [*_TWO_FILES, "--models", "vit_b_16,mobilenet_v3_large"],
            "checkpoints are of one model; name it with --models",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    arguments = ["torchvision-pairs", "--quick", "--output", str(tmp_path), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert message in result.output


# Data


def write_idx(path, values, pack):
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}i", *values.shape)
    content = header + values.tobytes()
    if pack:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.fixture
def mnist(tmp_path):
    random = np.random.default_rng(0)
    for number, names in enumerate(NAMES.values()):
        pixels = random.integers(0, 256, (5 + number, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / names[0], pixels, pack=number == 0)
        write_idx(tmp_path / names[1], np.arange(5 + number, dtype=np.uint8), pack=number == 1)
    return tmp_path


def test_mnist_is_read_as_distributed(mnist):
    train, test = load_mnist(mnist)
    first = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    assert torch.equal(train.inputs, torch.from_numpy(first).float().div(255).unsqueeze(1))
    assert train.targets.tolist() == [0, 1, 2, 3, 4]
    assert len(test) == 6
    data = load_images(mnist)
    assert (data.name, data.shape, data.classes, data.embedded) == ("MNIST", (1, 28, 28), 10, False)
    assert float(data.train.inputs.mean()) == pytest.approx(0, abs=1e-6)
    assert float(data.train.inputs.std()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "says that it holds"),
        (lambda content: b"\0\0\x0d" + content[3:], "no IDX file of unsigned bytes"),
        (lambda content: b"", "no IDX file of unsigned bytes"),
        (lambda content: content[:6], "ends within its header"),
    ],
)
def test_damaged_mnist_is_refused(mnist, damage, message):
    path = mnist / NAMES["test"][0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_mnist(mnist)


def test_missing_and_unpackable_files_of_mnist_are_refused(mnist):
    packed = mnist / f"{NAMES['train'][0]}.gz"
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(InputError, match="cannot be read"):
        load_mnist(mnist)
    packed.unlink()
    with pytest.raises(InputError, match="holds neither"):
        load_mnist(mnist)


def python_2(content):
    """A pickle whose keys are the strings of Python 2, as in the files that are distributed."""
    parts = b"".join(
        b"U" + bytes([len(key)]) + key.encode() + pickle.dumps(value, protocol=2)[2:-1]
        for key, value in content.items()
    )
    return b"\x80\x02}(" + parts + b"u."


def write_cifar(folder, which, count=3):
    inner = folder / which
    inner.mkdir()
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    label = "labels"
    if which == FOLDER_100:
        names, label = ["train", "test"], "fine_labels"
    for number, name in enumerate(names):
        pixels = np.full((count, 3072), number, dtype=np.uint8)
        content = {"data": pixels, label: list(range(count))}
        (inner / name).write_bytes(python_2(content))


@pytest.mark.parametrize(("which", "size", "classes"), [(FOLDER_10, 15, 10), (FOLDER_100, 3, 100)])
def test_cifar_is_read_as_distributed(tmp_path, which, size, classes):
    write_cifar(tmp_path, which)
    train, test = load_cifar(tmp_path, which)
    assert train.inputs.shape == (size, 3, 32, 32)
    assert train.targets.tolist() == [0, 1, 2] * (size // 3)
    assert float(test.inputs[0, 0, 0, 0]) == pytest.approx((1 if classes == 100 else 5) / 255)
    inner, _ = load_cifar(tmp_path / which, which)
    assert torch.equal(inner.inputs, train.inputs)


def test_a_pickle_that_wants_more_than_arrays_is_refused(tmp_path):
    write_cifar(tmp_path, FOLDER_100)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    (tmp_path / FOLDER_100 / "test").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(InputError, match="asks for pathlib"):
        load_cifar(tmp_path, FOLDER_100)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no entries 'data' and 'fine_labels'"),
        ({"data": np.zeros((1, 5), np.uint8), "fine_labels": [0]}, "expected uint8 of shape"),
        ({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}, "from 0 to 99"),
    ],
)
def test_damaged_cifar_is_refused(tmp_path, content, message):
    write_cifar(tmp_path, FOLDER_100)
    (tmp_path / FOLDER_100 / "train").write_bytes(python_2(content))
    with pytest.raises(InputError, match=message):
        load_cifar(tmp_path, FOLDER_100)
    (tmp_path / FOLDER_100 / "train").write_bytes(b"not a pickle")
    with pytest.raises(InputError, match="is no file of CIFAR"):
        load_cifar(tmp_path, FOLDER_100)


def write_imagenet(folder):
    for part in ("train", "val"):
        for number, name in enumerate(("n01", "n02")):
            (folder / part / name).mkdir(parents=True)
            image = Image.new("RGB", (300, 260), (255 * number, 0, 0))
            image.save(folder / part / name / "x.JPEG")


def test_imagenet_is_read_as_laid_out(tmp_path):
    write_imagenet(tmp_path)
    data = load_images(tmp_path)
    assert (data.name, data.shape, data.classes) == ("ImageNet", (3, 224, 224), 2)
    images, labels = data.test.batch(torch.tensor([1, 0]))
    assert images.shape == (2, 3, 224, 224)
    assert labels.tolist() == [1, 0]
    assert float(images[0, 0, 0, 0]) == pytest.approx((1 - 0.485) / 0.229, abs=0.05)


def test_damaged_imagenet_is_refused(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "val" / "n02" / "x.JPEG").write_bytes(b"no image")
    _, test = load_imagenet(tmp_path)
    with pytest.raises(InputError, match="cannot be read as an image"):
        test.batch(torch.tensor([1]))
    (tmp_path / "val" / "n03").mkdir()
    with pytest.raises(InputError, match="in one only: n03"):
        load_imagenet(tmp_path)


def test_a_folder_must_hold_exactly_one_data_set(tmp_path, mnist):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no data set that is known"):
        load_images(tmp_path / "empty")
    write_cifar(mnist, FOLDER_10)
    with pytest.raises(InputError, match="holds MNIST and CIFAR-10"):
        load_images(mnist)


def test_images_are_resized_and_repeated_over_channels():
    data = load_images(None, side=16, channels=3)
    assert data.shape == (3, 16, 16)
    images, _ = data.test.batch(torch.arange(2))
    assert torch.equal(images[:, 0], images[:, 2])


def test_text_is_cut_into_pieces_and_every_tenth_file_is_held_out(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.txt").write_bytes(bytes([number]) * 10)
    data = load_text(tmp_path, length=4, most=(3, 10))
    assert (len(data.train), len(data.test)) == (3, 4)
    held_out = {int(x) for inputs, _ in Batches(data.test, 2) for x in inputs.flatten()}
    assert held_out == {9, 19}
    inputs, targets = data.train.batch(torch.tensor([0]))
    assert inputs.tolist() == [[0, 0, 0, 0]]
    assert targets.tolist() == [[0, 0, 0, 0]]
    with pytest.raises(InputError, match="at least 1001 are needed"):
        load_text(tmp_path, length=1000)


# Parts


def test_taps_that_see_only_padding_change_nothing():
    for kernel in (3, 4, 9):
        net = SpeedyResNet(channels=1, width=2, kernel=kernel).eval()
        plain = SpeedyResNet(channels=1, width=2, kernel=kernel, plain=True).eval()
        plain.load_state_dict(net.state_dict())
        images = torch.randn(2, 1, 9, 8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
            expected = plain(images)
        torch.testing.assert_close(net(images), expected)


def test_the_whitening_layer_whitens():
    images = load_images(None).train.inputs
    net = SpeedyResNet(channels=1, width=2)
    net.set_whitening(images)
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).reshape(-1, 4)
    out = patches @ net.whiten.weight[:4].reshape(4, 4).T
    covariance = torch.cov(out.T)
    off = covariance - torch.diag(covariance.diag())
    assert float(off.abs().max()) < 1e-3
    assert float((covariance.diag() - 1).abs().max()) < 0.2


def digits_subject(epochs=1):
    return Subject("mlp", {"inputs": 64, "width": 6, "classes": 10}, Training(epochs=epochs))


def test_what_is_trained_once_is_read_again(tmp_path, monkeypatch):
    source = Subset(load_images(None).train, torch.arange(128))
    store = Store(tmp_path)
    first = store.trained(digits_subject(), source, seed=3)
    monkeypatch.setattr("benchmarks.experiments.store.train", None)
    again = store.trained(digits_subject(), source, seed=3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not again.training
    for other in ((digits_subject(2), source, 3), (digits_subject(), source, 4)):
        with pytest.raises(TypeError):
            store.trained(*other)
    fewer = Subset(source, torch.arange(127))
    with pytest.raises(TypeError):
        store.trained(digits_subject(), fewer, 3)


def test_training_repeats_and_leaves_its_start_and_the_generator_alone():
    source = Subset(load_images(None).train, torch.arange(128))
    subject = digits_subject()
    start = fresh(subject, source, seed=0)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    state = torch.get_rng_state()
    one, two = (train(start, source, subject.training, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in start.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.sequential[1].weight, start.sequential[1].weight)


def test_coupled_weight_decay_is_in_the_gradient():
    source = Subset(load_images(None).train, torch.arange(64))
    start = fresh(digits_subject(), source, seed=0)
    coupled, decoupled = (
        train(start, source, Training(epochs=1, weight_decay=0.5, coupled=c, constant=True), 0)
        for c in (True, False)
    )
    weights = [
        (m.sequential[1].weight - start.sequential[1].weight).detach() for m in (coupled, decoupled)
    ]
    # One step of Adam moves every weight by the learning rate, whatever the size of its gradient.
    assert float(weights[0].abs().max()) == pytest.approx(1e-3, rel=1e-2)
    assert not torch.allclose(*weights)


def test_fingerprints_differ():
    items = InMemory(torch.zeros(4, 2), torch.arange(4))
    moved = replace(items, targets=torch.tensor([0, 1, 3, 2]))
    assert fingerprint(items) == fingerprint(items)
    assert fingerprint(items) != fingerprint(moved)


def line(name, losses, accuracies=(0.9, 0.5, 0.9), setting="0.1", seed=0):
    return Line(setting, seed, name, PLAIN, BarrierCurve((0.0, 0.5, 1.0), losses, accuracies))


def test_a_method_that_breaks_b_is_not_helped_by_it():
    # The end is at 3 where B as trained has 1: the barrier counts from the line to 1.
    curve = BarrierCurve((0.0, 0.5, 1.0), (1.0, 2.0, 3.0), (0.9, 0.5, 0.1))
    assert curve.barrier == 0
    assert peers._above(curve, loss_b=1.0) == 2.0


def test_verdicts():
    def row(method, treatment, barrier, seed=0):
        return verdicts.Row("net", seed, method, treatment, barrier, 0.0, 0.0, 0.0)

    rows = [
        row("rebasin", PLAIN, 0.5),
        row("weight", PLAIN, 0.7),
        row("weight", "REPAIR", 0.2),
        row("rebasin", "REPAIR", 0.6),
        row("rebasin", PLAIN, 0.004, seed=1),
        row("weight", PLAIN, 0.009, seed=1),
    ]
    found = {(v.seed, v.treatment): v.outcome for v in verdicts.verdicts(rows)}
    assert found == {
        (0, PLAIN): "others",
        (0, "REPAIR"): "ours",
        (0, verdicts.BEST): "ours",
        (1, PLAIN): "zero for both",
        (1, verdicts.BEST): "zero for both",
    }


def test_a_lost_pair_is_told_from_a_lucky_start():
    def said(barriers):
        return str(verdicts.Chance("net", 0, "rebasin", "REPAIR", barriers, 0.5))

    assert said((0.4, 0.6, 0.7, 0.8)).endswith(
        "0.5000 in 1 of them: the order that B came in was a lucky one."
    )
    assert said((0.4, 0.4, 0.4, 0.8)).endswith("0.5000 in 3 of them.")


def test_text_says_what_figures_show(tmp_path):
    def page(after):
        report = Report(tmp_path, "x", "t", "c", "d")
        study = mlp_weight_decay._Study.__new__(mlp_weight_decay._Study)
        study.data = load_images(None)
        study.lines = [
            line(name, (1.0, 1.0 + height, 1.0), setting=setting)
            for setting, heights in after.items()
            for name, height in zip((BEFORE, AFTER), heights, strict=True)
        ]
        mlp_weight_decay._say_barrier(report, study)
        return " ".join(report._blocks)

    gone = page({"0.0": (0.5, 0.2), "0.1": (0.4, 0.001), "0.9": (0.3, 0.05)})
    assert "from 0.500 to 0.200" in gone
    assert "It is below 0.01 nats after rebasing at weight decay 0.1." in gone
    assert "lowest at weight decay 0.1, 0.001" in gone
    assert "here it rises again, to 0.050 at 0.9." in gone
    never = page({"0.0": (0.5, 0.2), "0.1": (0.4, 0.02)})
    assert "stays above 0.01 nats" in never
    assert "here it does not rise again" in never
    assert "here none is, in the mean" in never


def test_require():
    require(True, "fine")
    with pytest.raises(ExperimentError, match="the experiment failed: too high"):
        require(False, "too high")


def test_pictures_are_drawn_with_and_without_legend():
    series = (Series("a", {0.0: [1.0, 2.0], 1.0: [3.0]}), Series("b", {0.0: [1.0]}))
    panels = [
        Panel("one", "x", "y", series, ("p", "q")),
        Panel("two", "x", "y", series[:1], log=True),
    ]
    assert draw(panels, 2, "title").startswith(PNG)
    dots = Dots("one", "x", {"m": {"as it is": [0.1, 0.2]}, "n": {"as it is": []}})
    assert draw_dots([dots], 1, "title").startswith(PNG)


def test_the_page_is_put_together(tmp_path):
    folder = tmp_path / "results" / "gpt"
    folder.mkdir(parents=True)
    (folder / "gpt.md").write_text("# Title\n\n## Part\n\n![words](lines.png)\n")
    page = tmp_path / "docs" / "results.md"
    options = ["page", "--results", str(folder.parent), "--out", str(page)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert "left out: peers, which has no results" in result.output
    text = page.read_text()
    assert "\n## Title\n\n### Part\n\n![words](../results/gpt/lines.png)\n" in text
    (folder / "gpt.md").unlink()
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert "run an experiment first" in result.output
