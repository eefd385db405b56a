"""Merging from the command line: what is written, what is reported, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fxrebasin
from fxrebasin.cli import options
from fxrebasin.merge import formulas
from fxrebasin.merge.combinations import Formula
from fxrebasin.merge.many import ALIGNERS
from fxrebasin.passes.match.methods import METHODS
from fxrebasin.storage.containers import FILES
from tests.support.commands import (
    assert_close,
    document,
    invoke,
    lay_out,
    load,
    random_state,
)

MERGE = ("merge", "nets:Net", "a.pt", "c.pt", "--out", "m.pt")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets", None)
    lay_out(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


def aligned(name: str) -> dict[str, torch.Tensor]:
    """A checkpoint in the order of the units of a.pt, by the way over transform."""
    invoke("transform", "nets:Net", "--model-b", name, "--ref", "a.pt", "--out", "t.pt")
    found = load("t.pt")
    Path("t.pt").unlink()
    return found


def test_the_names_of_methods_formulas_and_files_are_those_of_the_package():
    assert set(options.PAIRWISE) == set(METHODS)
    assert {*options.JOINT, options.ROUNDS} == set(ALIGNERS)
    assert list(options.COMBINATIONS) == [formula.value for formula in Formula]
    assert options.WEIGHTS_SUFFIXES == FILES


def test_two_checkpoints_are_aligned_and_averaged():
    text = invoke(*MERGE).output
    expected = formulas.mean([load("a.pt"), aligned("c.pt")], [1, 1])
    assert_close(load("m.pt"), expected)
    assert "c.pt: " in text
    assert "wrote m.pt" in text


def test_a_merge_with_a_permuted_copy_is_the_model_itself():
    invoke("merge", "nets:Net", "a.pt", "b.pt", "--out", "m.pt")
    assert_close(load("m.pt"), load("a.pt"))


def test_units_may_stay_as_they_are():
    invoke(*MERGE, "--method", "none")
    assert_close(load("m.pt"), formulas.mean([load("a.pt"), load("c.pt")], [1, 1]))


@pytest.mark.parametrize(
    "more", [["--t", "0.25"], ["--weights", "0.75,0.25"], ["--weights", "3,1"]]
)
def test_weights_and_positions(more):
    invoke(*MERGE, *more)
    assert_close(load("m.pt"), formulas.mean([load("a.pt"), aligned("c.pt")], [3, 1]))


def test_weights_by_pattern_and_by_class():
    classes = document("inspect", "nets:Net")["classes"]
    (units,) = [c["name"] for c in classes if ["head.weight", 1] in c["axes"]]
    moved = {name for c in classes if c["name"] == units for name, _ in c["axes"]}
    a, c = load("a.pt"), aligned("c.pt")
    invoke(*MERGE, "--weights", "1,0", "--weights", "*.bias=0,1")
    found = load("m.pt")
    assert all(torch.equal(found[n], (c if n.endswith(".bias") else a)[n]) for n in a)
    invoke(*MERGE, "--weights", "1,0", "--weights", f"class:{units}=0,1", "--overwrite")
    found = load("m.pt")
    assert moved
    assert moved != set(a)
    assert all(torch.equal(found[n], (c if n in moved else a)[n]) for n in a)


@pytest.mark.parametrize("formula", ["task_arithmetic", "ties", "dare"])
def test_formulas_with_a_base_that_is_aligned_too(formula):
    numbers = ["--density", "0.6", "--seed", "5"] if formula != "task_arithmetic" else []
    invoke(*MERGE, "--combine", formula, "--base", "b.pt", "--scale", "0.5", *numbers)
    states = [load("a.pt"), aligned("c.pt")]
    base = aligned("b.pt")
    given = {"ties": {"density": 0.6}, "dare": {"density": 0.6, "seed": 5}}.get(formula, {})
    expected = getattr(formulas, formula)(states, base, [1, 1], scale=0.5, **given)
    statistics = {name for name in base if "running" in name}
    expected |= {n: (states[0][n] + states[1][n]) / 2 for n in statistics}
    assert_close(load("m.pt"), expected)


def test_slerp_takes_a_position():
    invoke(*MERGE, "--combine", "slerp", "--t", "0.3")
    a, c = load("a.pt"), aligned("c.pt")
    expected = formulas.slerp(a, c, 0.3)
    statistics = {name for name in a if "running" in name}
    expected |= {name: torch.lerp(a[name], c[name], 0.3) for name in statistics}
    assert_close(load("m.pt"), expected)


@pytest.mark.parametrize("method", [None, "weight", "cycle_consistent"])
def test_more_than_two_are_aligned_with_the_first(method):
    given = [] if method is None else ["--method", method]
    found = document("merge", "nets:Net", "a.pt", "b.pt", "c.pt", "--out", "m.pt", *given)
    assert found["method"] == method or "merge_many"
    a, b, c = load("a.pt"), aligned("b.pt"), aligned("c.pt")
    assert_close(load("m.pt"), formulas.mean([a, b, c], [1, 1, 1]))
    assert found["alignments"][0] is None or found["alignments"][0]["units_moved"] == 0
    assert found["alignments"][2]["units_moved"] > 0


def test_every_dtype_and_everything_beside_the_weights_stays():
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in load("a.pt").items()}
    torch.save({"state_dict": half, "epoch": 7}, "a16.pt")
    invoke("merge", "nets:Net", "a16.pt", "c.pt", "--out", "m.pt")
    found = torch.load("m.pt", weights_only=True)
    assert found["epoch"] == 7
    assert {n: t.dtype for n, t in found["state_dict"].items()} == {
        n: t.dtype for n, t in half.items()
    }
    invoke("merge", "nets:Net", "a16.pt", "c.pt", "--out", "n.safetensors", "--dtype", "float16")
    kinds = {t.dtype for t in load_file("n.safetensors").values() if t.is_floating_point()}
    assert kinds == {torch.float16}


def test_statistics_are_taken_anew_from_data():
    invoke(*MERGE, "--recalibrate", "nets:loader")
    import nets

    plain = formulas.mean([load("a.pt"), aligned("c.pt")], [1, 1])
    model = nets.Net()
    model.load_state_dict(plain)
    expected = fxrebasin.recalibrate(model, nets.loader()).state_dict()
    found = load("m.pt")
    assert_close(found, dict(expected))
    assert not torch.allclose(found["norm.running_mean"], plain["norm.running_mean"])


def test_repair_from_data():
    invoke(*MERGE, "--repair", "nets:loader", "--t", "0.25")
    import nets

    a, c = nets.Net(), nets.Net()
    a.load_state_dict(load("a.pt"))
    c.load_state_dict(aligned("c.pt"))
    middle = nets.Net()
    middle.load_state_dict(formulas.mean([load("a.pt"), aligned("c.pt")], [3, 1]))
    expected = fxrebasin.repair(middle, a, c, nets.loader(), 0.25).state_dict()
    assert_close(load("m.pt"), dict(expected))


def test_losses_and_the_barrier_before_and_after_with_a_picture():
    found = document(*MERGE, "--evaluate", "nets:evaluate", "--picture", "line.png")
    losses, before, after = (
        found["evaluation"][name] for name in ("losses", "barrier_before", "barrier_after")
    )
    assert set(losses) == {"a.pt", "c.pt", "merged as they are", "merged after aligning"}
    assert before["losses"][5] == pytest.approx(losses["merged as they are"]["loss"], rel=1e-5)
    assert after["losses"][5] == pytest.approx(losses["merged after aligning"]["loss"], rel=1e-5)
    assert after["barrier"] <= before["barrier"]
    assert 0 <= losses["a.pt"]["accuracy"] <= 1
    assert Path("line.png").read_bytes()[:4] == b"\x89PNG"
    text = invoke(*MERGE, "--evaluate", "nets:evaluate", "--overwrite").output
    assert "merged after aligning" in text
    assert "barrier" in text


def test_a_report_lies_beside_the_result_unless_it_is_not_wanted():
    invoke(*MERGE, "--seed", "3")
    report = json.loads(Path("m.json").read_text())
    assert report["command"] == "merge"
    assert report["versions"]["fxrebasin"] == fxrebasin.__version__
    assert [item["path"] for item in report["checkpoints"]] == ["a.pt", "c.pt"]
    digest = report["alignments"][1]["certificate_sha256"]
    card = Path("m.md").read_text()
    for words in ("weight", digest, fxrebasin.__version__, "merge nets:Net a.pt c.pt --out m.pt"):
        assert words in card
    transform = ("transform", "nets:Net", "--model-b", "c.pt", "--ref", "a.pt", "--out", "t.pt")
    invoke(*transform, "--seed", "3", "--certificate", "p.safetensors")
    assert hashlib.sha256(Path("p.safetensors").read_bytes()).hexdigest() == digest
    invoke("merge", "nets:Net", "a.pt", "c.pt", "--out", "n.pt", "--no-report")
    assert not Path("n.json").exists()


def test_results_are_the_same_every_time():
    for name in ("m.pt", "n.pt"):
        invoke("merge", "nets:Net", "a.pt", "d.pt", "--out", name, "--method", "frank_wolfe")
    assert all(torch.equal(load("m.pt")[n], t) for n, t in load("n.pt").items())


def test_nothing_is_replaced_unless_asked():
    for name in ("m.pt", "m.json", "m.md"):
        Path(name).write_text("mine")
        text = invoke(*MERGE, code=2).output
        assert f"{name} exists already" in text
        assert "--overwrite" in text
        assert Path(name).read_text() == "mine"
        Path(name).unlink()
    assert not Path("m.pt").exists()
    invoke(*MERGE)
    invoke(*MERGE, "--overwrite")


def test_methods_that_run_the_model_take_data():
    found = document(*MERGE, "--method", "activation", "--data", "nets:loader")
    assert found["alignments"][1]["method"] == "activation"
    text = invoke(*MERGE, "--method", "activation", "--overwrite", code=2).output
    assert "--data" in text
    assert "loader=" not in text
    trained = ("--method", "straight_through", "--data", "nets:loader")
    loss = ("--loss", "torch.nn.functional:cross_entropy")
    invoke(*MERGE, *trained, *loss, "--overwrite")


def test_a_dry_run_reads_and_writes_nothing(folder):
    state = {n: t.contiguous() for n, t in load("a.pt").items()}
    save_file(state, "a.safetensors")
    whole = Path("a.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    nans = b"\xff" * (len(whole) - header)  # would be refused if anybody looked at them
    Path("a.safetensors").write_bytes(whole[:header] + nans)
    given = ("merge", "nets:Net", "a.safetensors", "c.pt", "--out", "m.pt", "--ignore", "head.*")
    before = {path.name for path in folder.iterdir()}
    found = document(*given, "--dry-run")
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} <= before
    assert found["ignored"] == ["head.weight", "head.bias"] or found["ignored"] == ["head.weight"]
    assert "hidden.weight" in found["compared"]
    assert [c["units"] for c in found["classes"]] == [8, 8]
    first, second = found["checkpoints"]
    assert first["tensors"] == second["tensors"] == len(state)
    assert first["dtypes"]["float32"] == sum(t.nbytes for t in state.values() if t.ndim)
    assert first["bytes"] == len(whole)
    assert found["memory_bytes"] > first["bytes"]
    text = invoke(*given, "--dry-run").output
    for words in (
        "head.weight",
        "KiB",
        "nothing was written",
        "2 × 8 units",
    ):
        assert words in text


def test_data_from_a_folder_of_images(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    Image = pytest.importorskip("PIL.Image")
    Path("images/cats").mkdir(parents=True)
    for index in range(5):
        values = torch.randint(0, 255, (9, 7, 3), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(f"images/cats/{index}.png")
    source = (
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))\n"
    )
    Path("pictures.py").write_text(source)
    sys.modules.pop("pictures", None)
    import pictures

    for seed, name in enumerate(("p.pt", "q.pt")):
        torch.manual_seed(seed)
        torch.save(pictures.net().state_dict(), name)
    shape = ("--input-shape", "2,3,8,8")
    given = ("merge", "pictures:net", "p.pt", "q.pt", "--out", "r.pt", *shape)
    invoke(*given, "--method", "activation", "--data", "images", "--recalibrate", "images")
    assert load("r.pt")["1.num_batches_tracked"] == 1
    assert not torch.equal(load("r.pt")["1.running_var"], torch.ones(6))


def test_the_first_may_be_read_with_another_head():
    torch.save(random_state(9, classes=5), "five.pt")
    given = ("merge", "nets:Net", "a.pt", "five.pt", "--out", "m.pt", "--method", "none")
    assert "--ignore" in invoke(*given, code=2).output
    found = document(*given, "--ignore", "head.*")
    assert found["from_the_first"] == ["head.weight", "head.bias"]
    a, five = load("a.pt"), load("five.pt")
    merged = load("m.pt")
    assert torch.equal(merged["head.weight"], a["head.weight"])
    torch.testing.assert_close(merged["hidden.bias"], (a["hidden.bias"] + five["hidden.bias"]) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "ties"], "write --combine ties"),
        (["--method", "wieght"], "Did you mean 'weight'?"),
        (["--combine", "ties"], "name it with --base"),
        (["--base", "a.pt"], "no use for --base"),
        (["--density", "0.5"], "no use for --density"),
        (["--t", "0.5", "--weights", "1,1"], "leave one out"),
        (["--combine", "slerp", "--weights", "1,1"], "slerp takes --t"),
        (["--combine", "slerp", "--t", "1.5"], "t is 1.5; it has to be from 0"),
        (["--combine", "slerp", "--t", "-0.1"], "t is -0.1; it has to be from 0"),
        (["--weights", "1,1,1"], "2 checkpoints need 2 numbers"),
        (["--weights", "one,two"], "no list of numbers"),
        (["--weights", "nowhere.*=1,1"], "no tensor fits 'nowhere.*'"),
        (["--t", "1,2"], "--t takes one number"),
        (["--picture", "x.png", "--method", "none"], "leave one of them out"),
        (["--repair", "nets:loader", "--recalibrate", "nets:loader"], "leave --recalibrate"),
        (["--evaluate", "nets:Nothing"], "has no 'Nothing'"),
        (["--evaluate", "nets:X"], "is a Tensor, not a function"),
        (["--recalibrate", "nets:nothing"], "gives a int"),
        (["--data", "nets"], "--data is of no use to the method weight"),
        (["--method", "activation", "--data", "nets"], "--data: 'nets' names nothing"),
        (["--method", "activation", "--restarts", "2"], "--restarts is of no use"),
        (["--out", "m.json"], "has to end in one of"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(folder, arguments, message):
    text = " ".join(invoke(*MERGE, *arguments, code=2).output.split())
    assert message in text
    assert not Path("m.pt").exists()


def test_two_checkpoints_at_least():
    text = invoke("merge", "nets:Net", "a.pt", "--out", "m.pt", code=2).output
    assert "two or more checkpoints" in text
    text = invoke("merge", "nets:Net", "a.pt", "gone.pt", "--out", "m.pt", code=2).output
    assert "there is no checkpoint gone.pt" in text
