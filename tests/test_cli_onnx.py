"""ONNX files on the command line: in the place of a model and its weights, and as a result."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import fxrebasin
from fxrebasin.cli import main

UNITS = 6


def invoke(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def weights(seed):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (4, UNITS), "b1": (UNITS,), "w2": (UNITS, 3), "b2": (3,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(path, tensors):
    """Two layers, with a batch of any size."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    held = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "net", [taken], [given], held)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def read(path):
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """`a.onnx`, and `b.onnx` that is a in another order."""
    monkeypatch.chdir(tmp_path)
    a, order = weights(0), np.random.default_rng(1).permutation(UNITS)
    write("a.onnx", a)
    moved = {"w1": a["w1"][:, order], "b1": a["b1"][order], "w2": a["w2"][order], "b2": a["b2"]}
    write("b.onnx", moved)
    return a


def test_one_file_is_rebased_towards_another(files):
    arguments = ("transform", "b.onnx", "--ref", "a.onnx", "--out", "out.onnx")
    result = invoke(*arguments, "--certificate", "p.safetensors")
    assert "wrote out.onnx" in result.output
    for name, value in read("out.onnx").items():
        assert value.tobytes() == files[name].tobytes(), name
    assert fxrebasin.Permutation.load("p.safetensors").units == UNITS
    document = json.loads(invoke(*arguments, "--overwrite", "--json").stdout)
    assert document["distance_after"] == 0
    assert document["files"] == ["out.onnx"]


def test_what_exists_and_what_is_read_stay(files):
    before = read("a.onnx")
    refused = ("transform", "b.onnx", "--ref", "a.onnx", "--out", "a.onnx", "--overwrite")
    assert "a.onnx" in invoke(*refused, code=2).output
    assert all(np.array_equal(value, before[name]) for name, value in read("a.onnx").items())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("b.onnx", "--ref", "a.onnx", "--out", "out.pt"), "--out has to be an .onnx file"),
        (("b.onnx", "--ref", "a.onnx", "--out", "o.onnx", "--model-b", "a.onnx"), "--model-b"),
        (("b.onnx", "--ref", "a.onnx", "--out", "o.onnx", "--dtype", "float16"), "--dtype"),
        (("b.onnx", "--ref", "a.onnx", "--out", "o.onnx", "--symmetry", "all"), "--symmetry all"),
        (("torch.nn:Identity", "--ref", "a.onnx", "--out", "o.onnx"), "see --onnx"),
    ],
)
def test_what_does_not_fit_an_onnx_file_is_refused(files, arguments, words):
    assert words in invoke("transform", *arguments, code=2).output


def test_files_between_two_are_written(files):
    write("c.onnx", {name: value + 0.5 for name, value in files.items()})
    line = ("interpolate", "a.onnx", "b.onnx", "--t", "0,0.5,1", "--out", "at-{t}.onnx")
    assert "wrote at-0.5.onnx (t = 0.5)" in invoke(*line).output
    for t in ("0", "0.5", "1"):
        for name, value in read(f"at-{t}.onnx").items():
            assert np.allclose(value, files[name], rtol=1e-6, atol=0), (t, name)
    invoke("interpolate", "a.onnx", "c.onnx", "--method", "none", "--out", "half.onnx")
    assert np.allclose(read("half.onnx")["b1"], files["b1"] + 0.25)
    assert "--dtype" in invoke(*line, "--dtype", "float16", "--overwrite", code=2).output
    assert ".onnx" in invoke("interpolate", "a.onnx", "b.onnx", "--out", "x.pt", code=2).output


def test_a_file_is_inspected_and_compared(files):
    document = json.loads(invoke("inspect", "b.onnx", "--json").stdout)
    assert [item["units"] for item in document["classes"]] == [UNITS]
    assert "w1" in invoke("inspect", "b.onnx").output
    assert "w1[1]" in invoke("inspect", "b.onnx", "--explain", "w1", 1).output
    invoke("verify", "a.onnx", "b.onnx")
    write("c.onnx", weights(3))
    invoke("verify", "a.onnx", "c.onnx", code=1)


def test_axes_that_may_have_any_size_are_chosen(files, tmp_path):
    (tmp_path / "nets_of_axes.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())\n"
    )
    torch.save(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).state_dict(), "w.pt")
    export = ("export", "nets_of_axes:net", "--weights", "w.pt", "--input-shape", "2,5,4")
    invoke(*export, "--out", "net.onnx", "--dynamic", "input=rows,length")
    (held,) = onnx.load("net.onnx").graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in held.type.tensor_type.shape.dim]
    assert sizes == ["rows", "length", 4]
    assert "rows" in invoke(*export, "--out", "x.onnx", "--dynamic", "rows", code=2).output


def test_a_certificate_is_applied_and_undone(files):
    transform = ("transform", "b.onnx", "--ref", "a.onnx", "--out", "out.onnx")
    invoke(*transform, "--certificate", "p.safetensors")
    apply = ("apply", "b.onnx", "p.safetensors", "--out")
    assert "wrote moved.onnx" in invoke(*apply, "moved.onnx").output
    assert Path("moved.onnx").read_bytes() == Path("out.onnx").read_bytes()
    undone = invoke(
        "apply", "moved.onnx", "p.safetensors", "--inverse", "--out", "u.onnx", "--json"
    )
    assert json.loads(undone.stdout)["equivalence"]["passed"] is True
    assert Path("u.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert ".onnx" in invoke(*apply, "x.pt", code=2).output
    assert "--weights" in invoke(*apply, "x.onnx", "--weights", "a.onnx", code=2).output


def test_several_files_become_one(files):
    write("c.onnx", {name: value + 0.5 for name, value in files.items()})
    merge = ("merge", "a.onnx", "b.onnx", "c.onnx", "--out")
    document = json.loads(invoke(*merge, "mean.onnx", "--json").stdout)
    assert document == json.loads(Path("mean.json").read_text())
    assert document["alignments"][1]["distance_after"] == 0
    for name, value in read("mean.onnx").items():
        assert np.allclose(value, files[name] + 0.5 / 3, atol=1e-6), name
    assert "units moved" in Path("mean.md").read_text()
    invoke(*merge, "w.onnx", "--weights", "0.5,0.25,0.25", "--no-report")
    assert np.allclose(read("w.onnx")["b1"], files["b1"] + 0.125, atol=1e-6)
    assert not Path("w.json").exists()
    invoke("merge", "a.onnx", "c.onnx", "--t", "0.2", "--method", "none", "--out", "t.onnx")
    assert np.allclose(read("t.onnx")["b1"], files["b1"] + 0.1, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "m.pt"), "found m.pt"),
        (("--combine", "slerp"), "--combine"),
        (("--symmetry", "signed"), "--symmetry signed"),
        (("--method", "merge_many"), "merge_many"),
        (("--weights", "w1=0.5,0.5"), "patterns"),
        (("--weights", "0.5"), "numbers"),
        (("--weights", "0.5,0.6"), "sum 1"),
        (("--t", "0.2", "--weights", "0.5,0.5"), "--t"),
    ],
)
def test_what_cannot_be_merged_is_refused(files, arguments, words):
    out = () if "--out" in arguments else ("--out", "m.onnx")
    assert words in invoke("merge", "a.onnx", "b.onnx", *arguments, *out, code=2).output
    assert not any(Path(name).exists() for name in ("m.onnx", "m.json", "m.md"))


class Scaled(nn.Module):
    """A layer and what scales it, which exporters may put into one."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)
        with torch.no_grad():
            for tensor in (*self.norm.parameters(), *self.norm.buffers()):
                tensor.copy_(torch.rand(tensor.shape) + 0.5)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_a_file_that_is_refused_goes_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = torch.randn(2, 2, 5, 5)
    fxrebasin.export_onnx(Scaled(0), "a.onnx", example)
    fxrebasin.export_onnx(Scaled(1), "folded.onnx", example, optimize=True)
    for command in ("merge", "interpolate"):
        found = invoke(command, "a.onnx", "folded.onnx", "--out", "m.onnx", code=2)
        assert "folded.onnx has in one what a.onnx has as a layer" in found.output
    found = invoke("merge", "folded.onnx", "a.onnx", "--out", "m.onnx")
    assert "not compared with the reference: norm.weight" in found.output


def test_a_recipe_names_files(files):
    Path("recipe.yaml").write_text(
        "command: merge\nmodels: [a.onnx, b.onnx]\nweights: [0.5, 0.5]\nout: half.onnx\n"
    )
    invoke("run", "recipe.yaml")
    assert all(np.array_equal(value, files[name]) for name, value in read("half.onnx").items())


def test_units_of_files_are_drawn(files):
    """The picture is that of the same weights in a module."""
    from tests.test_units_picture import compared

    net = nn.Sequential(nn.Linear(4, UNITS), nn.ReLU(), nn.Linear(UNITS, 3))
    other = nn.Sequential(nn.Linear(4, UNITS), nn.ReLU(), nn.Linear(UNITS, 3))
    write("c.onnx", weights(5))
    for module, path in ((net, "a.onnx"), (other, "c.onnx")):
        held = read(path)
        for layer, number in ((module[0], 1), (module[2], 2)):
            layer.weight.data = torch.tensor(held[f"w{number}"]).T.contiguous()
            layer.bias.data = torch.tensor(held[f"b{number}"])
    order = fxrebasin.match(other, ref=net)
    (found,) = [compared(net, other, order).likeness(c) for c in order.classes]
    for arguments in (
        ("transform", "c.onnx", "--ref", "a.onnx", "--out", "t.onnx"),
        ("merge", "a.onnx", "c.onnx", "--out", "m.onnx"),
        ("interpolate", "a.onnx", "c.onnx", "--out", "i.onnx"),
    ):
        picture = f"{arguments[0]}.svg"
        assert f"wrote {picture}" in invoke(*arguments, "--picture", picture).output
        drawn = Path(picture).read_text()
        assert f"<!-- before: {found.own_before + 0:.2f} -->" in drawn
        assert f"<!-- after: {found.own_after:.2f} -->" in drawn
    assert not order.is_identity


def test_units_of_files_that_nothing_aligns_are_not_drawn(files):
    for command in ("merge", "interpolate"):
        given = ("--method", "none", "--picture", "u.png", "--out", "o.onnx")
        text = invoke(command, "a.onnx", "b.onnx", *given, code=2).output
        assert "leave one of them out" in " ".join(text.split())
    write("c.onnx", weights(5))
    three = ("merge", "a.onnx", "b.onnx", "c.onnx", "--picture", "u.png", "--out", "o.onnx")
    assert "two checkpoints, of which one was" in " ".join(invoke(*three, code=2).output.split())
    assert not Path("o.onnx").exists()


def test_a_certificate_knows_the_files_that_it_was_made_from(files, tmp_path):
    write("c.onnx", weights(5))
    made = ("transform", "b.onnx", "--ref", "a.onnx", "--out", "t.onnx")
    invoke(*made, "--certificate", "p.safetensors")
    states = fxrebasin.Permutation.load("p.safetensors").found_with.states
    assert states.keys() == {"model", "reference"}
    assert all(digest.startswith("onnx:") for digest in states.values())
    again = fxrebasin.match("a.onnx", ref="b.onnx").found_with.states
    assert (again["model"], again["reference"]) == (states["reference"], states["model"])
    said = "these are not the weights that the certificate was made from"
    for source, inverse, same in (
        *(("b.onnx", (), True), ("c.onnx", (), False)),
        *(("t.onnx", ("--inverse",), True), ("c.onnx", ("--inverse",), False)),
    ):
        given = ("apply", source, "p.safetensors", *inverse, "--out", "o.onnx", "--overwrite")
        found = json.loads(invoke(*given, "--json").stdout)
        assert found["made_from_these_weights"] is same, (source, inverse)
        assert any(said in note for note in found["notes"]) is not same
        assert (said in " ".join(invoke(*given).output.split())) is not same


def test_a_certificate_of_a_module_knows_nothing_of_files(files):
    """The same names with the same shapes may be there; whether they hold the same is not known."""
    order = fxrebasin.match("b.onnx", ref="a.onnx")
    plain = {name: digest.removeprefix("onnx:") for name, digest in order.found_with.states.items()}
    kept = order.relying_on(order.relies_on, replace(order.found_with, states=plain))
    kept.save("p.safetensors")
    found = invoke("apply", "b.onnx", "p.safetensors", "--out", "o.onnx", "--json")
    assert json.loads(found.stdout)["made_from_these_weights"] is None
