"""Weights are read from whatever holds them, or refused with the fault; files appear whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, CheckpointError, InputError
from fxrebasin.storage.checkpoint import load_state_dict, load_weights, save_state_dict
from fxrebasin.storage.reference import reference_state

KINDS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.register_buffer("positions", torch.arange(4), persistent=False)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name])
        assert tensor.dtype == right[name].dtype


@pytest.mark.parametrize("kind", KINDS)
def test_weights_survive_the_round_trip(tmp_path: Path, kind: str) -> None:
    state = Tied().state_dict()
    state["transposed"] = torch.randn(3, 4).t()
    state["half"] = torch.randn(4, dtype=torch.bfloat16)
    state["slice"] = torch.randn(10)[2:4]
    path = tmp_path / "new" / f"weights{kind}"
    save_state_dict(path, state)
    loaded = load_state_dict(path)
    assert_same({name: loaded[name] for name in state}, state)
    assert list(path.parent.iterdir()) == [path]


def test_tied_tensors_are_readable_by_everyone(tmp_path: Path) -> None:
    path = tmp_path / "tied.safetensors"
    save_state_dict(path, Tied().state_dict())
    assert set(load_file(path)) == set(Tied().state_dict())


def test_files_are_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_state_dict(path, {"a": torch.zeros(1)})
    with pytest.raises(InputError, match="exists already"):
        save_state_dict(path, {"a": torch.ones(1)})
    assert load_state_dict(path)["a"].item() == 0
    save_state_dict(path, {"a": torch.ones(1)}, overwrite=True)
    assert load_state_dict(path)["a"].item() == 1


@pytest.mark.parametrize("kind", [".safetensors", ".pt"])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"weights{kind}"
    save_state_dict(path, {"a": torch.zeros(1)})

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fxrebasin.storage.containers.save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"cannot be written: OSError: disk full"):
        save_state_dict(path, {"a": torch.ones(1)}, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]
    assert load_state_dict(path)["a"].item() == 0


NESTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
    "model": lambda state: {"model": state, "lr": torch.tensor(0.1)},
    "twice": lambda state: {"checkpoint": {"model_state_dict": state}},
    "module.": lambda state: {f"module.{name}": value for name, value in state.items()},
    "_orig_mod.": lambda state: {"net": {f"_orig_mod.{n}": v for n, v in state.items()}},
    "module._orig_mod.": lambda state: {f"module._orig_mod.{n}": v for n, v in state.items()},
    "model.": lambda state: {"state_dict": {f"model.{n}": v for n, v in state.items()}},
    "inner": lambda state: {n.replace(".", "._orig_mod.", 1): v for n, v in state.items()},
}


@pytest.mark.parametrize("form", NESTED)
def test_weights_are_found_where_scripts_put_them(tmp_path: Path, form: str) -> None:
    state = dict(Tied().state_dict())
    path = tmp_path / "training.pt"
    torch.save(NESTED[form](state), path)
    assert_same(load_state_dict(path, expected=state), state)


def test_prefixes_are_kept_where_the_names_have_them(tmp_path: Path) -> None:
    state = {"model.weight": torch.zeros(2), "module.bias": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pt")
    assert_same(load_state_dict(tmp_path / "a.pt", expected=state), state)
    assert_same(load_state_dict(tmp_path / "a.pt"), state)


def test_files_of_the_old_format_are_read(tmp_path: Path) -> None:
    state = {"a": torch.randn(3)}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(load_state_dict(tmp_path / "old.pth"), state)


def write_shards(folder: Path) -> Path:
    save_file({"a": torch.zeros(2)}, folder / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, folder / "model-2.safetensors")
    files = {"b": "model-2.safetensors", "a": "model-1.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    state = load_state_dict(write_shards(tmp_path))
    assert_same(state, {"b": torch.ones(2), "a": torch.zeros(2)})


def test_faults_of_shards_are_told(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    for where in (index, tmp_path):
        with pytest.raises(CheckpointError, match=r"model-1\.safetensors does not exist"):
            load_state_dict(where)
    save_file({"other": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    with pytest.raises(CheckpointError, match="promises a, 1 in all"):
        load_state_dict(index)
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="is not an index of a checkpoint"):
            load_state_dict(index)
    index.write_text('{"weight_map": {"a": "../secret.pt"}}')
    with pytest.raises(CheckpointError, match=r"names the shard '\.\./secret\.pt'"):
        load_state_dict(index)


class Unsafe:
    """Something that is no tensor."""


def corrupt(folder: Path, fault: str) -> Path:
    """A file with one thing wrong with it."""
    path = folder / f"weights.{fault.rsplit(' ', 1)[1]}"
    state = {"a": torch.randn(1000)}
    if fault.startswith("unsafe"):
        torch.save({"a": Unsafe()}, path)
    elif fault.startswith("module"):
        torch.save(nn.Linear(2, 2), path)
    elif fault.startswith("no tensors"):
        torch.save({"epoch": 3}, path)
    elif fault.startswith("list"):
        torch.save([torch.ones(1)], path)
    elif fault.startswith("text"):
        path.write_text("<html>Not found</html>")
    elif fault.startswith("pickle"):
        torch.save(state, path)
    elif fault.startswith("folder"):
        path.mkdir()
    elif not fault.startswith("missing"):
        save_state_dict(path, state)
        content = path.read_bytes()
        path.write_bytes({"truncated": content[:-500], "empty": b""}[fault.split()[0]])
    return path


FAULTS = {
    "missing pt": "does not exist",
    "missing safetensors": "does not exist",
    "folder pt": "is a folder",
    "empty safetensors": "is empty",
    "empty pt": "is empty",
    "truncated safetensors": "not an intact safetensors file",
    "truncated pt": "cannot be read by torch.load",
    "text safetensors": "not an intact safetensors file",
    "text pt": "cannot be read by torch.load",
    "pickle safetensors": "not an intact safetensors file",
    "unsafe pt": "objects other than tensors",
    "module pt": "objects other than tensors",
    "no tensors pt": "holds no tensors by name: its keys are epoch",
    "list pt": "holds no tensors by name: it is a list",
    "text onnx": "not have the name of a weights file; expected one of .safetensors, .pt",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_message(tmp_path: Path, fault: str) -> None:
    path = corrupt(tmp_path, fault)
    with pytest.raises(CheckpointError) as caught:
        load_state_dict(path)
    assert FAULTS[fault] in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_read_through_its_index_or_says_what_it_holds(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert_same(load_state_dict(tmp_path), {"b": torch.ones(2), "a": torch.zeros(2)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"without a file of weights .*holds notes\.txt"):
        load_state_dict(tmp_path / "empty")


def test_names_of_other_kinds_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not have the name of a weights file"):
        save_state_dict(tmp_path / "weights.onnx", {})
    assert not list(tmp_path.iterdir())


def test_load_weights_loads_all_or_nothing(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    save_state_dict(tmp_path / "a.safetensors", source.state_dict())
    load_weights(target, tmp_path / "a.safetensors")
    assert_same(dict(target.state_dict()), dict(source.state_dict()))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    save_state_dict(tmp_path / "b.safetensors", {**source.state_dict(), "extra": torch.ones(1)})
    with pytest.raises(ArchitectureMismatchError, match=r"extra +missing +float32\[1\]"):
        load_weights(target, tmp_path / "b.safetensors")
    assert_same(dict(target.state_dict()), before)


def test_a_reference_may_be_a_module_a_mapping_or_a_file(tmp_path: Path) -> None:
    model, source = Tied(), Tied()
    state = dict(source.state_dict())
    save_state_dict(tmp_path / "a.safetensors", state)
    prefixed = {f"module.{name}": tensor for name, tensor in reversed(state.items())}
    for ref in (source, nn.DataParallel(source), state, prefixed, tmp_path / "a.safetensors"):
        assert_same(reference_state(ref, model), state)
    assert_same(reference_state(str(tmp_path / "a.safetensors"), model), state)


def test_ties_that_a_file_left_out_are_filled_in() -> None:
    state = dict(Tied().state_dict())
    short = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    old = {**short, "positions": torch.arange(4)}  # stored by a version where it was persistent
    assert_same(reference_state(short, Tied()), state)
    assert_same(reference_state(old, Tied()), state)


def test_references_that_cannot_be_used_are_refused() -> None:
    model = Tied()
    with pytest.raises(InputError, match="it is of type int; expected"):
        reference_state(3, model)
    with pytest.raises(InputError, match="values that are not tensors: \\['a'\\]"):
        reference_state({"a": 1}, model)
    broken = Tied()
    broken.head.bias.data[2] = torch.nan
    with pytest.raises(InputError, match=r"the reference cannot be used: .*head\.bias\[2\] = nan"):
        reference_state(broken, model)
    with pytest.raises(InputError, match="on the meta device"):
        reference_state(Tied().to("meta"), model)
    with pytest.raises(ArchitectureMismatchError, match="only in the reference"):
        reference_state({**model.state_dict(), "extra": torch.ones(1)}, model)
