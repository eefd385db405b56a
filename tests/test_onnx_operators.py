"""The importer computes what the standard's own cases of single nodes say."""

from __future__ import annotations

import inspect

import pytest
import torch
from onnx import TensorProto, defs, helper, parser

from benchmarks.onnx_operators import PAGE, TABLE, page, table
from fxrebasin.importers.onnx.graph import parse
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.operators import OPERATORS
from fxrebasin.importers.onnx.registry import UnsupportedError
from tests.support.onnx_nodes import outcomes

LEFT_OUT = {"consumed_inputs", "is_test", "training_mode", "broadcast"}


def test_no_case_is_wrong() -> None:
    wrong = {item.case: item.fault for item in outcomes() if item.fault and not item.reason}
    assert not wrong
    assert sum(item.passed for item in outcomes()) >= 1550
    assert len(outcomes()) >= 1884


def test_nothing_that_does_not_apply_is_computed_to_something_else() -> None:
    different = {item.case for item in outcomes() if item.fault and item.computed}
    assert different == {
        "test_resize_downsample_scales_linear_align_corners",
        "test_resize_downsample_scales_cubic_align_corners",
    }


def test_the_page_says_what_is_computed() -> None:
    again = "run python -m benchmarks.onnx_operators"
    assert PAGE.read_text("utf-8") == page(outcomes()), again
    assert TABLE.read_text("utf-8") == table(outcomes()), again


@pytest.mark.parametrize("key", [key for key in sorted(OPERATORS) if not key[0]])
def test_attributes_are_those_of_the_standard(key: tuple[str, str]) -> None:
    """Since opset 7, under their names, so that none of a file is taken for unknown."""
    schemas = [s for s in defs.get_all_schemas_with_history() if (s.domain, s.name) == key]
    current = [s for s in schemas if s.since_version >= 7] or schemas
    wanted = {name for schema in current for name in schema.attributes} - LEFT_OUT
    function = OPERATORS[key].function
    try:
        given = {
            name
            for name, item in inspect.signature(function).parameters.items()
            if item.kind is item.KEYWORD_ONLY
        }
    except ValueError:
        given = set()
    assert not wanted - given, (key, wanted - given)


def test_an_attribute_that_is_not_known_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], sharpness=2)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    model = helper.make_model(helper.make_graph([node], "g", [value], [result]))
    with pytest.raises(UnsupportedError, match="Relu"):
        OnnxModule(parse(model))(torch.zeros(2))


def test_an_operator_that_is_not_known_is_refused_by_name() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "odd" : 1]> g (float[2] x) => (float[2] y) {'
    model = parser.parse_model(text + " y = odd.Twist(x) }")
    with pytest.raises(UnsupportedError, match="odd::Twist"):
        OnnxModule(parse(model))(torch.zeros(2))
