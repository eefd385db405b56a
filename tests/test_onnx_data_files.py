"""Files of data in which tensors share bytes: each gets the numbers that it is to have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor, nn

import fxrebasin
from fxrebasin.cli import main
from fxrebasin.errors import EquivalenceError
from fxrebasin.exporters.onnx import write
from fxrebasin.importers.onnx import data_files
from fxrebasin.importers.onnx.tensors import is_external, place_of
from tests.support.onnx_graphs import model, planted

LAYERS = """ g (float[n,6] x) => (float[n,3] y) {
    a = MatMul(x, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Tanh(c)  e = MatMul(d, w3)
    f = Mul(e, still)  s = Shape(x)  k = ReduceSum(s)  m = Cast<to = 1>(k)  y = Add(f, m) }"""
WEIGHTS = {"w1": (6, 6), "w2": (6, 6), "w3": (6, 3), "still": np.full(3, 0.7, np.float32)}
PLAIN = {"w1": 0, "w2": 144, "w3": 288, "still": 360}
OVERLAPS = {
    "the same": {"w1": 0, "w2": 0, "w3": 144, "still": 216},
    "in part": {"w1": 0, "w2": 40, "w3": 184, "still": 256},
    "in a chain": {"w1": 0, "w2": 100, "w3": 200, "still": 272},
    "one within another": {"w1": 0, "w2": 144, "w3": 60, "still": 288},
    "with one that stays": {"w1": 12, "w2": 156, "w3": 300, "still": 16},
}


def laid_out(path: Path, offsets: dict[str, int], seed: int, *, lengths: bool = True) -> Path:
    """A model whose data lie at these places of one file; where they overlap they are the same."""
    made = model(LAYERS, WEIGHTS, seed)
    data = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    data[offsets["still"] // 4 :][:3] = 0.7
    for item in made.graph.initializer:
        item.ClearField("raw_data")
        item.data_location = TensorProto.EXTERNAL
        size = 4 * int(np.prod(item.dims))
        entries = {"location": f"{path.name}.bin", "offset": offsets[item.name], "length": size}
        for key, value in entries.items():
            if lengths or key != "length":
                item.external_data.add(key=key, value=str(value))
    ends = [offsets[item.name] // 4 + int(np.prod(item.dims)) for item in made.graph.initializer]
    data[: max(ends)].tofile(path.with_name(f"{path.name}.bin"))
    path.write_bytes(made.SerializeToString())
    return path


def stored(path: Path) -> ModelProto:
    return onnx.load(path, load_external_data=False)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """What the file says, read by its own places; data are found from their shapes."""
    found = {}
    for item in stored(path).graph.initializer:
        if item.data_location != TensorProto.EXTERNAL:
            found[item.name] = numpy_helper.to_array(item)
            continue
        entries = {entry.key: entry.value for entry in item.external_data}
        kind = onnx.helper.tensor_dtype_to_np_dtype(item.data_type)
        data, count = path.with_name(entries["location"]), int(np.prod(item.dims))
        flat = np.fromfile(data, kind, count, offset=int(entries.get("offset", 0)))
        found[item.name] = flat.reshape(tuple(item.dims))
    return found


@pytest.mark.parametrize("lengths", [True, False], ids=["lengths", "no lengths"])
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_mean_is_that_of_each_tensor(overlap: str, lengths: bool, tmp_path: Path) -> None:
    a = laid_out(tmp_path / "a.onnx", OVERLAPS[overlap], 0, lengths=lengths)
    b = laid_out(tmp_path / "b.onnx", PLAIN, 1)
    ours, theirs = tensors(a), tensors(b)
    for at in (0.0, 0.3, 1.0):
        out = tmp_path / f"{at}.onnx"
        fxrebasin.onnx_merge([a, b], out, weights=(1 - at, at))
        found = tensors(out)
        assert found.keys() == WEIGHTS.keys()
        for name, array in found.items():
            mean = (1 - at) * ours[name].astype(np.float64) + at * theirs[name].astype(np.float64)
            wanted = np.where(ours[name] == theirs[name], ours[name], mean.astype(np.float32))
            np.testing.assert_array_equal(array, wanted, err_msg=name)
    assert fxrebasin.verify(b, tmp_path / "1.0.onnx").passed


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_units_move_and_come_back(overlap: str, tmp_path: Path) -> None:
    b = laid_out(tmp_path / "b.onnx", OVERLAPS[overlap], 0)
    planted(b, tmp_path / "a.onnx")
    report = fxrebasin.onnx_transform(b, ref=tmp_path / "a.onnx", out=tmp_path / "out.onnx")
    assert report.distance_before > 0 == report.distance_after
    assert report.certificate is not None
    back = report.certificate.inverse()
    fxrebasin.onnx_apply(tmp_path / "out.onnx", back, tmp_path / "back.onnx")
    found, before = tensors(tmp_path / "back.onnx"), tensors(b)
    assert all(np.array_equal(found[name], array) for name, array in before.items())


def test_positions_between_two_files(tmp_path: Path) -> None:
    a = laid_out(tmp_path / "a.onnx", OVERLAPS["in part"], 0)
    b = laid_out(tmp_path / "b.onnx", PLAIN, 1)
    out = tmp_path / "at-{t}.onnx"
    words = ["interpolate", str(a), str(b), "--t", "0,1", "--method", "none", "--out", str(out)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    for path, end in ((a, "0"), (b, "1")):
        found = tensors(tmp_path / f"at-{end}.onnx")
        assert all(np.array_equal(found[name], array) for name, array in tensors(path).items())


def test_what_several_hold_stays_in_one_place(tmp_path: Path) -> None:
    a, b = (laid_out(tmp_path / f"{n}.onnx", OVERLAPS["the same"], n) for n in (0, 1))
    fxrebasin.onnx_merge([a, b], tmp_path / "mean.onnx")
    assert stored(tmp_path / "mean.onnx").graph.initializer[1].external_data[1].value == "0"
    (data,) = tmp_path.glob("mean.onnx.*.data")
    assert data.stat().st_size == (tmp_path / "0.onnx.bin").stat().st_size


@pytest.mark.parametrize("way", ["merge", "apply"])
def test_what_was_written_is_compared(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (laid_out(tmp_path / f"{n}.onnx", PLAIN, n) for n in (0, 1))
    order = fxrebasin.analyze(a).random(seed=1)
    bytes_of, out = data_files.bytes_of, tmp_path / "out.onnx"
    monkeypatch.setattr(data_files, "bytes_of", lambda tensor: bytes_of(tensor.flip(0)))
    ways: dict[str, Callable[[], object]] = {
        "merge": lambda: fxrebasin.onnx_merge([a, b], out),
        "apply": lambda: fxrebasin.onnx_apply(a, order, out),
    }
    with pytest.raises(EquivalenceError, match="was not written as it should be"):
        ways[way]()
    assert not list(tmp_path.glob("out*"))


class Head(nn.Module):
    """An embedding, which may be the head as well."""

    def __init__(self, seed: int, *, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.inner, self.back = nn.Linear(16, 32), nn.Linear(32, 16)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        found: Tensor = self.head(hidden + self.back(self.inner(hidden).relu()))
        return found


class Twice(nn.Module):
    """A layer that has two names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layer = nn.Linear(16, 16)
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)
        self.layers = nn.ModuleList([layer, layer])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        found: Tensor = self.last(hidden)
        return found


@pytest.fixture
def no_data_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as the exporter writes large ones: numbers of several names once, in another file."""
    monkeypatch.setattr(write, "EMBEDDED_BYTES", 0)


@pytest.mark.usefixtures("no_data_embedded")
@pytest.mark.parametrize("tied", [True, False])
def test_our_own_file_of_a_tied_head_and_one_that_is_not(tied: bool, tmp_path: Path) -> None:
    ids = torch.arange(6).reshape(2, 3)
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    fxrebasin.export_onnx(Head(0, tied=True).eval(), a, ids)
    fxrebasin.export_onnx(Head(1, tied=tied).eval(), b, ids)
    places = [place_of(item)[1] for item in stored(a).graph.initializer if is_external(item)]
    assert len(set(places)) < len(places)  # tied ones are there once
    fxrebasin.onnx_merge([a, b], tmp_path / "mean.onnx")
    found, ours, theirs = tensors(tmp_path / "mean.onnx"), tensors(a), tensors(b)
    for name, array in found.items():
        mean = (ours[name].astype(np.float64) + theirs[name]) / 2
        np.testing.assert_array_equal(array, mean.astype(np.float32), err_msg=name)
    fxrebasin.onnx_merge([a, b], tmp_path / "end.onnx", weights=(0, 1))
    assert fxrebasin.verify(b, tmp_path / "end.onnx").passed


@pytest.mark.usefixtures("no_data_embedded")
def test_our_own_file_of_a_layer_with_two_names_is_re_based(tmp_path: Path) -> None:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
    a, b, out = (tmp_path / f"{name}.onnx" for name in ("a", "b", "out"))
    for seed, path in enumerate((a, b)):
        fxrebasin.export_onnx(Twice(seed).eval(), path, x)
    fxrebasin.onnx_transform(b, ref=a, out=out)
    assert fxrebasin.verify(Twice(1).eval(), out, x).passed
