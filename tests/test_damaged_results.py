"""Files that a run had finished before it was interrupted, and that were damaged meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fxrebasin.cli import large_run
from fxrebasin.streaming import making, outcome
from tests.support.commands import invoke
from tests.support.streamed import IDS, STACK, Case, Stack
from tests.support.streamed_command import SOME, interrupt_after, is_a, of, save_case, transform


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(Stack(), IDS)


@pytest.fixture
def folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_case(tmp_path, case)
    return tmp_path


def merge(*arguments: object, code: int = 0) -> Any:
    return invoke("merge", STACK, *arguments, code=code)


def interrupt(*given: Any, **more: Any) -> None:
    signal.raise_signal(signal.SIGINT)


def damage(path: Path, how: str) -> None:
    """What a loss of power, a full disk or a bad one leaves of a file."""
    data = bytearray(path.read_bytes())
    match how:
        case "a bit":
            data[-5] ^= 1
        case "the header":
            data[9] ^= 1
        case "cut short":
            del data[-9:]
        case "longer":
            data += bytes(8)
        case "empty":
            data.clear()
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["a bit", "the header", "cut short", "longer", "empty"])
def test_a_finished_file_that_was_damaged_is_made_anew(how: str, folder: Path, case: Case) -> None:
    transform("shards", "d", *SOME)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, making.NewFile, 2)
        transform("shards", "c", *SOME, code=130)
    first, second, *_ = sorted((folder / ".c.unfinished" / "result-0").glob("net*.safetensors"))
    at = second.stat().st_mtime_ns
    damage(first, how)
    found = transform("shards", "c", *SOME, "--resume")
    said = f"{first.name} was not what the earlier run had written any more: it was made anew"
    assert said in " ".join(found.output.split())
    assert second.name not in found.output
    assert (folder / "c" / second.name).stat().st_mtime_ns == at
    for file in Path("d").iterdir():
        assert (Path("c") / file.name).read_bytes() == file.read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == [
        "a.safetensors", "b.safetensors", "c", "d", "shards"
    ]  # fmt: skip


@pytest.mark.parametrize("record", ["gone", "damaged"])
def test_a_file_of_which_nothing_is_known_is_made_anew(
    record: str, folder: Path, case: Case
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, making.NewFile, 1)
        transform("shards", "c", *SOME, code=130)
    (file,) = (folder / ".c.unfinished" / "result-0").glob("net*")
    (known,) = (folder / ".c.unfinished").glob("result-0.records/*")
    known.write_bytes(known.read_bytes()[:-4]) if record == "damaged" else known.unlink()
    damage(file, "a bit")
    transform("shards", "c", *SOME, "--resume")
    assert is_a(of(Path("c")), case)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_whole_file_that_was_damaged_is_made_anew(suffix: str, folder: Path, case: Case) -> None:
    torch.save(dict(case.b), "b.pt")
    given = (f"b{suffix}", f"c{suffix}", *SOME)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "_write_pickle", interrupt)
        patch.setattr(large_run, "publish_outcome", interrupt)
        transform(*given, code=130)
    (file,) = (folder / f".c{suffix}.unfinished" / "result-0").glob("*")
    damage(file, "a bit")
    assert "made anew" in transform(*given, "--resume").output
    c = Path(f"c{suffix}")
    assert is_a(load_file(c) if suffix == ".safetensors" else torch.load(c), case)


def test_a_merged_file_that_was_damaged_is_made_anew(folder: Path) -> None:
    given = ("shards", "a.safetensors", "--combine", "slerp", *SOME, "--out")
    merge(*given, "d")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, making.NewFile, 1)
        merge(*given, "c", code=130)
    (file,) = (folder / ".c.unfinished" / "result-0").glob("net*")
    damage(file, "a bit")
    assert "made anew" in merge(*given, "c", "--resume").output
    for file in Path("d").glob("net*"):
        assert (Path("c") / file.name).read_bytes() == file.read_bytes()
