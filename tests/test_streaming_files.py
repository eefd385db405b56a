"""Tensors in files of every kind are read one at a time, and what is written is looked at again."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save

from fxrebasin.errors import ArchitectureMismatchError, CheckpointError, EquivalenceError
from fxrebasin.models.valueless import without_values
from fxrebasin.storage.reading import Kind, Reading
from fxrebasin.streaming import making
from fxrebasin.streaming.aligning import lay_buffers
from fxrebasin.streaming.archive import WholeOnlyError
from fxrebasin.streaming.making import Permuting, new_files, write_files
from fxrebasin.streaming.opening import open_checkpoint
from fxrebasin.streaming.reader import open_reader
from fxrebasin.streaming.safetensors_file import layout_of, new_layout
from fxrebasin.streaming.stored import Stored
from tests.support.streamed import IDS, Case, Remembering, Stack, save_shards

PLAIN = Reading()


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(Stack(layers=2), IDS)


def written(kind: str, case: Case, folder: Path) -> Path:
    """A checkpoint of the model that moves."""
    state = {name: tensor.clone() for name, tensor in case.b.items()}
    path = folder / {"safetensors": "b.safetensors", "sharded": "b", "dcp": "dcp"}.get(kind, "b.pt")
    if kind == "safetensors":
        save_file(state, path, {"format": "pt"})
    elif kind == "sharded":
        return save_shards(path, state, 3)
    elif kind == "dcp":
        save({"model": state, "step": 3}, checkpoint_id=path, no_dist=True)
    elif kind == "nested":
        torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 2}, path)
    elif kind == "old":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(OrderedDict(state), path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "dcp", "nested", "plain"])
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_every_tensor_is_found_and_read_whole_or_in_rows(
    kind: str, case: Case, tmp_path: Path
) -> None:
    opened = open_checkpoint(written(kind, case, tmp_path), Stack(layers=2), PLAIN)
    assert opened.reader.bytes_read == 0
    for name, tensor in case.b.items():
        assert opened.stored[name] == Stored(tuple(tensor.shape), tensor.dtype)
        assert torch.equal(opened.read(name), tensor)
    part = opened.read("embed.weight", slice(5, 9))
    assert torch.equal(part, case.b["embed.weight"][5:9])
    assert part.untyped_storage().nbytes() == part.nbytes
    assert opened.reader.bytes_read == sum(t.nbytes for t in case.b.values()) + part.nbytes
    assert opened.bytes == sum(t.nbytes for t in case.b.values())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("safetensors", Kind.FILE), ("sharded", Kind.INDEX), ("dcp", Kind.DISTRIBUTED)],
)
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_what_it_is_is_told(kind: str, expected: Kind, case: Case, tmp_path: Path) -> None:
    assert open_checkpoint(written(kind, case, tmp_path), Stack(layers=2), PLAIN).kind is expected


def test_a_model_without_values_is_enough(case: Case, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = Stack(layers=2)
    opened = open_checkpoint(written("sharded", case, tmp_path), model, PLAIN)
    assert torch.equal(opened.read("head.weight"), case.b["head.weight"])


def test_another_architecture_is_refused_by_its_header(case: Case, tmp_path: Path) -> None:
    path = written("safetensors", case, tmp_path)
    with pytest.raises(ArchitectureMismatchError, match=r"up\.2\.weight"):
        open_checkpoint(path, Stack(layers=3), PLAIN)
    with pytest.raises(ArchitectureMismatchError, match=r"up\.0\.weight"):
        open_checkpoint(path, Stack(layers=2, hidden=48), PLAIN)


def test_a_file_that_is_cut_short_is_refused(case: Case, tmp_path: Path) -> None:
    path = written("safetensors", case, tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cut short"):
        open_checkpoint(path, Stack(layers=2), PLAIN)


def test_a_file_that_shrinks_later_is_refused(case: Case, tmp_path: Path) -> None:
    path = written("safetensors", case, tmp_path)
    opened = open_checkpoint(path, Stack(layers=2), PLAIN)
    before, layout_of_before = opened.reader.fingerprint(), layout_of(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert opened.reader.fingerprint() != before
    last = list(layout_of_before.tensors)[-1]
    with pytest.raises(CheckpointError, match="ends before its tensors do"):
        opened.read(last)


def test_the_older_format_is_for_reading_as_a_whole(case: Case, tmp_path: Path) -> None:
    with pytest.raises(WholeOnlyError, match=r"torch before 1\.6"):
        open_checkpoint(written("old", case, tmp_path), Stack(layers=2), PLAIN)


def test_a_shard_outside_the_folder_is_refused(case: Case, tmp_path: Path) -> None:
    index = written("sharded", case, tmp_path)
    index.write_text(index.read_text().replace('"net-00001', '"../net-00001'))
    with pytest.raises(CheckpointError, match=r"names the shard '\.\./net"):
        open_checkpoint(index, Stack(layers=2), PLAIN)


def test_a_folder_of_several_files_is_for_reading_as_a_whole(case: Case, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file(case.b, tmp_path / f"{name}.safetensors")
    with pytest.raises(WholeOnlyError, match="holds 2 files of weights"):
        open_checkpoint(tmp_path, Stack(layers=2), PLAIN)


def test_two_names_of_one_tensor_are_read_as_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 3)
            self.two = nn.Linear(4, 3)
            self.two.weight = self.one.weight

    model = Tied()
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    opened = open_checkpoint(tmp_path / "tied.pt", model, PLAIN)
    assert opened.places["one.weight"] == opened.places["two.weight"]
    assert opened.bytes == 4 * (12 + 3 + 3)


def test_buffers_are_those_of_the_checkpoint_even_if_made_of_parameters(tmp_path: Path) -> None:
    case = Case(Remembering(), IDS)
    save_file(case.b, tmp_path / "b.safetensors")
    with without_values():
        model = Remembering()
    assert model.made.is_meta
    assert not model.scale.is_meta
    lay_buffers(model, open_checkpoint(tmp_path / "b.safetensors", model, PLAIN))
    assert torch.equal(model.made, case.b["made"])
    assert torch.equal(model.scale, case.b["scale"])
    assert all(parameter.is_meta for parameter in model.parameters())


def permute(path: Path, case: Case, out: Path, **more: Any) -> None:
    """Write the permuted checkpoint as files."""
    opened = open_checkpoint(path, Stack(layers=2), PLAIN)
    files = new_files(opened, more.get("single"), more.get("dtype"), others=True)
    out.mkdir()
    write_files(opened, files, Permuting(opened, case.planted), out)


@pytest.mark.parametrize("share", [(0, 0.01), (0.99, 1), (0.4, 0.6)])
def test_exchanged_numbers_are_seen_under_the_old_time(
    share: tuple[float, float], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    state = {"w": torch.randn(600_000)}
    save_file(state, path)
    status, before = path.stat(), open_reader(path)[0].fingerprint()
    assert open_reader(path)[0].fingerprint() == before
    first, last = (int(at * 600_000) for at in share)
    state["w"][first:last] += 1
    save_file(state, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_reader(path)[0].fingerprint() != before


def test_files_are_on_the_disk_before_they_have_their_names(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, replace, synced, named = os.fsync, Path.replace, set(), set()

    def syncing(number: int) -> None:
        sync(number)
        synced.add((os.fstat(number).st_ino, os.fstat(number).st_size))

    def replacing(self: Path, target: Path) -> Path:
        status = self.stat()
        assert (status.st_ino, status.st_size) in synced
        named.add(target.name)
        return replace(self, target)

    index = written("sharded", case, tmp_path)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", replacing)
    permute(index, case, tmp_path / "out")
    assert named >= {shard.name for shard in index.parent.glob("*.safetensors")}


@pytest.mark.parametrize("block", [making.BLOCK, 700])
def test_files_keep_headers_names_and_shards(
    block: int, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "BLOCK", block)
    index = written("sharded", case, tmp_path)
    permute(index, case, tmp_path / "out")
    expected = case.planted.permute_state_dict(case.b)
    shards = sorted(index.parent.glob("*.safetensors"))
    assert len(shards) == 3
    for shard in shards:
        again = tmp_path / "out" / shard.name
        assert layout_of(again).header == layout_of(shard).header
        assert again.stat().st_size == shard.stat().st_size
        for name, tensor in load_file(again).items():
            assert torch.equal(tensor, expected[name])
    assert not [*(tmp_path / "out").glob(".*")]


@pytest.mark.parametrize("kind", ["sharded", "nested", "dcp"])
@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_all_of_it_can_go_to_one_file(kind: str, case: Case, tmp_path: Path) -> None:
    permute(written(kind, case, tmp_path), case, tmp_path / "out", single="x.safetensors")
    found = load_file(tmp_path / "out" / "x.safetensors")
    before = "module." if kind == "nested" else ""
    for name, tensor in case.planted.permute_state_dict(case.b).items():
        assert torch.equal(found[before + name], tensor)


def test_numbers_can_be_written_as_others(case: Case, tmp_path: Path) -> None:
    path = written("safetensors", case, tmp_path)
    permute(path, case, tmp_path / "out", dtype=torch.bfloat16)
    found = load_file(tmp_path / "out" / "b.safetensors")
    for name, tensor in case.planted.permute_state_dict(case.b).items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16))


def test_what_was_written_wrongly_is_seen(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("safetensors", case, tmp_path)
    write = making.write_rows

    def wrong(file: Any, start: int, tensor: torch.Tensor) -> None:
        flipped = tensor.clone()
        if tensor.shape == (40,):
            flipped[3] = -flipped[3]
        write(file, start, flipped)

    monkeypatch.setattr(making, "write_rows", wrong)
    with pytest.raises(EquivalenceError, match=r"up\.0\.bias is not, bit for bit"):
        permute(path, case, tmp_path / "out")
    assert not (tmp_path / "out" / "b.safetensors").exists()


def test_rows_that_were_exchanged_are_seen(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("safetensors", case, tmp_path)
    monkeypatch.setattr(making, "moved", lambda tensor, groups, arrays: tensor.flip(0))
    monkeypatch.setattr(Permuting, "undo", lambda self, name, tensor: tensor)
    with pytest.raises(EquivalenceError, match="bit for bit"):
        permute(path, case, tmp_path / "out")


def test_other_kinds_cannot_be_written_in_parts(case: Case, tmp_path: Path) -> None:
    opened = open_checkpoint(written("plain", case, tmp_path), Stack(layers=2), PLAIN)
    with pytest.raises(WholeOnlyError, match="not of safetensors"):
        new_files(opened, None, None, others=True)


def test_a_new_header_is_one_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "a": Stored((3,), torch.bool),
        "b": Stored((2, 2), torch.float64),
        "c": Stored((), torch.bfloat16),
        "d": Stored((0, 4), torch.float32),
    }
    layout = new_layout(tensors, {"made": "by hand"})
    (tmp_path / "x.safetensors").write_bytes(
        layout.header + bytes(layout.bytes - len(layout.header))
    )
    again = layout_of(tmp_path / "x.safetensors")
    assert again == layout
    found = load_file(tmp_path / "x.safetensors")
    assert {name: Stored(tuple(t.shape), t.dtype) for name, t in found.items()} == tensors
