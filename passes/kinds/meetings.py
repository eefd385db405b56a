"""Where units that two parts of the state make are multiplied with each other, as queries and keys.

It is only a guess where to look: what is said of such units is found by following them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from torch import fx

from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.shifts import MOVES, SPLITS
from fxrebasin.passes.kinds.walk import bound, name_of, shape_of

Axis: TypeAlias = tuple[str, int]
"""The name of a state tensor, and the number of one of its axes."""

_FOLLOWED = MOVES | {*SPLITS, "add", "sub", "mul", "div", "neg", "cat", "stack", "index"}
_KEPT = frozenset({"clone", "detach", "alias", "_to_copy"})


def meetings(graph: FunctionalGraph) -> Iterator[tuple[Axis, ...]]:
    """For each product of two activations, the axes of units by which both are made.

    Args:
        graph: of the model.
    """
    names = {node: name for name, node in graph.state.items() if name in graph.parameters}
    for node in graph.nodes:
        if node.op == "call_function" and name_of(node) == "bmm":
            one, two = (_made_by(bound(node)[side], names) for side in ("self", "mat2"))
            if one and two:
                yield tuple({**one, **two})


def _made_by(top: fx.Node, names: Mapping[fx.Node, str]) -> dict[Axis, None]:
    """The axes of units of linear layers, biases and factors that a tensor is made by."""
    found: dict[Axis, None] = {}
    seen: set[fx.Node] = set()
    left = [top]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in names and len(shape_of(node)) == 1:
            found[names[node], 0] = None
        elif node.op == "call_function" and name_of(node) == "mm":
            for operand, axis in ((node.args[1], 1), (node.args[0], 0)):
                own = _axis_of_state(operand, axis, names)
                if own is not None:
                    found[own] = None
        elif node.op == "call_function" and _is_followed(node):
            left += reversed(node.all_input_nodes)
    return found


def _is_followed(node: fx.Node) -> bool:
    name = name_of(node)
    return name in _FOLLOWED or name.endswith("getitem>")


def _axis_of_state(node: Any, axis: int, names: Mapping[fx.Node, str]) -> Axis | None:
    """The axis of a state tensor that an axis of a node is, if it is one that was turned only."""
    while node not in names:
        if node.op != "call_function":
            return None
        name = name_of(node)
        if name == "permute":
            axis = bound(node)["dims"][axis]
        elif name in ("t", "transpose"):
            axis = 1 - axis
        elif name not in _KEPT:
            return None
        node = node.all_input_nodes[0]
    return names[node], axis
