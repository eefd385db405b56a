"""What a certificate says about the model and the states that it was made for, and its limits."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from torch import nn

import fxrebasin
from fxrebasin.alignment import certificate_from
from fxrebasin.architecture import Architecture
from fxrebasin.errors import ArchitectureMismatchError, CheckpointError
from fxrebasin.permutation import Permutation
from fxrebasin.storage.digests import state_digest
from tests.support.small_nets import draw, unsettled

X = draw(2, 4)


def perceptron(width: int = 8, *, bias: bool = True, inputs: int = 4) -> nn.Sequential:
    return unsettled(
        nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 3, bias=bias))
    )


class Tied(nn.Module):
    """Two layers that share their weight, or do not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


@pytest.mark.parametrize(
    ("made_for", "other", "fault"),
    [
        (perceptron(8), perceptron(9), r"0.weight: float32\[9, 4\] instead of float32\[8, 4\]"),
        (perceptron(9), perceptron(8), r"0.weight: float32\[8, 4\] instead of float32\[9, 4\]"),
        (perceptron(), perceptron(inputs=5), r"0.weight: float32\[8, 5\] instead of float32\[8,"),
        (perceptron(bias=False), perceptron(), r"2.bias: not known"),
        (perceptron(), perceptron(bias=False), r"2.bias: missing"),
        (Tied(True), Tied(False), "first.weight, second.weight: not one tensor any more"),
        (Tied(False), Tied(True), "first.weight, second.weight: one tensor now"),
    ],
)
def test_a_certificate_is_refused_by_another_architecture(
    made_for: nn.Module, other: nn.Module, fault: str, tmp_path: Path
) -> None:
    fxrebasin.analyze(made_for, X).random(1).save(tmp_path / "c.safetensors")
    loaded = Permutation.load(tmp_path / "c.safetensors")
    inputs = draw(2, 5) if fault.startswith(r"0.weight: float32\[8, 5") else X
    with pytest.raises(ArchitectureMismatchError, match=f"another architecture:\n.*{fault}"):
        fxrebasin.apply(other, loaded, inputs)


def test_a_state_whose_permuted_axes_are_longer_is_refused(tmp_path: Path) -> None:
    fxrebasin.analyze(perceptron(8), X).random(1).save(tmp_path / "c.safetensors")
    loaded = Permutation.load(tmp_path / "c.safetensors")
    with pytest.raises(ArchitectureMismatchError, match=r"0.bias: has shape \(9,\) instead of \(8"):
        loaded.permute_state_dict(perceptron(9).state_dict())


def test_another_precision_and_a_graph_of_the_model_are_the_same_architecture() -> None:
    model = perceptron()
    order = fxrebasin.analyze(model, X).random(1)
    graph = fxrebasin.apply(model, order, X)
    back = fxrebasin.apply(graph, order.inverse(), X)
    assert torch.equal(back.state_dict()["0.weight"], model[0].weight)
    double = perceptron().double()
    fxrebasin.apply(double, order, X.double())
    assert Architecture.of(graph).faults(model) == []


def test_a_certificate_made_from_data_knows_both_states(tmp_path: Path) -> None:
    model, reference = perceptron(), perceptron()
    nn.init.normal_(reference[0].weight)
    graph = fxrebasin.transform(model, ref=reference, example_inputs=X)
    found = graph.meta["fxrebasin"].certificate
    found.save(tmp_path / "c.safetensors")
    loaded = Permutation.load(tmp_path / "c.safetensors")
    assert loaded.found_with.states == {
        "model": state_digest(dict(model.state_dict())),
        "reference": state_digest(dict(reference.state_dict())),
    }
    assert loaded.digest() == found.digest()
    assert loaded.inverse().found_with.states == {}
    next_one = fxrebasin.match(reference, ref=model, example_inputs=X)
    both = next_one.compose(loaded)
    assert both.found_with.states == {
        "model": loaded.found_with.states["model"],
        "reference": next_one.found_with.states["reference"],
    }
    assert fxrebasin.analyze(model, X).random(1).found_with.states == {}


def test_every_bit_that_is_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    fxrebasin.analyze(net).random(1).save(path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"c\.safetensors"):
            Permutation.load(path)
    for end in range(0, len(whole), 16):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=r"c\.safetensors"):
            Permutation.load(path)


def test_an_edited_document_has_another_checksum(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    fxrebasin.analyze(perceptron(), X).random(1).save(path)
    with safetensors.safe_open(path, framework="np") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    metadata["document"] = metadata["document"].replace("0.weight", "2.weight", 1)
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="its checksum is not that of what it holds: it is d"):
        Permutation.load(path)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gigabyte more than is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def old_file(path: Path, **changed: Any) -> Path:
    """A file of the first version, which has no checksum, with entries of our choice."""
    piece = {"slots": changed.get("slots", [["h", 3, []]])}
    piece["positions"] = changed.get("positions", {"offset": 0, "strides": [1]})
    own = {"name": "h", "size": 3, "within": [], "count": 1, "axes": [], **changed.get("class", {})}
    group = {"axes": changed.get("axes", [0]), "pieces": [piece]}
    group["uncounted"] = changed.get("uncounted", [])
    document = {
        "classes": [own],
        "relies_on": {"r": {"digest": "", "uniform": changed.get("uniform")}},
        "layout": {"w": [group]},
        **({"architecture": changed["architecture"]} if "architecture" in changed else {}),
    }
    text = changed.get("document", json.dumps(document))
    metadata = {"format": "fxrebasin.permutation", "version": "1", "document": text}
    safetensors.numpy.save_file({"array.h": np.array([2, 0, 1])}, path, metadata)
    return path


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    loaded = Permutation.load(old_file(tmp_path / "old.safetensors"))
    assert loaded.permute_state_dict({"w": torch.arange(3)})["w"].tolist() == [2, 0, 1]
    loaded.check_made_for(nn.Linear(2, 2))


TOO_LONG = {"slots": [["h", 3, []], [None, 2**29, []]]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {**TOO_LONG, "positions": {"offset": 0, "strides": [2**29, 1]}},
            r"a piece of shape \(3, 536870912\) is larger than any tensor's axes",
        ),
        ({"slots": [["h", -3, []]]}, r"a piece of shape \(-3,\) is larger than any tensor's axes"),
        ({"positions": {"offset": 2**70, "strides": [1]}}, "lies behind the end of any tensor"),
        ({"positions": {"offset": 0, "strides": [2**70]}}, "lies behind the end of any tensor"),
        ({"positions": {"offset": 0, "strides": [-(2**70)]}}, "share a position, or one is neg"),
        ({"axes": []}, r"found \[\] where different axes of a tensor belong"),
        ({"axes": [0, 0]}, r"found \[0, 0\] where different axes of a tensor belong"),
        ({"axes": [-1]}, r"found \[-1\] where different axes of a tensor belong"),
        ({"axes": [2**70]}, "where different axes of a tensor belong"),
        ({"class": {"count": 0}}, "class h is said to have 0 copies, and has 1"),
        ({"class": {"count": 2}}, "class h is said to have 2 copies, and has 1"),
        ({"class": {"count": 10**30}}, "found 10{30} where a number from 0 to 2814749767106"),
        ({"class": {"count": -1}}, "found -1 where a number from 0 to"),
        ({"class": {"count": True}}, "found True where a whole number belongs"),
        ({"class": {"size": 10**30}}, "found 10{30} where a number from 0 to 2814749767106"),
        ({"class": {"size": 2**40}}, "a slot of size 3 does not fit class .h. .1099511627776"),
        ({"class": {"axes": [["w", 10**30]]}}, "found 10{30} where a number from 0 to 63"),
        ({"class": {"within": ["g"]}}, "class h is within g, which does not exist"),
        ({"class": {"within": ["h"] * 65}}, "class h is within 65 classes"),
        ({"uniform": [-1]}, "found -1 where a number from 0 to 63 belongs"),
        ({"uniform": [10**30]}, "found 10{30} where a number from 0 to 63 belongs"),
        ({"uncounted": [[1, [-1]]]}, "found -1 where a number from 0 to 2814749767106"),
        ({"uncounted": [[1, [10**30]]]}, "found 10{30} where a number from 0 to 2814749767106"),
        (
            {"architecture": {"tensors": {"w": ["float32", [10**30]]}, "ties": []}},
            "found 10{30} where a number from 0 to 2814749767106",
        ),
        ({"document": "[" * 100_000}, "damaged permutation: RecursionError"),
        ({"document": "{"}, "damaged permutation: JSONDecodeError"),
        (
            {"architecture": {"tensors": {"w": ["float32", [2]]}, "ties": []}},
            r"w has shape \(2,\); axes \(0,\) need 3 positions",
        ),
        (
            {"architecture": {"tensors": {"v": ["float32", [3]]}, "ties": []}},
            "w is permuted, but not among the tensors of the model",
        ),
    ],
)
def test_what_no_model_has_is_refused_before_memory_is_asked_for(
    changed: dict[str, Any], message: str, tmp_path: Path, little_memory: None
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Permutation.load(old_file(tmp_path / "old.safetensors", **changed))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=r"p\.safetensors holds no usable .*: it is no file"):
        certificate_from(tmp_path / "p.safetensors")
    with pytest.raises(CheckpointError, match=r"p\.safetensors holds no usable .*: it is no file"):
        fxrebasin.Permutation.load(tmp_path / "p.safetensors")


def test_many_pieces_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fxrebasin.analyze(perceptron(), X).random(1).save(tmp_path / "c.safetensors")
    Permutation.load(tmp_path / "c.safetensors")
    monkeypatch.setattr("fxrebasin.storage.certificate._MOST_POSITIONS", 20)
    with pytest.raises(CheckpointError, match=r"a piece of shape \(8,\) is larger than any tens"):
        Permutation.load(tmp_path / "c.safetensors")
