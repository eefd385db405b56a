"""A permutation in a file: what is saved is loaded, and every fault of a file is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

import fxrebasin
from fxrebasin.errors import CheckpointError
from fxrebasin.permutation import Permutation
from tests.support.synthetic import ZOO, Synthetic, equal, mlp


@pytest.mark.parametrize("name", ZOO)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path) -> None:
    model = ZOO[name]()
    p, state = model.random(1), model.state(0)
    p.save(tmp_path / "p.safetensors")
    loaded = Permutation.load(str(tmp_path / "p.safetensors"))
    assert loaded == p
    assert loaded.classes == p.classes
    assert equal(loaded.permute_state_dict(state), p.permute_state_dict(state))
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_files_of_older_releases_were_found_with_no_choices(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "p.safetensors", mlp(3, 5, 2))
    del parts.document["found_with"], parts.document["relies_on"]
    parts.write()
    loaded = Permutation.load(parts.path)
    assert loaded.found_with.everything
    assert loaded.relies_on == {}


def test_a_file_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    model = mlp(3, 5, 2)
    path = tmp_path / "p.safetensors"
    path.write_text("precious")
    with pytest.raises(CheckpointError, match="exist"):
        model.random(1).save(path)
    assert path.read_text() == "precious"
    model.random(1).save(path, overwrite=True)
    assert Permutation.load(path) == model.random(1)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file"):
        mlp(3, 5, 2).random(1).save(tmp_path / "file" / "p.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.safetensors does not exist"):
        Permutation.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_cut_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    mlp(3, 5, 2).random(1).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        Permutation.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text, weights = tmp_path / "text", tmp_path / "weights.safetensors"
    text.write_text("not a safetensors file at all")
    safetensors.numpy.save_file({"w": np.zeros(3)}, weights)
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        Permutation.load(text)
    with pytest.raises(CheckpointError, match="not a permutation that was saved here"):
        Permutation.load(weights)
    with pytest.raises(CheckpointError, match="holds no usable permutation: it is no file"):
        Permutation.load(tmp_path)


class Parts:
    """A saved permutation, taken apart so that something in it can be changed."""

    def __init__(self, path: Path, model: Synthetic) -> None:
        self.path = path
        model.random(1).save(path)
        with safetensors.safe_open(path, framework="np") as file:
            self.metadata = dict(file.metadata())
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.document = json.loads(self.metadata["document"])
        self.metadata["version"] = "1"  # which has no checksum: what it holds is checked
        del self.metadata["checksum"]

    def write(self) -> None:
        """Put it together again."""
        metadata = {"document": json.dumps(self.document), **self.metadata}
        if "document" in self.metadata:
            metadata["document"] = json.dumps(self.document)
        safetensors.numpy.save_file(self.tensors, self.path, metadata)


def drop_array(parts: Parts) -> None:
    del parts.tensors["array.h1"]


def cut_array(parts: Parts) -> None:
    parts.tensors["array.h1"] = parts.tensors["array.h1"][:4]


def repeat_unit(parts: Parts) -> None:
    parts.tensors["array.h1"] = parts.tensors["array.h1"] * 0


def float_array(parts: Parts) -> None:
    parts.tensors["array.h1"] = parts.tensors["array.h1"].astype(np.float32)


def add_array(parts: Parts) -> None:
    parts.tensors["array.h9"] = np.arange(3)


def later_version(parts: Parts) -> None:
    parts.metadata["version"] = "3\x1b[2J"


def no_version(parts: Parts) -> None:
    del parts.metadata["version"]


def bigger_class(parts: Parts) -> None:
    parts.document["classes"][0]["size"] = 6


def fractional_class(parts: Parts) -> None:
    parts.document["classes"][0]["size"] = 5.0


def no_classes(parts: Parts) -> None:
    del parts.document["classes"]


def no_pieces(parts: Parts) -> None:
    parts.document["layout"]["layers.1.bias"] = [{"axes": [0]}]


def huge_piece(parts: Parts) -> None:
    piece = parts.document["layout"]["layers.1.bias"][0]["pieces"][0]
    piece["slots"] = [[None, 2**40, []]]


def same_positions(parts: Parts) -> None:
    parts.document["layout"]["layers.1.bias"][0]["pieces"][0]["positions"]["strides"] = [0]


def negative_positions(parts: Parts) -> None:
    parts.document["layout"]["layers.1.bias"][0]["pieces"][0]["positions"]["offset"] = -1


def lost_positions(parts: Parts) -> None:
    parts.document["layout"]["layers.1.bias"][0]["pieces"][0]["positions"] = {"tensor": "gone"}


def float_positions(parts: Parts) -> None:
    parts.tensors["positions.0"] = np.arange(5.0)
    parts.document["layout"]["layers.1.bias"][0]["pieces"][0]["positions"] = {
        "tensor": "positions.0"
    }


def wrong_kind(parts: Parts) -> None:
    parts.document = [1, 2]  # type: ignore[assignment]


def strange_slot(parts: Parts) -> None:
    parts.document["layout"]["layers.1.bias"][0]["pieces"][0]["slots"] = [["h1"]]


def numbered_outputs(parts: Parts) -> None:
    parts.document["found_with"]["outputs"] = ["logits", 3]


def no_outputs(parts: Parts) -> None:
    parts.document["found_with"]["outputs"] = []


def twice_chosen(parts: Parts) -> None:
    parts.document["found_with"].update(outputs=["logits"], function="chosen")


def no_buffers(parts: Parts) -> None:
    del parts.document["found_with"]["state_buffers"]


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (drop_array, "class 'h1' has no array"),
        (cut_array, "class 'h1' needs integers of shape"),
        (repeat_unit, "is not a permutation of 0 to 4"),
        (float_array, "class 'h1' needs integers"),
        (add_array, "classes that do not exist: h9"),
        (later_version, r"it has version 3\\x1b\[2J; this release reads the versions 1 and 2"),
        (no_version, "it has version None"),
        (bigger_class, "does not fit class 'h1'|needs integers of shape"),
        (fractional_class, "found 5.0 where a whole number belongs"),
        (no_classes, "damaged permutation: KeyError 'classes'"),
        (no_pieces, "damaged permutation: KeyError 'pieces'"),
        (huge_piece, "larger than any tensor's axes"),
        (same_positions, "share a position"),
        (negative_positions, "or one is negative"),
        (lost_positions, "damaged permutation: KeyError 'gone'"),
        (float_positions, "has dtype float64 instead of int64"),
        (wrong_kind, "damaged permutation: TypeError"),
        (strange_slot, "damaged permutation: ValueError"),
        (numbered_outputs, "found 3 where a text belongs"),
        (no_outputs, "where chosen outputs belong"),
        (twice_chosen, "where chosen outputs belong"),
        (no_buffers, "damaged permutation: KeyError 'state_buffers'"),
    ],
)
def test_every_fault_of_a_file_has_a_reason(corrupt, message: str, tmp_path: Path) -> None:
    parts = Parts(tmp_path / "p.safetensors", mlp(3, 5, 2))
    corrupt(parts)
    parts.write()
    with pytest.raises(CheckpointError, match=message) as caught:
        Permutation.load(parts.path)
    assert str(parts.path) in str(caught.value)


def test_no_flipped_byte_is_loaded(tmp_path: Path) -> None:
    model = mlp(3, 5, 2)
    path = tmp_path / "p.safetensors"
    model.random(1).save(path)
    original = path.read_bytes()
    generator = np.random.default_rng(0)
    for at in generator.integers(len(original), size=300):
        damaged = bytearray(original)
        damaged[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError):
            Permutation.load(path)


def test_the_file_is_the_same_every_time_and_has_the_digest_that_is_told(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    order = fxrebasin.analyze(net).random(seed=3)
    written = set()
    for number in range(8):
        order.save(tmp_path / f"{number}.safetensors")
        written.add((tmp_path / f"{number}.safetensors").read_bytes())
    (payload,) = written
    assert hashlib.sha256(payload).hexdigest() == order.digest()
    assert Permutation.load(tmp_path / "0.safetensors") == order
