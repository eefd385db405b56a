"""The installed command on checkpoints in the layouts of libraries, which load what it writes."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import fxrebasin
from fxrebasin.cli import main
from tests.support.checkpoint_layouts import LAYOUTS, Net, net

MODEL = ("tests.support.checkpoint_layouts:Net", "--input-shape", "2,3,6,6")


def invoke(*arguments: object, code: int = 0) -> str:
    """Run a command in this process; what it prints."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return result.output


def assert_bits(left: torch.nn.Module, right: torch.nn.Module) -> None:
    """The same parameters and statistics by name, bit for bit."""
    theirs = right.state_dict()
    for name, tensor in left.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert tensor.dtype is theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_was_permuted_is_found_and_loaded_by_its_library(tmp_path, name):
    layout, a, average = LAYOUTS[name], net(0), net(7)
    order = fxrebasin.analyze(Net(), torch.zeros(1, 3, 6, 6)).random(seed=1)
    moved = []
    for model in (a, average):
        moved.append(net())
        moved[-1].load_state_dict(order.permute_state_dict(model.state_dict()))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ref = layout.save(a, average, tmp_path / "a")
    path = layout.save(*moved, tmp_path / "b")
    out = tmp_path / "out" / path.name
    printed = invoke("transform", *MODEL, "--model-b", path, "--ref", ref, "--out", out)
    assert "→ 0\n" in printed
    assert f"wrote {out}" in printed
    assert_bits(layout.load(out), layout.load(ref))
    assert not torch.equal(layout.load(path).fc.weight, layout.load(ref).fc.weight)
    if layout.load_average is not None:
        assert_bits(layout.load_average(out), layout.load_average(ref))


def test_copies_prefixes_and_extras_are_chosen_by_options(tmp_path):
    a, b = net(0).state_dict(), net(1).state_dict()
    for path, student, teacher in (("a.pt", a, b), ("b.pt", b, a)):
        named = {f"student/{name}": value for name, value in student.items()}
        named |= {f"teacher/{name}": value for name, value in teacher.items()}
        torch.save({"nets": named, "loss.weight": torch.ones(2)}, tmp_path / path)
        torch.save({"first": a, "second": student}, tmp_path / f"two-{path}")
    base = ("transform", *MODEL, "--model-b", tmp_path / "b.pt", "--ref", tmp_path / "a.pt")
    invoke(*base, "--out", tmp_path / "s.pt", "--prefix", "student/", "--ignore-extra")
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("b.pt", "s.pt"))
    assert after["nets"].keys() == before["nets"].keys()
    assert torch.equal(after["loss.weight"], before["loss.weight"])
    assert not torch.equal(*(tree["nets"]["student/fc.weight"] for tree in (before, after)))

    two = ("--model-b", tmp_path / "two-b.pt", "--ref", tmp_path / "two-a.pt")
    out = ("--out", tmp_path / "t.pt")
    assert "--key" in invoke("transform", *MODEL, *two, *out, code=2)
    assert "moved      0 of" in invoke("transform", *MODEL, *two, *out, "--key", "first")
    assert "moved      0 of" not in invoke(
        "transform", *MODEL, *two, *out, "--key", "second", "--overwrite"
    )


def test_heads_that_differ_are_named_by_an_option(tmp_path):
    torch.save(net(0).state_dict(), tmp_path / "a.pt")
    state = net(1).state_dict()
    other = Net(classes=7).state_dict()
    torch.save(
        {**state, "fc.weight": other["fc.weight"], "fc.bias": other["fc.bias"]}, tmp_path / "b.pt"
    )
    base = ("transform", f"{MODEL[0]}?classes=7", *MODEL[1:])
    files = ("--model-b", tmp_path / "b.pt", "--ref", tmp_path / "a.pt", "--out", tmp_path / "o.pt")
    assert "--ignore 'fc.*'" in invoke(*base, *files, code=2)
    assert "fc.weight" in invoke(*base, *files, "--ignore", "fc.*")
    assert torch.load(tmp_path / "o.pt", weights_only=True)["fc.weight"].shape == (7, 6)
