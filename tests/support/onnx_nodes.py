"""The standard's own test cases of single nodes, run by the importer.

Each case is computed as it should be, or does not apply for one of the reasons below, or fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, numpy_helper

from fxrebasin.importers.onnx.dtypes import UnknownTypeError
from fxrebasin.importers.onnx.graph import parse
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.registry import UnsupportedError
from fxrebasin.importers.onnx.tensors import from_array, to_torch

REFUSALS = (UnknownTypeError, UnsupportedError, NotImplementedError)
ROUNDINGS = 16
"""How many roundings, of the largest value, a result may differ by besides the case's tolerance."""


@dataclass(frozen=True)
class Reason:
    """Why cases do not apply.

    Args:
        words: for people.
        operators: names of operators that are not computed.
        domains: all of whose operators are not.
        types: names of element types that are not.
        cases: names of cases.
    """

    words: str
    operators: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    cases: frozenset[str] = frozenset()

    def covers(self, case: Any, types: frozenset[str]) -> bool:
        """Whether a case does not apply for this reason."""
        nodes = case.model.graph.node
        return (
            case.name in self.cases
            or any(node.op_type in self.operators and not node.domain for node in nodes)
            or any(node.domain in self.domains for node in nodes)
            or bool(types & self.types)
        )


REASONS = (
    Reason("text", types=frozenset({"STRING"})),
    Reason(
        "numbers of 8 bits and fewer with a fraction, or of 4 bits and fewer",
        types=frozenset(
            {"FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"}
            | {"FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2", "INT4", "UINT4", "INT2", "UINT2"}
        ),
    ),
    Reason(
        "whole numbers without a sign of 16 bits and more, with which torch computes little",
        types=frozenset({"UINT16", "UINT32", "UINT64"}),
    ),
    Reason(
        "quantised numbers: such graphs are refused",
        operators=frozenset(
            {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"}
            | {"QLinearMatMul", "MatMulInteger", "ConvInteger"}
        ),
    ),
    Reason(
        "random numbers",
        operators=frozenset(
            {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"}
            | {"RandomUniform", "RandomUniformLike"}
        ),
    ),
    Reason(
        "training",
        domains=frozenset({"ai.onnx.preview.training"}),
        cases=frozenset(
            {"test_batchnorm_example_training_mode", "test_batchnorm_epsilon_training_mode"}
            | {"test_training_dropout_default", "test_training_dropout_default_mask"}
            | {"test_training_dropout", "test_training_dropout_mask"}
        ),
    ),
    Reason(
        "classic machine learning, counts of words",
        domains=frozenset({"ai.onnx.ml"}),
        operators=frozenset({"TfIdfVectorizer"}),
    ),
    Reason("pictures as files", operators=frozenset({"ImageDecoder"})),
    Reason(
        "the reference divides by a size that is not rounded, onnxruntime and PyTorch by that of "
        "the result",
        cases=frozenset(
            {"test_resize_downsample_scales_linear_align_corners"}
            | {"test_resize_downsample_scales_cubic_align_corners"}
        ),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Args:
        case: its name.
        operators: with their domains, of the case itself, not of what it was expanded to.
        fault: what is wrong, or why it was not computed; empty if all is well.
        computed: whether there was a result.
        reason: why it does not apply, if that is known.
    """

    case: str
    operators: tuple[tuple[str, str], ...]
    fault: str
    computed: bool
    reason: str

    @property
    def passed(self) -> bool:
        """Whether it was computed as it should be."""
        return not self.fault


def cases() -> list[Any]:
    """All cases; making them takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case import node

        return list(node.collect_testcases())


@cache
def outcomes() -> tuple[Outcome, ...]:
    """What becomes of each case."""
    return tuple(map(outcome, cases()))


def outcome(case: Any) -> Outcome:
    """Run one case."""
    fault, computed = "", True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = OnnxModule(parse(case.model))
            for given, expected in case.data_sets:
                found = model(*map(torch_value, given))
                faults = (
                    f"{name}: {fault}"
                    for (name, value), wanted in zip(found.items(), expected, strict=True)
                    for fault in differences(value, wanted, case.rtol, case.atol)
                )
                fault = fault or next(faults, "")
        except REFUSALS as error:
            fault, computed = f"{type(error).__name__}: {error}", False
        except TypeError as error:
            if "numpy.object_" not in str(error):
                raise
            fault, computed = "text", False
    nodes = tuple((node.domain, node.op_type) for node in case.model.graph.node)
    types = frozenset(types_of(case))
    covering = (reason.words for reason in REASONS if reason.covers(case, types))
    return Outcome(case.name, nodes, fault, computed, next(covering, "") if fault else "")


def types_of(case: Any) -> Iterator[str]:
    """The element types of inputs, outputs and casts of a case."""
    graph = case.model.graph
    for item in [*graph.input, *graph.output]:
        kind = item.type
        while kind.HasField("sequence_type") or kind.HasField("optional_type"):
            inner = "sequence_type" if kind.HasField("sequence_type") else "optional_type"
            kind = getattr(kind, inner).elem_type
        yield TensorProto.DataType.Name(kind.tensor_type.elem_type)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type in ("Cast", "BitCast") and attribute.name == "to":
                yield TensorProto.DataType.Name(attribute.i)


def torch_value(value: Any) -> Any:
    """An input of a case."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [torch_value(item) for item in value]
    return to_torch(value) if isinstance(value, TensorProto) else from_array(np.asarray(value))


def differences(found: Any, wanted: Any, rtol: float, atol: float) -> Iterator[str]:
    """How a result differs from what a case wants, in words."""
    if wanted is None or isinstance(wanted, list | tuple):
        if wanted is None or len(found) != len(wanted):
            if found is not wanted:
                yield "another number of values"
            return
        for one, other in zip(found, wanted, strict=True):
            yield from differences(one, other, rtol, atol)
        return
    array = numpy_helper.to_array(wanted) if isinstance(wanted, TensorProto) else wanted
    expected = from_array(np.asarray(array))
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        yield (
            f"{found.dtype} {tuple(found.shape)} instead of "
            f"{expected.dtype} {tuple(expected.shape)}"
        )
    elif expected.is_floating_point() or expected.is_complex():
        step = torch.finfo(expected.dtype).eps
        finite = expected[expected.isfinite()].abs()
        largest = float(finite.max()) if finite.numel() else 0.0
        margin = max(atol, ROUNDINGS * step * largest) if step < rtol else 2 * step * largest
        wide = torch.complex128 if expected.is_complex() else torch.float64
        one, other = found.to(wide), expected.to(wide)
        if not torch.allclose(one, other, rtol, margin, equal_nan=True):
            yield f"differs by {float((one - other).abs().max())}"
    elif not torch.equal(found.long(), expected.long()):
        yield "other whole numbers"


def by_operator(found: Iterable[Outcome]) -> Mapping[tuple[str, str], list[Outcome]]:
    """Outcomes of the cases of single operators, by domain and name."""
    grouped: dict[tuple[str, str], list[Outcome]] = {}
    for item in found:
        if len(item.operators) == 1:
            grouped.setdefault(item.operators[0], []).append(item)
    return dict(sorted(grouped.items()))
