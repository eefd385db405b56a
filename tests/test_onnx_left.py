"""Data of large initializers, which stay in their file until a tensor of them is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import fxrebasin
from fxrebasin.errors import CheckpointError
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of
from tests.support.onnx_graphs import model

LAYERS = """ net (float[n,3] x) => (float[n,7] y) {
    a = MatMul(x, w1)  b = Add(a, v)  c = Relu(b)
    d = MatMul(c, w2)  e = Add(d, SECOND)  f = Tanh(e)  h = MatMul(f, w3)  y = Add(h, u) }"""
WEIGHTS: dict[str, Any] = {
    **{"w1": (3, 300), "v": (300,), "w2": (300, 300), "w3": (300, 7), "u": (7,)}
}


def layers(second: str) -> ModelProto:
    """Large weights and small ones, one of numbers one by one, and what says nothing."""
    made = model(LAYERS.replace("SECOND", second), WEIGHTS, checked=second != "s")
    if second == "s":
        values = np.random.default_rng(1).standard_normal(300).astype(np.float32)
        made.graph.initializer.append(helper.make_tensor("s", TensorProto.FLOAT, [300], values))
    made.graph.initializer[2].doc_string = "said behind the data"
    made.graph.doc_string = "a net"
    made.metadata_props.add(key="who", value="me")
    return made


def half(made: ModelProto) -> ModelProto:
    """The same in float16, behind casts."""
    for tensor in made.graph.initializer:
        narrow = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(narrow, tensor.name))
        cast = helper.make_node("Cast", [tensor.name], [f"{tensor.name}.f"], to=1)
        for node in made.graph.node:
            node.input[:] = [f"{n}.f" * (n == tensor.name) or n for n in node.input]
        made.graph.node.insert(0, cast)
    return made


MODELS = {
    "plain": lambda: layers("s"),
    "shared": lambda: layers("v"),
    "float16": lambda: half(layers("s")),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_written_as_protobuf_writes_it_with_all_its_data(
    name: str, tmp_path: Path
) -> None:
    made, path = MODELS[name](), tmp_path / "b.onnx"
    path.write_bytes(made.SerializeToString())
    order = fxrebasin.analyze(path).random(seed=4)
    assert order.units_moved > 500
    for source, out in ((path, "one.onnx"), (made, "two.onnx")):
        proof = fxrebasin.onnx_apply(source, order, tmp_path / out)
        assert proof is not None
        assert proof.passed
    one, two = ((tmp_path / out).read_bytes() for out in ("one.onnx", "two.onnx"))
    assert one == two == onnx.load(tmp_path / "one.onnx").SerializeToString()
    assert (len(one) - path.stat().st_size > 1000) is (name == "shared")
    fxrebasin.onnx_apply(tmp_path / "one.onnx", order.inverse(), tmp_path / "back.onnx")
    if name != "shared":
        assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes()


def test_large_data_are_held_once(tmp_path: Path) -> None:
    made, path = layers("s"), tmp_path / "b.onnx"
    onnx.save(made, path)
    source = read(path)
    assert source.proto.ByteSize() < 4000 < path.stat().st_size / 90
    given = read(made).parsed.tensors
    assert {name: bytes_of(tensor) for name, tensor in given.items()} == {
        name: bytes_of(tensor) for name, tensor in source.parsed.tensors.items()
    }


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99, 0.9999])
def test_a_file_that_ends_within_its_data_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    payload = layers("s").SerializeToString()
    path.write_bytes(payload[: int(len(payload) * share)])
    with pytest.raises(CheckpointError, match=r"b\.onnx (is cut off|is not an ONNX model)"):
        read(path)


def test_data_that_do_not_fit_their_shape_are_refused(tmp_path: Path) -> None:
    made = layers("s")
    made.graph.initializer[2].dims[0] = 299
    onnx.save(made, tmp_path / "b.onnx")
    with pytest.raises(CheckpointError, match="the data of 'w2' do not fit its shape"):
        read(tmp_path / "b.onnx")


_REBASE = """
import json, sys, threading
import numpy as np, onnx, torch
from onnx import numpy_helper
import fxrebasin
from fxrebasin.running.freed import give_back_memory
from tests.support.onnx_graphs import MLP, MLP_WEIGHTS, model

torch.set_num_threads(1)
folder, most, done = sys.argv[1], [0], threading.Event()

def anonymous():
    # bytes that are no pages of files
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def watch():
    while not done.wait(0.005):
        most[0] = max(most[0], anonymous())

small = model(MLP, MLP_WEIGHTS)
fxrebasin.onnx_transform(small, ref=small, out=f"{folder}/small.onnx")
give_back_memory()
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
report = fxrebasin.onnx_transform(
    f"{folder}/b.onnx", ref=f"{folder}/a.onnx", out=f"{folder}/out.onnx"
)
done.set()
print(json.dumps([report.distance_before, report.distance_after, most[0] - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory")
@pytest.mark.parametrize("beside", [False, True])
def test_a_file_is_rebased_in_less_than_five_times_its_memory(beside: bool, tmp_path: Path) -> None:
    width, count = 768, 20
    names = [f"w{at}" for at in range(count)]
    steps = [f"h{at} = MatMul({f'r{at - 1}' if at else 'x'}, {w})" for at, w in enumerate(names)]
    steps = [f"{step}  r{at} = Relu(h{at})" for at, step in enumerate(steps)]
    text = f" net (float[n,{width}] x) => (float[n,{width}] y) {{ {'  '.join(steps)}"
    text += f"  y = Identity(r{count - 1}) }}"
    made = model(text, dict.fromkeys(names, (width, width)))
    weights = made.ByteSize()
    for letter in ("b", "a"):
        data = {"save_as_external_data": True, "location": f"{letter}.data"} if beside else {}
        onnx.save(made, tmp_path / f"{letter}.onnx", **data)
        made = model(text, dict.fromkeys(names, (width, width)))
        for at, tensor in enumerate(made.graph.initializer):
            values = numpy_helper.to_array(tensor)
            values = values[::-1] if at else values
            values = values[:, ::-1] if at < count - 1 else values
            tensor.raw_data = np.ascontiguousarray(values).tobytes()
    done = subprocess.run(
        [sys.executable, "-c", _REBASE, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    before, after, peak = json.loads(done.stdout.splitlines()[-1])
    assert before > 1
    assert after == 0
    assert peak < 5 * weights
