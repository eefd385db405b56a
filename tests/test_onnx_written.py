"""What is written back: the file, with some of its tensors in another order, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, defs, helper

import fxrebasin
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import bytes_of

KINDS = {
    "float": TensorProto.FLOAT,
    "double": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
ENCODINGS = ("raw", "typed", "external")
PLACES = ("initializer", "input", "constant")
SHAPES = {"w1": (3, 5), "b1": (5,), "w2": (5, 4), "b2": (4,), "w3": (4, 2)}
DATA = ("raw_data", "float_data", "double_data", "int32_data", "external_data", "data_location")


def cases() -> Iterator[Any]:
    """Each kind, encoding, place and opset with some of the others."""
    opsets = [7, 8, 9, 10, 11, 12, 13, 15, 17, 18, 19, 21, 22, 23]
    mixed = [
        (kind, encoding, place)
        for kind in KINDS
        for encoding in ENCODINGS
        for place in PLACES
        if (kind, encoding, place) == ("float", encoding, place) or place == "initializer"
    ]
    for at, choice in enumerate(mixed):
        opset = max(opsets[at % len(opsets)], 13 if choice[0] == "bfloat16" else 7)
        yield pytest.param(*choice, opset, id="-".join(map(str, (*choice, opset))))


def stored(name: str, kind: str, encoding: str, rng: np.random.Generator) -> TensorProto:
    """A tensor with a zero of either sign, of which one type has no typed field of its own."""
    shape = SHAPES[name]
    values = rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(KINDS[kind]))
    values.reshape(-1)[:2] = (0.0, -0.0)
    if encoding == "typed":
        return helper.make_tensor(name, KINDS[kind], shape, values.reshape(-1))
    return helper.make_tensor(name, KINDS[kind], shape, values.tobytes(), raw=True)


def built(kind: str, encoding: str, place: str, opset: int) -> ModelProto:
    """Two hidden layers, with a table that is sparse, sizes, and things that say nothing."""
    rng = np.random.default_rng(0)
    held = [stored(name, kind, encoding, rng) for name in SHAPES]
    nodes, inputs = [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])]
    for tensor in held:
        if place == "constant":
            nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        if place == "input":
            shape = SHAPES[tensor.name]
            inputs.append(helper.make_tensor_value_info(tensor.name, KINDS[kind], shape))
        nodes.append(helper.make_node("Cast", [tensor.name], [f"{tensor.name}.f"], to=1))
    nodes += [
        helper.make_node("MatMul", ["x", "w1.f"], ["h1"], name="first", doc_string="a product"),
        helper.make_node("Add", ["h1", "b1.f"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "w2.f"], ["h4"]),
        helper.make_node("Add", ["h4", "b2.f"], ["h5"]),
        helper.make_node("Tanh", ["h5"], ["h6"]),
        helper.make_node("MatMul", ["h6", "w3.f"], ["h7"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    nodes.append(helper.make_node("Add", ["h7", "shift" if opset > 10 else "h7"], ["y"]))
    initializers = [] if place == "constant" else held
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers, doc_string="a net")
    if opset > 10:
        values = helper.make_tensor("shift", TensorProto.FLOAT, [1], [1.5])
        places = helper.make_tensor("places", TensorProto.INT64, [1], [1])
        graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2]))
    version = 4 if opset < 9 else 10
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=version,
        producer_name="me",
        doc_string="a model",
    )
    made.metadata_props.add(key="who", value="me")
    return made


def without_numbers(model: ModelProto) -> ModelProto:
    bare = ModelProto()
    bare.CopyFrom(model)
    constants = [
        item.t for node in bare.graph.node for item in node.attribute if item.name == "value"
    ]
    for tensor in (*bare.graph.initializer, *constants):
        for name in DATA:
            tensor.ClearField(name)
    return bare


def contents(path: Path) -> tuple[bytes, list[bytes]]:
    """The bytes of a file, and of the data beside it, whose name is that of its content."""
    model = onnx.load(path, load_external_data=False)
    constants = [
        item.t for node in model.graph.node for item in node.attribute if item.name == "value"
    ]
    for tensor in (*model.graph.initializer, *constants):
        for entry in tensor.external_data:
            if entry.key == "location":
                assert (path.parent / entry.value).exists()
                entry.value = "data"
    beside = [found.read_bytes() for found in path.parent.iterdir() if found != path]
    return model.SerializeToString(deterministic=True), beside


def elements(path: Path) -> dict[str, list[bytes]]:
    tensors = read(path).parsed.tensors
    size = {name: tensor.element_size() for name, tensor in tensors.items()}
    data = {name: bytes_of(tensor) for name, tensor in tensors.items()}
    return {
        name: [value[at : at + size[name]] for at in range(0, len(value), size[name])]
        for name, value in data.items()
    }


@pytest.mark.parametrize(("kind", "encoding", "place", "opset"), list(cases()))
def test_only_places_change_and_the_way_back_is_exact(
    kind: str, encoding: str, place: str, opset: int, tmp_path: Path
) -> None:
    b, out, back = (tmp_path / folder / "net.onnx" for folder in ("b", "out", "back"))
    b.parent.mkdir()
    external = {"save_as_external_data": True, "location": "net.bin", "size_threshold": 0}
    options = {**external, "convert_attribute": True} if encoding == "external" else {}
    onnx.save(built(kind, encoding, place, opset), b, **options)
    symmetry = fxrebasin.analyze(b)
    assert [item.size for item in symmetry.classes] == [5, 4]
    order = symmetry.random(seed=2)
    assert order.units_moved > 5
    proof = fxrebasin.onnx_apply(b, order, out)
    assert proof is not None
    assert proof.passed
    before, after = (onnx.load(path, load_external_data=False) for path in (b, out))
    assert without_numbers(before) == without_numbers(after)
    was, now = elements(b), elements(out)
    assert {name for name in was if was[name] != now[name]} == SHAPES.keys()
    assert {name: sorted(items) for name, items in was.items()} == {
        name: sorted(items) for name, items in now.items()
    }
    fxrebasin.onnx_apply(out, order.inverse(), back)
    assert contents(back) == contents(b)


def test_the_newest_opset_is_read() -> None:
    symmetry = fxrebasin.analyze(built("float", "raw", "initializer", defs.onnx_opset_version()))
    assert [item.size for item in symmetry.classes] == [5, 4]
