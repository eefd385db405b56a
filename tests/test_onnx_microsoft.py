"""Operators of onnxruntime's own domain, compared with onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper

from fxrebasin.importers.onnx.graph import parse
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.operators import OPERATORS
from fxrebasin.importers.onnx.registry import MICROSOFT


@dataclass(frozen=True)
class Case:
    """One call: inputs are shapes of random numbers, arrays, or None if they are left out."""

    operator: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    domain: str = MICROSOFT
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.operator} {self.attributes}"


def ints(*values: int, dtype: Any = np.int32) -> Any:
    return np.array(values, dtype)


def tokens(*shape: int, below: int = 9, dtype: Any = np.int32) -> Any:
    return np.random.default_rng(3).integers(0, below, shape).astype(dtype)


def angles(rows: int, size: int) -> tuple[Any, Any]:
    turns = np.random.default_rng(4).uniform(0, 6, (rows, size)).astype(np.float32)
    return np.cos(turns), np.sin(turns)


SEVEN = tokens(2, 5, below=2) | np.array([1, 0, 0, 0, 0], np.int32)
COS, SIN = angles(12, 4)
WIDE_COS, WIDE_SIN = angles(12, 8)
NORM = ("y", "", "", "sum")
GQA = {"num_heads": 4, "kv_num_heads": 2}
CASES = (
    Case("Gelu", ((3, 4),)),
    Case("BiasGelu", ((3, 4), (4,))),
    Case("FastGelu", ((3, 4), (4,))),
    Case("FastGelu", ((3, 4),)),
    Case("QuickGelu", ((3, 4),)),
    Case("QuickGelu", ((3, 4),), {"alpha": 0.7}),
    Case("FusedMatMul", ((2, 3, 4), (2, 4, 5)), {"alpha": 0.5}),
    Case("FusedMatMul", ((2, 4, 3), (2, 5, 4)), {"transA": 1, "transB": 1}),
    Case("FusedMatMul", ((3, 2, 4), (2, 4, 5)), {"transBatchA": 1}),
    Case(
        "FusedMatMul",
        ((4, 2, 3), (5, 2, 4)),
        {"transBatchA": 1, "transA": 1, "transBatchB": 1, "transB": 1},
    ),
    Case("TransposeMatMul", ((4, 3), (4, 5)), {"transA": 1}),
    Case("FusedGemm", ((3, 4), (4, 5), (5,)), {"activation": "Relu"}),
    Case(
        "FusedGemm",
        ((3, 4), (5, 4), (3, 1)),
        {
            "activation": "LeakyRelu",
            "activation_alpha": 0.3,
            "transB": 1,
            "alpha": 0.5,
            "beta": 2.0,
        },
    ),
    Case(
        "FusedGemm",
        ((3, 4), (4, 5)),
        {"activation": "HardSigmoid", "activation_alpha": 0.3, "activation_beta": 0.4},
    ),
    *(
        Case("FusedGemm", ((3, 4), (4, 5)), {"activation": name, **given})
        for name, given in (
            *(("Elu", {"activation_alpha": 0.7}), ("Softplus", {}), ("Softsign", {})),
            ("Selu", {"activation_alpha": 0.7, "activation_gamma": 1.3}),
            ("ThresholdedRelu", {"activation_alpha": 0.3}),
        )
    ),
    Case(
        "FusedConv",
        ((1, 2, 5, 5), (3, 2, 3, 3), (3,)),
        {"activation": "Relu", "pads": [1, 0, 0, 1]},
    ),
    Case(
        "FusedConv",
        ((1, 2, 5, 5), (2, 2, 3, 3), (2,), (1, 2, 5, 5)),
        {"activation": "Relu", "pads": [1, 1, 1, 1]},
    ),
    Case(
        "FusedConv",
        ((1, 2, 5, 5), (4, 1, 3, 3)),
        {"activation": "Clip", "activation_params": [-0.5, 0.6], "group": 2},
    ),
    Case(
        "FusedConv",
        ((1, 2, 5, 5), (3, 2, 3, 3)),
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
    ),
    Case("SkipLayerNormalization", ((2, 3, 4), (2, 3, 4), (4,), (4,), (4,)), {}, NORM, scale=1e-5),
    Case("SkipLayerNormalization", ((2, 3, 4), (3, 4), (4,)), {"epsilon": 0.1}, NORM),
    Case(
        "SkipSimplifiedLayerNormalization", ((2, 3, 4), (2, 3, 4), (4,), (4,)), {}, NORM, scale=1e-5
    ),
    Case("SkipSimplifiedLayerNormalization", ((2, 3, 4), (2, 3, 4), (4,)), {"epsilon": 0.1}, NORM),
    Case("SimplifiedLayerNormalization", ((2, 3, 4), (4,)), {"epsilon": 0.1}, domain=""),
    Case(
        "EmbedLayerNormalization",
        (tokens(2, 5), tokens(2, 5, below=2), (9, 4), (7, 4), (2, 4), (4,), (4,), SEVEN),
        {"epsilon": 1e-5},
        ("y", "counts", "sum"),
    ),
    Case(
        "EmbedLayerNormalization",
        (tokens(2, 5), None, (9, 4), (7, 4), None, (4,), (4,), None, tokens(2, 5, below=7)),
        {},
        ("y", "counts"),
    ),
    Case("Attention", ((2, 5, 6), (6, 24), (24,)), {"num_heads": 2}, ("y", "present")),
    Case("Attention", ((2, 5, 6), (6, 24), (24,), SEVEN), {"num_heads": 2, "scale": 0.3}),
    Case("Attention", ((2, 5, 6), (6, 24), (24,), ints(3, 5)), {"num_heads": 2}),
    Case("Attention", ((2, 5, 6), (6, 24), (24,), SEVEN), {"num_heads": 2, "unidirectional": 1}),
    Case(
        "Attention",
        ((2, 5, 6), (6, 24), (24,), None, (2, 2, 2, 3, 4)),
        {"num_heads": 2, "unidirectional": 1},
        ("y", "present"),
    ),
    Case("Attention", ((2, 5, 6), (6, 24), (24,), None, None, (2, 2, 5, 5)), {"num_heads": 2}),
    Case("Attention", ((2, 5, 6), (6, 20), (20,)), {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 4]}),
    Case("MultiHeadAttention", ((2, 3, 8), (2, 5, 8), (2, 5, 8), (24,)), {"num_heads": 2}),
    Case("MultiHeadAttention", ((2, 3, 8), (2, 5, 8), (2, 5, 6)), {"num_heads": 2, "scale": 0.3}),
    Case("MultiHeadAttention", ((2, 3, 8), (2, 5, 8), (2, 5, 8), None, SEVEN), {"num_heads": 2}),
    Case(
        "MultiHeadAttention",
        ((2, 3, 8), (2, 5, 8), (2, 5, 8), None, None, (2, 2, 3, 5)),
        {"num_heads": 2},
    ),
    Case(
        "MultiHeadAttention",
        ((2, 3, 8), (2, 3, 8), (2, 3, 8), (24,), None, None, (2, 2, 4, 4), (2, 2, 4, 4)),
        {"num_heads": 2, "unidirectional": 1},
        ("y", "keys", "values"),
    ),
    Case("RotaryEmbedding", ((2, 3, 16), ints(4, dtype=np.int64), COS, SIN), {}),
    Case(
        "RotaryEmbedding",
        ((2, 3, 16), tokens(2, 3, below=12, dtype=np.int64), COS, SIN),
        {"interleaved": 1},
    ),
    Case("RotaryEmbedding", ((2, 2, 3, 8), tokens(2, 3, below=12, dtype=np.int64), COS, SIN), {}),
    Case(
        "RotaryEmbedding",
        ((2, 3, 24), tokens(2, 3, below=12, dtype=np.int64), COS, SIN),
        {"num_heads": 2, "rotary_embedding_dim": 8},
    ),
    Case(
        "GroupQueryAttention",
        ((2, 5, 32), (2, 5, 16), (2, 5, 16), None, None, ints(4, 4), ints(5)),
        GQA,
        ("y", "keys", "values"),
    ),
    Case(
        "GroupQueryAttention",
        ((2, 5, 64), (2, 5, 32), (2, 5, 32), None, None, ints(4, 4), ints(5), WIDE_COS, WIDE_SIN),
        {**GQA, "do_rotary": 1},
        ("y", "keys", "values"),
    ),
    Case(
        "GroupQueryAttention",
        ((2, 5, 64), (2, 5, 32), (2, 5, 32), None, None, ints(4, 4), ints(5), WIDE_COS, WIDE_SIN),
        {**GQA, "do_rotary": 1, "rotary_interleaved": 1, "softcap": 2.0},
        ("y", "keys", "values"),
    ),
    Case(
        "GroupQueryAttention",
        ((2, 5, 64), None, None, None, None, ints(4, 4), ints(5)),
        {**GQA, "local_window_size": 2, "scale": 0.2},
        ("y", "keys", "values"),
    ),
    Case(
        "GroupQueryAttention",
        (
            (2, 1, 64),
            (2, 1, 32),
            (2, 1, 32),
            (2, 2, 4, 16),
            (2, 2, 4, 16),
            ints(4, 4),
            ints(5),
            WIDE_COS,
            WIDE_SIN,
        ),
        {**GQA, "do_rotary": 1},
        ("y", "keys", "values"),
    ),
    Case("Inverse", ((2, 3, 3),)),
    Case("Trilu", ((2, 3, 3), ints(1, dtype=np.int64).reshape(())), {"upper": 0}),
    Case(
        "GridSample", ((1, 2, 3, 3), (1, 4, 4, 2)), {"mode": "bilinear", "padding_mode": "border"}
    ),
)


def feeds_of(case: Case) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        f"x{at}": generator.standard_normal(item).astype(np.float32)
        * (case.scale if at < 2 else 1.0)
        if isinstance(item, tuple)
        else item
        for at, item in enumerate(case.inputs)
        if item is not None
    }


def model_of(case: Case) -> ModelProto:
    feeds = feeds_of(case)
    names = [f"x{at}" if item is not None else "" for at, item in enumerate(case.inputs)]
    node = helper.make_node(
        case.operator, names, list(case.outputs), domain=case.domain, **case.attributes
    )
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feeds.items()
    ]
    outputs = [
        helper.make_tensor_value_info(
            name, TensorProto.INT32 if name == "counts" else TensorProto.FLOAT, None
        )
        for name in case.outputs
        if name
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_computes_what_onnxruntime_does(case: Case) -> None:
    model, feeds = model_of(case), feeds_of(case)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = session.run(None, feeds)
    found = OnnxModule(parse(model))(*map(torch.from_numpy, feeds.values()))
    assert len(wanted) == len(found)
    for (name, value), expected in zip(found.items(), wanted, strict=True):
        assert tuple(value.shape) == expected.shape, name
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=2e-6, err_msg=name)


def test_every_one_is_compared() -> None:
    compared = {case.operator for case in CASES if case.domain}
    assert compared == {name for domain, name in OPERATORS if domain == MICROSOFT}
