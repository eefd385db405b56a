"""Damaged, strange and hostile files: one clear error each, and nothing run, lost or misread."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import onnx
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import metadata as dcp_metadata

import fxrebasin
from fxrebasin.errors import CheckpointError
from fxrebasin.storage.checkpoint import load_state_dict, read_checkpoint, save_state_dict
from fxrebasin.streaming.reader import open_reader
from tests.corrupter import FORMATS, escapes
from tests.support.small_nets import unsettled


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return unsettled(nn.Linear(4, 8))


def equal(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in right)


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_files_are_refused_by_name_or_read(seed: int) -> None:
    assert [str(e) for e in escapes(FORMATS, seed, lambda tried: tried >= 600)] == []


def zipped_again(path: Path, out: Path, method: int) -> None:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", method) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_records_that_were_packed_again_are_read_right(method: int, tmp_path: Path) -> None:
    state = linear().state_dict()
    torch.save(state, tmp_path / "a.pt")
    zipped_again(tmp_path / "a.pt", tmp_path / "z.pt", method)
    assert equal(load_state_dict(tmp_path / "z.pt"), state)


def test_no_bit_of_the_weights_changes_unnoticed(tmp_path: Path) -> None:
    torch.save(linear().state_dict(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    numbers = linear().weight.detach().numpy().tobytes()
    start = whole.index(numbers)
    for at in range(start, start + len(numbers), 5):
        path = tmp_path / f"f{at}.pt"
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(
            CheckpointError, match=r"is damaged: its record a/data/0 has another ch"
        ):
            load_state_dict(path)


def test_a_file_that_was_written_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(linear().state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert equal(load_state_dict(tmp_path / "a.pt"), linear().state_dict())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_stay_when_the_file_is_cut_or_changed(suffix: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"a{suffix}", {"weight": torch.randn(300, 300)}
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    loaded = load_state_dict(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * 1000)
        file.truncate(2000)
    assert equal(loaded, state)


# --- structures --------------------------------------------------------------------------------


def holding_itself() -> Any:
    tree: dict[str, Any] = {"w": torch.ones(1)}
    tree["me"] = tree
    return tree


def in_many_ways() -> Any:
    tree: Any = {"w": torch.ones(1)}
    for _ in range(24):
        tree = {"a": tree, "b": tree}
    return tree


def deep(depth: int) -> Any:
    tree: Any = {"w": torch.ones(1)}
    for _ in range(depth):
        tree = [tree]
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (holding_itself(), "holds a dictionary or list that is inside itself"),
        (in_many_ways(), "holds dictionaries or lists that are inside each other in 33554431 ways"),
        (deep(300), "holds dictionaries or lists that are more than 100 deep"),
    ],
)
def test_structures_without_end_are_refused(tree: Any, message: str, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "a.pt")
    for read in (load_state_dict, lambda path: read_checkpoint(path, linear())):
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / "a.pt")


def test_a_deep_or_shared_structure_within_the_limits_is_read(tmp_path: Path) -> None:
    torch.save([deep(50)] * 20, tmp_path / "a.pt")
    assert load_state_dict(tmp_path / "a.pt")["w"].tolist() == [1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.empty(8, 4, device="meta"), r"holds tensors without values .on the meta device.: w"),
        (torch.ones(8, 4).to_sparse(), "holds tensors that are sparse: weight"),
    ],
)
def test_tensors_without_numbers_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    state = {**linear().state_dict(), "weight": value}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.pt", linear())
    with pytest.raises(fxrebasin.errors.FxRebasinError, match="weight"):
        fxrebasin.transform(linear(), ref=state, example_inputs=torch.ones(2, 4))


def test_texts_and_cut_files_of_the_old_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("root:x:0:0:root:/root:/bin/bash\n" * 20)
    torch.save(linear().state_dict(), tmp_path / "o.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "o.pth").read_bytes()
    paths = [tmp_path / "text.pt"]
    for end in (1, 2, 18, 40, 100, len(whole) // 2, len(whole) - 1):
        paths.append(tmp_path / f"cut{end}.pth")
        paths[-1].write_bytes(whole[:end])
    for path in paths:
        with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read by torch.load \("):
            load_state_dict(path)


# --- which tensor ------------------------------------------------------------------------------


def test_the_index_says_which_shard_a_tensor_is_from(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m-1.safetensors")
    save_file({"b": torch.ones(2), "a": torch.full((2,), 7.0)}, tmp_path / "m-2.safetensors")
    index = tmp_path / "m.index.json"
    index.write_text('{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}')
    assert load_state_dict(index)["a"].tolist() == [0, 0]


def test_what_belongs_to_an_optimiser_is_no_model(tmp_path: Path) -> None:
    torch.save(
        {"optimizer": {"w": torch.zeros(2)}, "params": {"w": torch.ones(2)}}, tmp_path / "t.pt"
    )
    assert load_state_dict(tmp_path / "t.pt", ["w"])["w"].tolist() == [1, 1]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"weight_map": [1]}', "{", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    index = tmp_path / "m.index.json"
    index.write_text(text)
    said = r"m\.index\.json is not an index of a checkpoint in shards: expected JSON with a 'wei"
    for read in (load_state_dict, open_reader):
        with pytest.raises(CheckpointError, match=said):
            read(index)


# --- messages ----------------------------------------------------------------------------------


class Evil:
    """What its pickle makes would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_a_pickle_that_wants_to_run_something_is_called_that(old: bool, tmp_path: Path) -> None:
    evil = {"weight": Evil(f"touch {tmp_path / 'ran'}")}
    torch.save(evil, tmp_path / "evil.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError) as caught:
        load_state_dict(tmp_path / "evil.pt")
    text = str(caught.value)
    assert (
        "holds objects other than tensors and plain values: posix.system. Making those can" in text
    )
    assert "weights_only" not in text
    assert not (tmp_path / "ran").exists()


def test_the_advice_to_load_a_file_unrestrictedly_is_never_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(linear().state_dict(), tmp_path / "a.pt")
    for advice in (
        "Weights only load failed. In PyTorch 2.6, we changed the default value",
        "Re-running `torch.load` with `weights_only` set to `False` will likely succeed",
        "do it only if you got the file from a TRUSTED source",
        "Please use `torch.serialization.add_safe_globals([X])` to allowlist",
    ):
        for kind in (pickle.UnpicklingError, RuntimeError):
            monkeypatch.setattr(torch, "load", Mock(side_effect=kind(advice)))
            with pytest.raises(CheckpointError) as caught:
                load_state_dict(tmp_path / "a.pt")
            assert f"a.pt cannot be read by torch.load ({kind.__name__}): it is" in str(
                caught.value
            )


def test_names_in_messages_are_bounded_and_escaped(tmp_path: Path) -> None:
    name = "\x1b[2J\x07" + "w" * 5_000_000
    torch.save({name: torch.ones(3), "b": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(fxrebasin.errors.FxRebasinError) as caught:
        read_checkpoint(tmp_path / "a.pt", linear())
    text = str(caught.value)
    assert r"\x1b[2J\x07www" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(text) < 20_000


def test_a_record_that_is_said_to_be_a_folder_is_refused(tmp_path: Path) -> None:
    """torch reads nothing of it, without an error, and its checksum is right."""
    path = tmp_path / "a.pt"
    torch.save(linear().state_dict(), path)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    raw[start + 38] |= 0x10  # external attributes of the first record
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with pytest.raises(
        CheckpointError, match=r"a\.pt is damaged: its record .* said to be a folder"
    ):
        load_state_dict(path)


def test_an_archive_that_is_said_to_be_one_of_several_disks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(linear().state_dict(), path)
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x06\x07") + 16] = 9
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read by torch\.load \(.*disks"):
        load_state_dict(path)


# --- folders of torch.distributed.checkpoint ---------------------------------------------------


def index_of(folder: Path) -> Any:
    with (folder / ".metadata").open("rb") as file:
        return pickle.load(file)


@pytest.fixture
def distributed(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": linear().state_dict()}, checkpoint_id=tmp_path / "d")
    assert equal(load_state_dict(tmp_path / "d"), linear().state_dict())
    return tmp_path / "d"


@pytest.mark.parametrize("fault", ["missing", "short", "twice", "outside"])
def test_a_tensor_of_which_parts_are_missing_is_refused(distributed: Path, fault: str) -> None:
    """What was in memory by chance would be in their place."""
    index = index_of(distributed)
    entry = index.state_dict_metadata["model.weight"]
    if fault == "missing":
        entry.chunks = []
    elif fault == "short":
        entry.size = torch.Size([9, 4])
    elif fault == "twice":
        half = replace(entry.chunks[0], sizes=torch.Size([4, 4]))
        entry.chunks = [half, half]
    else:
        entry.size = torch.Size([7, 4])
    (distributed / ".metadata").write_bytes(pickle.dumps(index))
    said = "outside of it" if fault == "outside" else "are not the whole of it, once"
    with pytest.raises(CheckpointError, match=said):
        load_state_dict(distributed)


def test_an_index_that_changes_a_class_is_refused(distributed: Path) -> None:
    """BUILD gives an object its content; with a class on the stack, it would change the class."""
    program = pickle.PROTO + b"\x02" + pickle.GLOBAL
    program += b"torch.distributed.checkpoint.metadata\nMetadata\n"
    program += pickle.NONE + pickle.EMPTY_DICT + pickle.BINUNICODE + b"\x05\0\0\0taken"
    program += pickle.NEWTRUE + pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD + pickle.STOP
    (distributed / ".metadata").write_bytes(program)
    with pytest.raises(CheckpointError, match="changes something that it did not make"):
        load_state_dict(distributed)
    assert not hasattr(dcp_metadata.Metadata, "taken")


def test_data_at_no_number_are_refused(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(linear().weight.detach().numpy(), "w")
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    port = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [8, 4])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "net", [], [port], [weight]))
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0)
    model = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = "4x" if entry.key == "offset" else entry.value
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"'w' are said to be at no number: .*'4x'"):
        fxrebasin.analyze(tmp_path / "a.onnx")


def test_numbers_that_a_kind_of_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    state = {"w": torch.ones(2, dtype=torch.complex128)}
    with pytest.raises(CheckpointError, match=r"has no numbers of the kind torch\.complex128"):
        save_state_dict(tmp_path / "a.safetensors", state)
    assert list(tmp_path.iterdir()) == []
    save_state_dict(tmp_path / "a.pt", state)
    assert equal(load_state_dict(tmp_path / "a.pt"), state)
