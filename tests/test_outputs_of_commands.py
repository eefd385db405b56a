"""What every command writes: all of it or nothing, never an input, and with one mode."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
import torch

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.demo.run import run_demo
from fxrebasin.models.by_name import build_model
from fxrebasin.storage import files, placing
from tests.support.commands import document, invoke, lay_out
from tests.support.streamed import save_shards
from tests.support.tiny_demo import TINY

LOSS = ("--evaluate", "nets:evaluate")
STREAMED = ("--max-memory", "2GiB")
NO_OUTPUTS = {"verify"}


@dataclass(frozen=True)
class Row:
    """A command with all that it can write.

    Args:
        arguments: of the command, without outputs; the name of the command first.
        outputs: options with the paths that they are given.
        written: all files that appear.
        inputs: files that are read.
    """

    arguments: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]
    written: tuple[str, ...]
    inputs: tuple[str, ...]

    @property
    def line(self) -> list[str]:
        """The command as it is written."""
        return [*self.arguments, *(word for pair in self.outputs for word in pair)]


OUT, MANY = ("--out", "o.safetensors"), ("--out", "o-{t}.safetensors")
BOTH = ("o-0.25.safetensors", "o-0.5.safetensors")
PAIR = ("nets:Net", "--model-b", "c.pt", "--ref", "a.pt")
TWO = ("a.pt", "c.pt")
CERTIFICATE = ("--certificate", "p.safetensors")
ONNX = ("--out", "o.onnx")
FILES = ("a.onnx", "b.onnx")

ROWS = {
    "transform": Row(
        ("transform", *PAIR),
        (OUT, ("--onnx", "o.onnx"), CERTIFICATE, ("--picture", "o.png")),
        ("o.onnx", "o.safetensors", "p.safetensors", "o.png"),
        TWO,
    ),
    "transform a tensor at a time": Row(
        ("transform", *PAIR, *STREAMED),
        (OUT, CERTIFICATE),
        ("o.safetensors", "p.safetensors"),
        TWO,
    ),
    "transform of a folder": Row(
        ("transform", "nets:Net", "--model-b", "shards", "--ref", "a.pt"),
        (("--out", "folder"), CERTIFICATE),
        ("folder", "p.safetensors"),
        ("a.pt", "shards"),
    ),
    "transform of ONNX": Row(
        ("transform", "b.onnx", "--ref", "a.onnx"),
        (ONNX, CERTIFICATE, ("--picture", "o.png")),
        ("o.onnx", "p.safetensors", "o.png"),
        FILES,
    ),
    "merge": Row(
        ("merge", "nets:Net", "a.pt", "c.pt", *LOSS),
        (OUT, ("--picture", "o.svg")),
        ("o.safetensors", "o.svg", "o.json", "o.md"),
        TWO,
    ),
    "merge with a base": Row(
        ("merge", "nets:Net", "a.pt", "c.pt", "--base", "d.pt", "--combine", "ties"),
        (OUT,),
        ("o.safetensors", "o.json", "o.md"),
        (*TWO, "d.pt"),
    ),
    "merge into a folder": Row(
        ("merge", "nets:Net", "shards", "c.pt", *LOSS),
        (("--out", "folder"), ("--picture", "o.svg")),
        ("folder", "o.svg"),
        ("c.pt", "shards"),
    ),
    "merge a tensor at a time": Row(
        ("merge", "nets:Net", "a.pt", "c.pt", *STREAMED),
        (OUT,),
        ("o.safetensors", "o.json", "o.md"),
        TWO,
    ),
    "merge of ONNX": Row(
        ("merge", *FILES),
        (ONNX, ("--picture", "o.pdf")),
        ("o.onnx", "o.json", "o.md", "o.pdf"),
        FILES,
    ),
    "interpolate": Row(
        ("interpolate", "nets:Net", "a.pt", "c.pt", "--t", "0.25,0.5"),
        (MANY, ("--picture", "o.pdf")),
        (*BOTH, "o.pdf"),
        TWO,
    ),
    "interpolate a tensor at a time": Row(
        ("interpolate", "nets:Net", "a.pt", "c.pt", "--t", "0.25,0.5", *STREAMED),
        (MANY,),
        BOTH,
        TWO,
    ),
    "interpolate of ONNX": Row(
        ("interpolate", *FILES, "--t", "0.25,0.5"),
        (("--out", "o-{t}.onnx"), ("--picture", "o.svg")),
        ("o-0.25.onnx", "o-0.5.onnx", "o.svg"),
        FILES,
    ),
    "barrier": Row(
        ("barrier", "nets:Net", "a.pt", "c.pt", "--steps", "3", *LOSS),
        (("--picture", "o.svg"),),
        ("o.svg",),
        TWO,
    ),
    "apply": Row(
        ("apply", "nets:Net", "p.certificate", "--weights", "a.pt"),
        (OUT,),
        ("o.safetensors",),
        ("a.pt", "p.certificate"),
    ),
    "apply to ONNX": Row(
        ("apply", "a.onnx", "p.certificate"), (ONNX,), ("o.onnx",), ("a.onnx", "p.certificate")
    ),
    "compose": Row(
        ("compose", "p.certificate", "p.certificate"),
        (OUT,),
        ("o.safetensors",),
        ("p.certificate",),
    ),
    "export": Row(("export", "nets:Net", "--weights", "a.pt"), (ONNX,), ("o.onnx",), ("a.pt",)),
    "inspect": Row(
        ("inspect", "nets:Net", "--weights", "a.pt"),
        (("--picture", "o.svg"), ("--html", "o.html")),
        ("o.svg", "o.html"),
        ("a.pt",),
    ),
    "demo": Row(
        ("demo",),
        (("--out", "folder"),),
        ("folder",),
        (),
    ),
    "run": Row(
        ("run", "merge.recipe"), (OUT,), ("o.safetensors", "o.json", "o.md"), (*TWO, "merge.recipe")
    ),
}


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Checkpoints, the same as ONNX files and in shards, a certificate, and a recipe."""
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lay_out(folder)
        example = torch.randn(2, 3)
        for source, name in (("a", "a"), ("c", "b")):
            model = build_model("nets:Net")
            model.load_state_dict(torch.load(f"{source}.pt"))
            fxrebasin.export_onnx(model, f"{name}.onnx", example, dynamic_batch=False)
            proto = onnx.load(f"{name}.onnx")
            del proto.metadata_props[:]
            onnx.save(proto, f"{name}.onnx")
        fxrebasin.analyze(model, example).random(2).save("p.certificate")
        save_shards(folder / "shards", torch.load("c.pt"), 2)
        Path("merge.recipe").write_text(
            "command: merge\nmodel: nets:Net\nmodels: [a.pt, c.pt]\nout: x.safetensors\n"
        )
        patch.setitem(run_demo.__kwdefaults__, "subjects", TINY)
        yield folder
    sys.modules.pop("nets", None)  # other tests have another module of this name


@pytest.fixture
def folder(laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in laid_out.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def all_rows(*chosen: str) -> Any:
    rows = [(name, row) for name, row in ROWS.items() if not chosen or name in chosen]
    return pytest.mark.parametrize(
        "row", [row for _, row in rows], ids=[name.replace(" ", "-") for name, _ in rows]
    )


def new_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.is_symlink() and p.name != "__pycache__"}


def may_write(command: click.Command) -> set[str]:
    """The options of a command that name what it writes."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    paths = [p for p in options if isinstance(p.type, click.Path) and not p.type.exists]
    return {path.opts[0] for path in paths}


def test_every_output_of_every_command_is_in_the_table() -> None:
    assert isinstance(main, click.Group)
    for name, command in main.commands.items():
        rows = [row for row in ROWS.values() if row.arguments[0] == name]
        assert (name in NO_OUTPUTS) == (not rows), name
        given = {option for row in rows for option, _ in row.outputs}
        assert may_write(command) <= given, name


@all_rows()
def test_all_outputs_appear_together_or_none(
    row: Row, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else writes one of them at the last moment, once for each."""
    appear = placing.put_in_place
    sets: list[set[Path]] = []

    def beaten(drafts: Sequence[placing.Draft]) -> None:
        here = {item.place.absolute() for item in drafts}
        if not here <= {folder / name for name in row.written}:
            appear(drafts)  # on the way, in another folder
            return
        sets.append(here)
        last = drafts[-1].place
        if drafts[-1].draft.is_dir():
            last.mkdir()
            (last / "of another").write_bytes(b"run")
        else:
            last.write_bytes(b"of another run")
        appear(drafts)

    before = new_in(folder)
    with monkeypatch.context() as patch:
        patch.setattr(files, "put_in_place", beaten)
        text = invoke(*row.line, code=2).stderr
    assert sets == [{folder / name for name in row.written}]
    assert "exists already: something else wrote it meanwhile; choose another place" in text
    (left,) = new_in(folder) - before
    place = folder / left
    other = (place / "of another") if place.is_dir() else place
    assert other.read_bytes() in (b"run", b"of another run")
    assert left in text
    other.rename(folder / "gone")
    if place.is_dir():
        place.rmdir()
    (folder / "gone").unlink()
    was = os.umask(0o027)
    try:
        found = document(*row.line)
    finally:
        os.umask(was)
    assert new_in(folder) - before == set(row.written)
    listed = {Path(name).parts[0] for name in found.get("files", row.written)}
    assert listed == set(row.written)
    whole = [p for name in row.written for p in [folder / name, *(folder / name).rglob("*")]]
    modes = {stat.S_IMODE(p.stat().st_mode) for p in whole if p.is_file()}
    assert modes == {0o640}


@all_rows(*(name for name, row in ROWS.items() if row.inputs))
def test_no_output_takes_the_place_of_an_input(row: Row, folder: Path) -> None:
    untouched = {name: (folder / name).read_bytes() for name in row.inputs if "." in name}
    for option, path in row.outputs:
        for name in row.inputs:
            if (Path(path).suffix == "") is ("." in name):
                continue  # a file in the place of a folder, or the other way round
            alias = folder / f"alias{Path(path).suffix}"
            alias.symlink_to(folder / name)
            instead = [alias.name if word == path else word for word in row.line]
            if "{t}" in path:
                instead = [word for word in instead if word not in ("--t", "0.25,0.5")]
            text = invoke(*instead, "--overwrite", code=2).stderr
            assert f"{alias.name} cannot be written: " in text, (option, name)
            assert "is read; choose another place" in text, (option, name)
            alias.unlink()
    assert {name: (folder / name).read_bytes() for name in untouched} == untouched


def test_a_report_does_not_take_the_place_of_an_input(folder: Path) -> None:
    """OUT.json is written too, and may be the index of a checkpoint, or the recipe."""
    (folder / "o.json").symlink_to(folder / "merge.recipe")
    text = invoke("run", "o.json", "--out", "o.safetensors", "--overwrite", code=2).stderr
    assert "o.json cannot be written: o.json is read; choose another place" in text


def test_other_outputs_do_not_go_into_the_folder_of_the_weights(folder: Path) -> None:
    given = ("transform", "nets:Net", "--model-b", "shards", "--ref", "a.pt", "--out", "folder")
    text = invoke(*given, "--onnx", "folder/o.onnx", code=2).stderr
    assert "folder/o.onnx lies in folder, which is written as a whole; choose another" in text
