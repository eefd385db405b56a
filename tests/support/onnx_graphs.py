"""Small ONNX graphs from text, with weights that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, parser

from fxrebasin.importers.onnx.finding import Found, find
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.writing import changed, draft

HEAD = '<ir_version: 8, opset_import: [ "" : 17, "com.microsoft" : 1 ], producer_name: "me">'


def model(
    text: str, weights: Mapping[str, Any], seed: int = 0, *, checked: bool = True
) -> ModelProto:
    """A model of a graph as ONNX's own syntax has it, from its name on.

    Args:
        text: without the head, and without weights.
        weights: arrays, or shapes of random ones, by name.
        seed: of these.
        checked: whether it is complete.
    """
    made = parser.parse_model(HEAD + text)
    generator = np.random.default_rng(seed)
    for name, item in weights.items():
        value = (
            generator.standard_normal(item).astype(np.float32) if isinstance(item, tuple) else item
        )
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    if checked:
        onnx.checker.check_model(made)
    return made


MLP = """ g (float[n,3] x) => (float[n,2] y) {
    a = MatMul(x, w1)  b = Add(a, b1)  c = Relu(b)  d = MatMul(c, w2)  y = Add(d, b2) }"""
MLP_WEIGHTS = {"w1": (3, 5), "b1": (5,), "w2": (5, 2), "b2": (2,)}


def mlp(seed: int = 0) -> ModelProto:
    """One hidden layer of five units."""
    return model(MLP, MLP_WEIGHTS, seed)


def planted(path: Path, out: Path, seed: int = 5) -> Found:
    """Write a file that is another one with its units in a random order; what was found of it."""
    source = read(path)
    found = find(source)
    names = found.module.file_names
    order = found.symmetry.random(seed)
    given = {k: source.parsed.tensors[n] for k, n in names.items() if k in order.layout}
    moved = {names[k]: tensor for k, tensor in order.permute_state_dict(given).items()}
    new = changed(source.parsed, moved)
    assert new
    with draft(source.proto, source.parsed, new, out, path.parent, overwrite=False):
        pass
    return found
