"""Folders of torch.distributed.checkpoint, read and written a part of a tensor at a time."""

from __future__ import annotations

import pickle
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from fxrebasin.errors import CheckpointError
from fxrebasin.storage.checkpoint import read_checkpoint
from fxrebasin.storage.distributed import read_distributed
from fxrebasin.streaming import bundles, distributed_parts, making, outcome
from fxrebasin.streaming.archive import Lying
from fxrebasin.streaming.distributed_folder import DistributedFolder
from tests.support.commands import invoke
from tests.support.streamed import IDS, STACK, Case, Stack
from tests.support.streamed_command import SOME, interrupt_after


def save_folder(path: Path, tree: dict[str, Any]) -> None:
    """What training scripts write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tree, checkpoint_id=path, no_dist=True)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(Stack(), IDS)


@pytest.fixture
def folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a, and b with averages, a number, an optimiser, and a file beside it."""
    monkeypatch.chdir(tmp_path)
    save_file(case.a, "a.safetensors", {"format": "pt"})
    average = {name: tensor * 2 for name, tensor in case.b.items()}
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}
    tree = {"model": case.b, "ema": average, "step": 7, "optim": moments, "rng": torch.arange(5)}
    save_folder(tmp_path / "b", tree)
    (tmp_path / "b" / "meta.txt").write_text("mine")
    return tmp_path


def transform(out: str, *more: object, code: int = 0) -> Any:
    given = ("transform", STACK, "--model-b", "b", "--ref", "a.safetensors")
    return invoke(*given, "--out", out, *SOME, *more, code=code)


def bytes_in(path: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in path.iterdir()}


def check(found: Path, case: Case) -> None:
    """All that belongs there is there."""
    tree = read_distributed(found).tree
    assert tree.keys() == {"model", "ema", "step", "rng"}
    assert tree["step"] == 7
    assert torch.equal(tree["rng"], torch.arange(5))
    for name, tensor in case.a.items():
        assert torch.equal(tree["model"][name], tensor)
        assert torch.equal(tree["ema"][name], 2 * tensor)
    state = read_checkpoint(found, Stack()).state
    assert all(torch.equal(state[name], tensor) for name, tensor in case.a.items())
    assert (found / "meta.txt").read_text() == "mine"
    assert not list(found.glob(".*.written"))


def test_a_folder_becomes_a_folder(folder: Path, case: Case) -> None:
    transform("c")
    check(folder / "c", case)
    transform("d")
    assert bytes_in(folder / "c") == bytes_in(folder / "d")
    assert sorted(p.name for p in folder.iterdir()) == ["a.safetensors", "b", "c", "d"]


def test_tensors_are_in_parts_where_they_are_large(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (making, bundles):
        monkeypatch.setattr(module, "BLOCK", 1000)
    transform("c")
    check(folder / "c", case)
    index = DistributedFolder(folder / "c").metadata
    assert len(index.state_dict_metadata["model.embed.weight"].chunks) == 9
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    given = ("transform", STACK, "--model-b", "a.safetensors", "--ref", "c")
    invoke(*given, "--out", "again.safetensors", *SOME)
    found = load_file("again.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in case.a.items())


def test_numbers_can_be_written_as_others(folder: Path, case: Case) -> None:
    transform("c", "--dtype", "bfloat16")
    tree = read_distributed(folder / "c").tree
    for name, tensor in case.a.items():
        assert torch.equal(tree["model"][name], tensor.to(torch.bfloat16))
    assert torch.equal(tree["rng"], torch.arange(5))


def test_an_interrupted_run_goes_on(
    folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform("d")
    with monkeypatch.context() as patch:
        interrupt_after(patch, distributed_parts.NewPart, 5)
        transform("c", code=130)
    assert not Path("c").exists()
    kept = folder / ".c.unfinished" / "result-0"
    done = {p.name: p.stat().st_mtime_ns for p in kept.glob("__*")}
    assert len(done) == 5
    transform("c", "--resume")
    assert bytes_in(folder / "c") == bytes_in(folder / "d")
    for name, at in done.items():
        assert (folder / "c" / name).stat().st_mtime_ns == at


@pytest.mark.parametrize("at", ["between files", "behind the index"])
@pytest.mark.parametrize("how", ["a bit", "cut short"])
def test_a_finished_file_that_was_damaged_is_made_anew(
    at: str, how: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform("d")

    def late(*given: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        if at == "between files":
            interrupt_after(patch, distributed_parts.NewPart, 5)
        else:
            patch.setattr(outcome, "_write_beside", late)
        transform("c", code=130)
    file = folder / ".c.unfinished" / "result-0" / "__3_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data if how == "a bit" else data[:-9])
    found = transform("c", "--resume")
    assert "__3_0.distcp was not what the earlier run had written any more" in " ".join(
        found.output.split()
    )
    assert bytes_in(folder / "c") == bytes_in(folder / "d")


def test_what_was_written_wrongly_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = DistributedFolder.read_named

    def flipped(self: DistributedFolder, name: str, rows: slice | None = None) -> torch.Tensor:
        found = read(self, name, rows)
        if name == "model.up.0.bias" and "result" in str(self.path):
            found[3] = -found[3]
        return found

    monkeypatch.setattr(DistributedFolder, "read_named", flipped)
    result = transform("c", code=1)
    assert "model.up.0.bias is not, bit for bit" in result.output
    assert not Path("c").exists()


def cut_along_both_axes(path: Path, tensor: torch.Tensor) -> None:
    """A folder in which a tensor is in four parts."""
    corners = [(0, 0), (0, 3), (4, 0), (4, 3)]
    parts = {f"{k}": tensor[r : r + 4, c : c + 3].clone() for k, (r, c) in enumerate(corners)}
    save_folder(path, parts)
    with (path / ".metadata").open("rb") as file:
        index = pickle.load(file)  # of our own
    sizes = {k: tuple(part.shape) for k, part in enumerate(parts.values())}
    chunks = [
        ChunkStorageMetadata(torch.Size(at), torch.Size(sizes[k])) for k, at in enumerate(corners)
    ]
    found = TensorStorageMetadata(
        index.state_dict_metadata["0"].properties, torch.Size(tensor.shape), chunks
    )
    where = {name.fqn: info for name, info in index.storage_data.items()}
    index.storage_data = {MetadataIndex("x", at): where[str(k)] for k, at in enumerate(corners)}
    index.state_dict_metadata, index.planner_data = {"x": found}, {"x": ("x",)}
    (path / ".metadata").write_bytes(pickle.dumps(index))


def test_rows_of_parts_are_read_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = torch.randn(7, 5)
    cut_along_both_axes(tmp_path / "x", tensor)
    read, bytes_read = Lying.read, []

    def counted(self: Lying, *given: Any) -> torch.Tensor:
        found = read(self, *given)
        bytes_read.append(found.nbytes)
        return found

    monkeypatch.setattr(Lying, "read", counted)
    found = DistributedFolder(tmp_path / "x")
    assert torch.equal(found.read(("x",), None), tensor)
    assert sum(bytes_read) == tensor.nbytes
    bytes_read.clear()
    assert torch.equal(found.read(("x",), slice(3, 5)), tensor[3:5])
    assert sum(bytes_read) == tensor[3:5].nbytes
    assert found.tree["x"].shape == (7, 5)


def found_in_order(opened: DistributedFolder) -> list[tuple[int, str]]:
    """Where tensors begin in their file."""
    return [(info.offset, index.fqn) for index, info in opened.metadata.storage_data.items()]


@pytest.mark.parametrize("fault", ["short", "other", "zeros"])
def test_damaged_parts_are_refused(fault: str, tmp_path: Path) -> None:
    save_folder(tmp_path / "x", {"one": torch.randn(9, 4), "two": torch.randn(4, 9)})
    (data,) = (tmp_path / "x").glob("*.distcp")
    index = tmp_path / "x" / ".metadata"
    if fault == "short":
        data.write_bytes(data.read_bytes()[:-700])
    elif fault == "zeros":
        data.write_bytes(bytes(data.stat().st_size))
    else:
        with index.open("rb") as file:
            found = pickle.load(file)
        one, two = found.storage_data
        infos = found.storage_data
        infos[one], infos[two] = infos[two], infos[one]
        index.write_bytes(pickle.dumps(found))
    opened = DistributedFolder(tmp_path / "x")
    last = max(found_in_order(opened))[1]
    with pytest.raises(CheckpointError, match=r"damaged|promises"):
        opened.read((last,), None)
