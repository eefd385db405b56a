"""Other weights are written in the place of those of a checkpoint, and all else as it came."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fxrebasin
from fxrebasin.errors import CheckpointError, InputError
from fxrebasin.permutation import Permutation
from fxrebasin.storage.checkpoint import read_checkpoint, save_state_dict, write_checkpoint
from fxrebasin.storage.files import publish
from fxrebasin.storage.reading import Checkpoint, Reading
from tests.support.checkpoint_layouts import (
    LAYOUTS,
    Net,
    load_safetensors,
    loaded,
    net,
    quiet,
    read,
)


@pytest.fixture(scope="module")
def order() -> Permutation:
    return fxrebasin.analyze(Net(), torch.zeros(1, 3, 6, 6)).random(seed=1)


def rewrite(path: Path, out: Path, order: Permutation, **options: Any) -> Checkpoint:
    """Permute a checkpoint."""
    found = read_checkpoint(path, Net())
    state = order.permute_state_dict(found.state)
    write_checkpoint(out, found, state, **options)
    return found


def assert_same_but_tensors(left: Any, right: Any) -> None:
    """Two trees with the same keys, types and values, but for floating tensors."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        assert getattr(left, "_metadata", None) == getattr(right, "_metadata", None)
        for key in left:
            assert_same_but_tensors(left[key], right[key])
    elif isinstance(left, torch.Tensor):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        assert left.stride() == right.stride()
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same_but_tensors(one, other)
    else:
        np.testing.assert_equal(left, right)


WRAPPED = {
    "lightning": ["optimizer_states"],
    "timm": ["optimizer"],
    "torchvision": ["optimizer"],
    "basicsr": [],
    "ldm": [],
    "compiled": [],
}
"""Keys of what is left out."""


@pytest.mark.parametrize("name", WRAPPED)
def test_all_around_the_weights_stays_but_the_optimiser(
    tmp_path: Path, order: Permutation, name: str
) -> None:
    path = LAYOUTS[name].save(net(0), net(7), tmp_path)
    out = tmp_path / "out" / path.name
    found = rewrite(path, out, order, others=order.permute_tensor)
    before = read(path)
    for key in WRAPPED[name]:
        del before[key]
    assert_same_but_tensors(before, read(out))
    assert len(found.left_out) == len(WRAPPED[name])
    assert all(key in text for key, text in zip(WRAPPED[name], found.left_out, strict=True))


def test_tensors_beside_the_weights_stay(tmp_path: Path, order: Permutation) -> None:
    path = LAYOUTS["lightning"].save(net(0), net(7), tmp_path)
    found = rewrite(path, tmp_path / "out.ckpt", order)
    assert found.extra == ("loss.weight",)
    assert read(tmp_path / "out.ckpt")["state_dict"]["loss.weight"].tolist() == [1, 2, 3, 4]


def test_ties_stay_ties(tmp_path: Path, order: Permutation) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pt")
    for dtype in (None, torch.float16):
        rewrite(tmp_path / "a.pt", tmp_path / "b.pt", order, overwrite=True, dtype=dtype)
        state = read(tmp_path / "b.pt")
        assert state["up.weight"].data_ptr() == state["down.weight"].data_ptr()


def test_averages_that_cannot_follow_are_left_out(tmp_path: Path, order: Permutation) -> None:
    for name, key in (("timm", "state_dict_ema"), ("basicsr", "params_ema")):
        path = LAYOUTS[name].save(net(0), net(7), tmp_path)
        out = tmp_path / "out" / path.name
        found = rewrite(path, out, order)
        assert f"({key}) cannot follow and stay behind" in found.stays_behind[0]
        assert read(out).keys() == read(path).keys() - {key, "optimizer"}
        assert LAYOUTS[name].load(out) if name == "basicsr" else True
    path = LAYOUTS["ldm"].save(net(0), net(7), tmp_path)
    rewrite(path, tmp_path / "out.ckpt", order)
    names = read(tmp_path / "out.ckpt")["state_dict"].keys()
    assert not any(name.startswith("model_ema") for name in names)
    assert {"betas", "first_stage_model.weight"} <= names


def test_an_average_with_another_head_is_left_out(tmp_path: Path, order: Permutation) -> None:
    other = Net(classes=7).state_dict()
    torch.save({"model": net().state_dict(), "ema": other}, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt", Net(), Reading(ignore=("fc.*",)))
    assert found.state["fc.weight"].shape == (4, 6)
    state = order.permute_state_dict(found.state)
    write_checkpoint(tmp_path / "b.pt", found, state, others=order.permute_tensor)
    assert read(tmp_path / "b.pt").keys() == {"model"}


def test_an_average_of_some_weights_follows(tmp_path: Path, order: Permutation) -> None:
    trained = {n: t for n, t in net(7).state_dict().items() if n.startswith("blocks")}
    torch.save({"model": net().state_dict(), "ema": trained}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt", order, others=order.permute_tensor)
    expected = order.permute_state_dict(net(7).state_dict())
    assert all(torch.equal(t, expected[n]) for n, t in read(tmp_path / "b.pt")["ema"].items())
    rewrite(tmp_path / "a.pt", tmp_path / "c.pt", order)
    assert read(tmp_path / "c.pt").keys() == {"model"}


def test_an_average_without_names_follows(tmp_path: Path, order: Permutation) -> None:
    average = [parameter.detach() for parameter in net(7).parameters()]
    content = {"model": net().state_dict(), "ema": {"decay": 0.9, "shadow_params": average}}
    torch.save(content, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt", order, others=order.permute_tensor)
    expected = net(7)
    expected.load_state_dict(order.permute_state_dict(expected.state_dict()))
    made = read(tmp_path / "b.pt")["ema"]
    assert made["decay"] == 0.9
    pairs = zip(made["shadow_params"], expected.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    rewrite(tmp_path / "a.pt", tmp_path / "c.pt", order)
    assert read(tmp_path / "c.pt")["ema"] == {"decay": 0.9}


def test_the_average_may_be_the_one_that_is_permuted(tmp_path: Path, order: Permutation) -> None:
    path = LAYOUTS["timm"].save(net(0), net(7), tmp_path)
    found = read_checkpoint(path, Net(), Reading(key="state_dict_ema"))
    state = order.permute_state_dict(found.state)
    write_checkpoint(tmp_path / "o.pth.tar", found, state, others=order.permute_tensor)
    for key, seed in (("state_dict", 0), ("state_dict_ema", 7)):
        expected = order.permute_state_dict(net(seed).state_dict())
        made = read(tmp_path / "o.pth.tar")[key]
        assert all(torch.equal(made[name], expected[name]) for name in expected)


# --- containers


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors"])
@pytest.mark.parametrize("name", ["timm", "safetensors", "accelerate shards", "distributed"])
def test_the_suffix_may_ask_for_another_container(
    tmp_path: Path, order: Permutation, name: str, suffix: str
) -> None:
    path = LAYOUTS[name].save(net(0, torch.bfloat16), net(7, torch.bfloat16), tmp_path)
    out = tmp_path / f"out{suffix}"
    rewrite(path, out, order)
    expected = order.permute_state_dict(net(0, torch.bfloat16).state_dict())
    content = load_file(out) if suffix == ".safetensors" else read(out)
    state = content.get("state_dict", content.get("model", content))
    made = Net().bfloat16()
    missing = made.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= ({"up.weight", "down.weight"} if suffix == ".safetensors" else set())
    assert all(torch.equal(t, expected[n]) for n, t in made.state_dict().items())
    assert path.suffix != suffix or suffix != ".safetensors" or load_safetensors(out)


def test_files_from_safetensors_hold_their_tensors_and_no_more(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(50, 50), "bias": torch.ones(50)}, tmp_path / "a.safetensors")
    found = read_checkpoint(tmp_path / "a.safetensors", nn.Linear(50, 50))
    write_checkpoint(tmp_path / "b.pt", found, found.state)
    sizes = [t.untyped_storage().nbytes() for t in read(tmp_path / "b.pt").values()]
    assert sorted(sizes) == [200, 10000]


def test_a_file_goes_to_a_name_of_a_file(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt", Net())
    for name in ("folder", "b.onnx", "b.safetensors.index.json"):
        with pytest.raises(CheckpointError, match="not have the name of a weights file"):
            write_checkpoint(tmp_path / name, found, found.state)
    short = {n: t for n, t in found.state.items() if n != "stem.weight"}
    with pytest.raises(InputError, match=r"lack stem\.weight, 1 in all"):
        write_checkpoint(tmp_path / "b.pt", found, short)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def write_index(folder: Path, bits: str = "safetensors") -> Path:
    """A net in three shards, as transformers writes them."""
    state = {n: t for n, t in net().state_dict().items() if n != "up.weight"}
    names = list(state)
    files = {name: f"model-{1 + index % 3:05d}-of-00003.{bits}" for index, name in enumerate(names)}
    for shard in set(files.values()):
        part = {n: state[n] for n in names if files[n] == shard}
        if bits == "bin":
            torch.save(part, folder / shard)
        else:
            save_file(part, folder / shard, metadata={"format": "pt", "shard": shard})
    size = sum(t.nbytes for t in state.values())
    document = {"metadata": {"total_size": size, "note": "kept"}, "weight_map": files}
    (folder / f"model.{bits}.index.json").write_text(json.dumps(document))
    return folder / f"model.{bits}.index.json"


@pytest.mark.parametrize("bits", ["safetensors", "bin"])
def test_an_index_becomes_an_index(tmp_path: Path, order: Permutation, bits: str) -> None:
    (tmp_path / "in").mkdir()
    index = write_index(tmp_path / "in", bits)
    rewrite(index, tmp_path / "out", order)
    rewrite(index, tmp_path / "out2" / f"other.{bits}.index.json", order)
    before = json.loads(index.read_text())
    assert json.loads((tmp_path / "out" / index.name).read_text()) == before
    renamed = json.loads((tmp_path / "out2" / f"other.{bits}.index.json").read_text())
    assert renamed["weight_map"] == {
        name: shard.replace("model", "other") for name, shard in before["weight_map"].items()
    }
    expected = order.permute_state_dict(net().state_dict())
    for folder, document in ((tmp_path / "out", before), (tmp_path / "out2", renamed)):
        for name, shard in document["weight_map"].items():
            content = read(folder / shard) if bits == "bin" else load_file(folder / shard)
            assert torch.equal(content[name], expected[name])
    if bits == "safetensors":
        with safe_open(tmp_path / "out" / "model-00001-of-00003.safetensors", "pt") as file:
            assert file.metadata()["shard"] == "model-00001-of-00003.safetensors"
    found = rewrite(index, tmp_path / "half" / index.name, order, dtype=torch.float16)
    size = sum(t.nbytes // (2 if t.is_floating_point() else 1) for t in found.state.values())
    size -= found.state["up.weight"].nbytes // 2
    half = json.loads((tmp_path / "half" / index.name).read_text())
    assert half["metadata"] == {"total_size": size, "note": "kept"}


def test_a_folder_of_accelerate_keeps_its_other_files(tmp_path: Path, order: Permutation) -> None:
    path = LAYOUTS["accelerate state"].save(net(0), net(7), tmp_path)
    (path / "logs").mkdir()
    found = rewrite(path, tmp_path / "out", order)
    names = {entry.name for entry in path.iterdir()} - {"optimizer.bin", "logs"}
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == names
    assert {"random_states_0.pkl", "scheduler.bin"} <= names
    for name in names - {"model.safetensors", "scheduler.bin"}:
        assert (path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert "optimizer.bin" in found.left_out[0]


def test_optimisers_in_folders_are_left_out(tmp_path: Path, order: Permutation) -> None:
    from torch.distributed.checkpoint import FileSystemReader

    path = LAYOUTS["distributed"].save(net(0), net(7), tmp_path)
    found = rewrite(path, tmp_path / "out", order)
    assert "optim" in found.left_out[0]
    names = FileSystemReader(tmp_path / "out").read_metadata().state_dict_metadata
    assert {name for name in names if "model" not in name} == {"epoch", "args"}


def test_files_beside_shards_of_processes_stay(tmp_path: Path, order: Permutation) -> None:
    """Lightning keeps its state in such a file."""
    path = LAYOUTS["distributed"].save(net(0), net(7), tmp_path)
    torch.save({"epoch": 3}, path / "meta.pt")
    path = path.rename(tmp_path / "in.ckpt")
    rewrite(path, tmp_path / "out.ckpt", order)
    assert LAYOUTS["distributed"].load(tmp_path / "out.ckpt")
    assert read(tmp_path / "out.ckpt" / "meta.pt") == {"epoch": 3}


def test_tensors_of_other_layouts_stay(tmp_path: Path, order: Permutation) -> None:
    sparse = torch.eye(3).to_sparse()
    torch.save({**net().state_dict(), "logvar": sparse}, tmp_path / "a.pt")
    rewrite(tmp_path / "a.pt", tmp_path / "b.pt", order)
    assert torch.equal(read(tmp_path / "b.pt")["logvar"].to_dense(), torch.eye(3))


def test_a_folder_in_a_folder_is_read_and_written(tmp_path: Path, order: Permutation) -> None:
    """As accelerate writes the state of a model with FSDP."""
    path = LAYOUTS["distributed"].save(net(0), net(7), tmp_path)
    (tmp_path / "state").mkdir()
    path.rename(tmp_path / "state" / "pytorch_model_fsdp_0")
    found = rewrite(tmp_path / "state", tmp_path / "out", order)
    made = LAYOUTS["distributed"].load(tmp_path / "out" / "pytorch_model_fsdp_0")
    expected = order.permute_state_dict(found.state)
    assert all(torch.equal(t, expected[n]) for n, t in made.state_dict().items())


def test_an_empty_folder_is_written_into_and_a_full_one_when_asked(
    tmp_path: Path, order: Permutation
) -> None:
    path = LAYOUTS["distributed"].save(net(0), net(7), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    rewrite(path, out, order)
    with pytest.raises(InputError, match="exists already"):
        rewrite(path, out, order)
    rewrite(path, out, order, overwrite=True)
    assert LAYOUTS["distributed"].load(out)


# --- dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_converted_when_asked(
    tmp_path: Path, order: Permutation, dtype: torch.dtype
) -> None:
    path = LAYOUTS["timm"].save(net(0), net(7), tmp_path)
    rewrite(path, tmp_path / "out.pth.tar", order, dtype=dtype, others=order.permute_tensor)
    for key in ("state_dict", "state_dict_ema"):
        state = read(tmp_path / "out.pth.tar")[key]
        assert state["norm.num_batches_tracked"].dtype is torch.int64
        assert {t.dtype for t in state.values()} == {dtype, torch.int64}


def test_every_tensor_keeps_its_dtype_whatever_the_new_ones_have(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    state["stem.weight"] = state["stem.weight"].half()
    state["fc.bias"] = state["fc.bias"].bfloat16()
    state["norm.weight"] = nn.Parameter(state["norm.weight"].double(), requires_grad=False)
    torch.save(state, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt", Net())
    write_checkpoint(tmp_path / "b.pt", found, net(1).state_dict())
    made = read(tmp_path / "b.pt")
    assert {n: t.dtype for n, t in made.items()} == {n: t.dtype for n, t in state.items()}
    assert isinstance(made["norm.weight"], nn.Parameter)
    assert loaded(made).stem.weight.equal(net(1).stem.weight.half())


# --- places


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_of_the_umask(
    tmp_path: Path, order: Permutation, mask: int
) -> None:
    paths = [
        LAYOUTS[n].save(net(0), net(7), tmp_path) for n in ("safetensors", "distributed", ".pt")
    ]
    index = write_index(tmp_path)
    with umask(mask):
        for path in (*paths, index):
            rewrite(path, tmp_path / "out" / path.name, order)
        publish(tmp_path / "out" / "more" / "notes.txt", b"hello")
        order.save(tmp_path / "out" / "certificate.safetensors")
        save_state_dict(tmp_path / "out" / "state.safetensors", {"a": torch.ones(2)})
    made = list((tmp_path / "out").rglob("*"))
    assert len(made) > 10
    for entry in (tmp_path / "out", *made):
        expected = (0o777 if entry.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(entry.stat().st_mode) == expected, entry


def test_a_file_may_replace_what_it_was_made_of(tmp_path: Path, order: Permutation) -> None:
    for name in ("timm", "safetensors", "distributed", "accelerate shards"):
        (tmp_path / name).mkdir()
        path = LAYOUTS[name].save(net(0), net(7), tmp_path / name)
        with pytest.raises(InputError, match=r"exists? already"):
            rewrite(path, path, order)
        expected = order.permute_state_dict(net().state_dict())
        rewrite(path, path, order, overwrite=True)
        state = read_checkpoint(path, Net()).state
        assert all(torch.equal(state[n], expected[n]) for n in expected)


def test_a_shard_in_the_way_stops_all(tmp_path: Path, order: Permutation) -> None:
    index = write_index(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model-00002-of-00003.safetensors").touch()
    with pytest.raises(InputError, match="model-00002-of-00003"):
        rewrite(index, tmp_path / "out", order)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_failed_set_leaves_nothing(
    tmp_path: Path, order: Permutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = write_index(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("fxrebasin.storage.containers.save_file", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        rewrite(index, tmp_path / "out", order)
    assert not (tmp_path / "out").exists()


# --- folders of torch.distributed.checkpoint


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_folders_run_no_code(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with quiet():
        dcp.save(
            {"model": net().state_dict(), "args": Touch(tmp_path / "touched")},
            checkpoint_id=tmp_path / "a",
        )
    with pytest.raises(CheckpointError, match="objects other than tensors"):
        read_checkpoint(tmp_path / "a", Net())
    with quiet():
        dcp.save({"model": net().state_dict()}, checkpoint_id=tmp_path / "b")
    metadata = pickle.loads((tmp_path / "b" / ".metadata").read_bytes())
    metadata.planner_data["x"] = Touch(tmp_path / "touched")
    (tmp_path / "b" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"it holds an object of type"):
        read_checkpoint(tmp_path / "b", Net())
    assert not (tmp_path / "touched").exists()


def test_folders_read_no_files_elsewhere(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with quiet():
        dcp.save({"model": net().state_dict()}, checkpoint_id=tmp_path / "a")
    metadata = pickle.loads((tmp_path / "a" / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="which is not inside it"):
        read_checkpoint(tmp_path / "a", Net())


@pytest.mark.parametrize("fault", ["metadata", "data", "missing"])
def test_damaged_folders_are_refused(tmp_path: Path, fault: str) -> None:
    path = LAYOUTS["distributed"].save(net(0), net(7), tmp_path)
    victim = path / (".metadata" if fault == "metadata" else "__0_0.distcp")
    if fault == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 8])
    with pytest.raises(CheckpointError, match=r"cannot be read .*damaged"):
        read_checkpoint(path, Net())
