"""Commands on the line between two checkpoints, on certificates, and out of recipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import fxrebasin
from fxrebasin.cli.mergekit import translated
from fxrebasin.errors import InputError
from fxrebasin.merge import formulas
from tests.support.commands import assert_close, document, invoke, lay_out, load

TRANSFORM = ("transform", "nets:Net", "--ref", "a.pt", "--out", "t.pt")
MODEL = ("nets:Net", "a.pt", "c.pt")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets", None)
    lay_out(tmp_path)
    yield tmp_path
    sys.modules.pop("nets", None)


def write_recipe(content: object) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump(content))
    return "recipe.yaml"


def test_models_between_two_checkpoints():
    invoke(*TRANSFORM, "--model-b", "c.pt")
    a, c = load("a.pt"), load("t.pt")
    text = invoke("interpolate", *MODEL, "--t", "0,0.25", "--t", "1", "--out", "at-{t}.pt").output
    for t in (0, 0.25, 1):
        assert_close(load(f"at-{t}.pt"), formulas.mean([a, c], [1 - t, t]))
        assert f"at-{t}.pt" in text
    assert all(torch.equal(load("at-0.pt")[name], tensor) for name, tensor in a.items())
    invoke("interpolate", *MODEL, "--out", "half.safetensors", "--method", "none")
    found = document("interpolate", *MODEL, "--out", "half.pt", "--recalibrate", "nets:loader")
    assert found["positions"] == [0.5]
    assert int(load("half.pt")["norm.num_batches_tracked"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--t", "0.2,0.4", "--out", "x.pt"], "write {t} where the position belongs"),
        (["--t", "2", "--out", "x.pt"], "positions go from 0"),
        (["--t", "half", "--out", "x.pt"], "are not numbers; write such as 0.25,0.5"),
        (["--out", "x-{x}.pt"], "{x} stands for nothing; write {t} where the position belongs"),
        (["--t", "0.2", "--out", ""], "it is empty; name a file, or a folder"),
        (["--t", "0.2,0.20", "--out", "a{t}.pt", "--method", "magic"], "no method 'magic'"),
    ],
)
def test_positions_that_cannot_be(arguments, message):
    assert message in " ".join(invoke("interpolate", *MODEL, *arguments, code=2).output.split())


def test_positions_close_to_each_other_have_names_of_their_own():
    invoke("interpolate", *MODEL, "--t", "0.25,0.25000001", "--out", "at-{t}.pt")
    a, b = load("at-0.25.pt"), load("at-0.25000001.pt")
    assert a.keys() == b.keys()


def test_the_barrier_is_that_of_the_package():
    found = document("barrier", *MODEL, "--evaluate", "nets:evaluate", "--steps", "5")
    import nets

    a = nets.Net()
    a.load_state_dict(load("a.pt"))
    invoke(*TRANSFORM, "--model-b", "c.pt")
    for name, state in (("barrier_before", load("c.pt")), ("barrier_after", load("t.pt"))):
        curve = fxrebasin.barrier(a, state, nets.evaluate, steps=5)
        assert found["evaluation"][name]["losses"] == pytest.approx(curve.losses, rel=1e-6)
        assert found["evaluation"][name]["barrier"] == pytest.approx(curve.barrier, rel=1e-6)
    text = invoke("barrier", *MODEL, "--evaluate", "nets:evaluate", "--picture", "x.svg").output
    assert "barrier" in text
    assert "<svg" in Path("x.svg").read_text()
    assert "--evaluate" in invoke("barrier", *MODEL, code=2).output
    invoke("barrier", *MODEL, "--evaluate", "nets:evaluate", "--picture", "x.svg", code=2)
    one = document("barrier", *MODEL, "--evaluate", "nets:evaluate", "--method", "none")
    assert one["evaluation"]["barrier_after"] is None


def test_a_certificate_is_applied_and_undone():
    invoke(*TRANSFORM, "--model-b", "c.pt", "--certificate", "p.safetensors")
    given = ("apply", "nets:Net", "p.safetensors", "--weights")
    found = document(*given, "c.pt", "--out", "again.pt")
    assert found["equivalence"]["passed"]
    assert all(torch.equal(load("again.pt")[n], t) for n, t in load("t.pt").items())
    text = invoke(*given, "again.pt", "--inverse", "--out", "back.pt").output
    assert "undone" in text
    assert all(torch.equal(load("back.pt")[n], t) for n, t in load("c.pt").items())
    assert "exists already" in invoke(*given, "c.pt", "--out", "back.pt", code=2).output


OTHER = "these are not the weights that the certificate was made from"


def test_other_weights_than_the_certificate_was_made_from_are_told():
    invoke(*TRANSFORM, "--model-b", "c.pt", "--certificate", "p.safetensors")
    given = ("apply", "nets:Net", "p.safetensors", "--weights")
    assert OTHER not in invoke(*given, "c.pt", "--out", "1.pt").output
    assert OTHER in invoke(*given, "b.pt", "--out", "2.pt").output
    assert OTHER not in invoke(*given, "1.pt", "--inverse", "--out", "3.pt").output
    assert OTHER in invoke(*given, "c.pt", "--inverse", "--out", "4.pt").output
    found = document(*given, "d.pt", "--out", "5.pt")
    assert found["made_from_these_weights"] is False
    assert any(note.startswith(OTHER) for note in found["notes"])
    assert document(*given, "c.pt", "--out", "6.pt")["made_from_these_weights"] is True
    fxrebasin.Permutation.load("p.safetensors").inverse().save("unknown.safetensors")
    unknown = ("apply", "nets:Net", "unknown.safetensors", "--weights", "d.pt")
    assert document(*unknown, "--out", "7.pt")["made_from_these_weights"] is None


def test_a_certificate_of_another_model_is_refused():
    invoke(*TRANSFORM, "--model-b", "c.pt", "--certificate", "p.safetensors")
    wide = fxrebasin.models.by_name.build_model("nets:Net?width=5")
    torch.save(wide.state_dict(), "wide.pt")
    given = ("apply", "nets:Net?width=5", "p.safetensors", "--weights", "wide.pt")
    assert "another architecture" in invoke(*given, "--out", "x.pt", code=2).output
    assert not Path("x.pt").exists()


def test_certificates_are_composed_in_the_order_in_which_they_act():
    invoke(*TRANSFORM, "--model-b", "b.pt", "--certificate", "b_to_a.safetensors")
    towards_b = ("transform", "nets:Net", "--ref", "b.pt", "--out", "u.pt", "--model-b")
    invoke("apply", "nets:Net", "b_to_a.safetensors", "--weights", "c.pt", "--out", "e.pt")
    invoke(*towards_b, "e.pt", "--certificate", "e_to_b.safetensors")
    invoke("compose", "e_to_b.safetensors", "b_to_a.safetensors", "--out", "e_to_a.safetensors")
    given = ("apply", "nets:Net", "e_to_a.safetensors", "--weights", "e.pt", "--out", "x.pt")
    invoke(*given)
    first = fxrebasin.Permutation.load("e_to_b.safetensors")
    then = fxrebasin.Permutation.load("b_to_a.safetensors")
    expected = then.permute_state_dict(first.permute_state_dict(load("e.pt")))
    assert all(torch.equal(load("x.pt")[n], t) for n, t in expected.items())
    invoke("compose", "e_to_a.safetensors", "--inverse", "--out", "a_to_e.safetensors")
    whole = fxrebasin.Permutation.load("e_to_a.safetensors")
    assert fxrebasin.Permutation.load("a_to_e.safetensors") == whole.inverse()


def test_a_recipe_is_a_command_and_what_is_written_behind_it_wins():
    recipe = {
        "command": "merge",
        "model": "nets:Net",
        "models": ["a.pt", "c.pt"],
        "out": "m.pt",
        "weights": {"*": [1, 3], "*.bias": [1, 0]},
        "report": False,
        "state_buffers": ["norm.running_*"],
    }
    path = write_recipe(recipe)
    invoke("run", path)
    written = ("--weights", "1,3", "--weights", "*.bias=1,0", "--no-report")
    invoke("merge", *MODEL, "--out", "n.pt", *written)
    assert_close(load("m.pt"), load("n.pt"))
    assert not Path("m.json").exists()
    invoke("run", path, "--out", "o.pt", "--weights", "1,1")
    invoke("merge", *MODEL, "--out", "p.pt")
    assert_close(load("o.pt"), load("p.pt"))
    invoke("run", path, "--overwrite")
    assert load("m.pt").keys() == load("n.pt").keys()
    found = document("run", path, "--out", "q.pt")
    assert found["command"] == "merge"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"command": "merge", "weigths": [1, 1]}, "has no 'weigths'; did you mean 'weights'?"),
        ({"command": "marge"}, "did you mean 'merge'?"),
        ({"command": "run"}, "has to be one of"),
        ({"out": "x.pt"}, "command is None"),
        (["merge"], "holds no keys"),
        ({"command": "merge", "out": "x.pt", "overwrite": "yes"}, "neither true nor false"),
        ({"command": "merge", "models": list(MODEL), "out": "x.pt", "seed": "x"}, "'--seed'"),
    ],
)
def test_recipes_that_cannot_be(recipe, message):
    text = " ".join(invoke("run", write_recipe(recipe), code=2).output.split())
    assert message in text
    assert not Path("x.pt").exists()


def test_a_recipe_that_is_nested_without_end_is_refused():
    Path("deep.yaml").write_text("[" * 2000)
    assert "no readable YAML: it is nested too" in invoke("run", "deep.yaml", code=2).output


@pytest.mark.parametrize("kept", ["transform", "export", "inspect", "verify", "apply", "compose"])
def test_every_command_can_be_a_recipe(kept):
    invoke(*TRANSFORM, "--model-b", "c.pt", "--certificate", "p.safetensors")
    recipes = {
        "transform": {"model-b": "c.pt", "ref": "a.pt", "out": "x.pt"},
        "export": {"weights": "a.pt", "out": "x.onnx"},
        "inspect": {"explain": None, "json": True},
        "verify": {"other": "t.pt", "weights": "c.pt"},
        "apply": {"certificate": "p.safetensors", "weights": "c.pt", "out": "x.pt"},
        "compose": {"certificates": ["p.safetensors"], "out": "x.safetensors"},
    }
    own = {} if kept == "compose" else {"model": "nets:Net"}
    invoke("run", write_recipe({"command": kept, **own, **recipes[kept]}))


def test_a_recipe_of_mergekit_merges():
    recipe = {
        "models": [
            {"model": "b.pt"},
            {"model": "a.pt", "parameters": {"weight": 0.5, "density": 0.4}},
            {
                "model": "c.pt",
                "parameters": {
                    "weight": [{"filter": "bias", "value": 2}, {"value": 1}],
                    "density": 0.4,
                },
            },
        ],
        "merge_method": "ties",
        "base_model": "b.pt",
        "parameters": {"lambda": 0.8, "normalize": True, "int8_mask": True},
        "dtype": "float16",
        "model": "nets:Net",
        "out": "m.pt",
    }
    invoke("run", write_recipe(recipe))
    numbers = ("--weights", "0.5,1", "--weights", "*bias*=0.5,2", "--density", "0.4")
    more = ("--scale", "0.8", "--dtype", "float16", "--combine", "ties", "--base", "b.pt")
    invoke("merge", *MODEL, "--out", "n.pt", *numbers, *more)
    assert_close(load("m.pt"), load("n.pt"))
    assert load("m.pt")["head.weight"].dtype == torch.float16


def test_mergekits_slerp_begins_at_its_base():
    recipe = {
        "merge_method": "slerp",
        "base_model": "A",
        "models": [{"model": "B"}, {"model": "A"}],
        "parameters": {"t": [{"filter": "attn", "value": 0.3}, {"value": 0.5}]},
        "dtype": "bfloat16",
    }
    assert translated(recipe) == {
        "command": "merge",
        "combine": "slerp",
        "models": ["A", "A", "B"],
        "t": {"*": 0.5, "*attn*": 0.3},
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"merge_method": "model_stock"}, "'model_stock' is not supported; there are: linear"),
        ({"merge_method": "linear", "slices": []}, "list models"),
        ({"merge_method": "linear", "models": [{"path": "x"}]}, "has no 'model'"),
        ({"merge_method": "slerp", "parameters": {"t": [0, 0.5, 1]}}, "gradients"),
        ({"merge_method": "slerp", "parameters": {"gamma": 1}}, "'gamma' is not supported"),
        (
            {
                "merge_method": "ties",
                "models": [
                    {"model": n, "parameters": {"density": d}} for n, d in (("a", 0.5), ("b", 0.6))
                ],
            },
            "different densities",
        ),
    ],
)
def test_what_of_mergekit_is_not_done_is_said(recipe, message):
    with pytest.raises(InputError, match=message):
        translated(recipe)


def test_the_installed_command_prints_json_alone_and_messages_beside_it():
    command = [sys.executable, "-m", "fxrebasin", "merge", *MODEL, "--out", "m.pt", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.startswith("{")
    assert done.stdout.rstrip().endswith("}")
    assert done.stderr.splitlines() == ["wrote m.pt", "wrote m.json", "wrote m.md"]


def test_files_have_the_permissions_of_the_umask():
    given = ("--model-b", "c.pt", "--certificate", "p.safetensors")
    before = os.umask(0o027)
    try:
        invoke(*TRANSFORM, *given)
        invoke("merge", *MODEL, "--out", "m.safetensors")
    finally:
        os.umask(before)
    for name in ("t.pt", "p.safetensors", "m.safetensors", "m.json", "m.md"):
        assert Path(name).stat().st_mode & 0o777 == 0o640, name
