"""Parameters that are added to something, as biases and embeddings are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxrebasin.passes.kinds.walk import name_of, shape_of


@dataclass(frozen=True)
class Added:
    """A parameter that is added to something.

    Attributes:
        name: of the parameter.
        rows: whether its rows are looked up.
        shape: in which it is added.
    """

    name: str
    rows: bool
    shape: tuple[int, ...]


def added_parameter(top: Any, names: Mapping[fx.Node, str]) -> Added | None:
    """The parameter that a node is, looks rows up of, or is a sum with; None if there is none.

    It is used nowhere else, and nothing but its shape is changed.
    """
    node, last = top, True
    while isinstance(node, fx.Node):
        if len(node.users) != 1:
            return None
        if node in names:
            return Added(names[node], False, shape_of(top))
        name = name_of(node) if node.op == "call_function" else ""
        if name == "add" and node.kwargs.get("alpha", 1) == 1:
            return _in_sum(node, names, None if node is top else last)
        if name == "embedding":
            weight: Any = node.args[0]
            single = weight in names and len(weight.users) == 1
            return Added(names[weight], True, shape_of(top)) if single else None
        if name == "mul" and node.args[1] == 1:
            node = node.args[0]
        elif name in ("view", "unsqueeze", "clone", "_to_copy", "slice"):
            source = node.all_input_nodes[0]
            if shape_of(source) != shape_of(node) and name == "slice":
                return None
            last = last and shape_of(source)[-1:] == shape_of(node)[-1:]
            node = source
        else:
            return None
    return None


def _in_sum(node: fx.Node, names: Mapping[fx.Node, str], last: bool | None) -> Added | None:
    """A parameter that is added in a sum, the shape of which may be changed after that.

    Args:
        node: the sum.
        names: of parameters.
        last: whether a change of the shape left the last axis alone; None if there is none.
    """
    for item in node.args:
        found = added_parameter(item, names)
        if found is not None and last is not False:
            alike = found.rows or len(found.shape) == 1
            if last is None or alike:
                shape = found.shape if last is None else found.shape[-1:]
                return Added(found.name, found.rows, shape)
    return None
