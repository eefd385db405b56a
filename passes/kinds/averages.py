"""Averages: products with weights that sum to one, whatever the inputs are."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.walk import name_of, shape_of


def sums_to_one(node: Any, graph: FunctionalGraph) -> bool:
    """Whether the last axis of a tensor holds weights of an average."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        name = name_of(node)
        if name in ("_softmax", "_safe_softmax"):
            last = len(shape_of(node)) - 1
            if node.args[1] not in (-1, last):
                return False
            return name == "_softmax" or not _may_mask_all(node.args[0], graph)
        source = node.all_input_nodes[0]
        if name not in ("expand", "view", "clone", "_unsafe_view", "reshape", "_to_copy"):
            return False
        if shape_of(source)[-1] != shape_of(node)[-1]:
            return False
        node = source
    return False


def _may_mask_all(node: Any, graph: FunctionalGraph) -> bool:
    """Whether an input of the model may leave a row of scores without any."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return True
    if name_of(node) in ("bmm", "view", "_unsafe_view", "mul"):
        return False
    if name_of(node) == "add":
        products = [item for item in node.all_input_nodes if not _may_mask_all(item, graph)]
        others = [item for item in node.all_input_nodes if item not in products]
        return not products or any(item in graph.from_inputs for item in others)
    return True
