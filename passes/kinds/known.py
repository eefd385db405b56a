"""Values of nodes that depend on no state: of constants, and of what is computed from inputs.

What holds for all inputs holds for numbers drawn at random; what holds for these, of functions such
as sines of positions, holds for all but by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxrebasin.passes.kinds.functional import FunctionalGraph

_BEYOND = 1000
"""Whole numbers are drawn below this, and below what an example holds where that is refused."""


@dataclass
class Known:
    """Computes values of nodes, each once.

    Attributes:
        graph: of the model.
        state: names of tensors that are no constants.
    """

    graph: FunctionalGraph
    state: frozenset[str]
    _values: dict[fx.Node, Any] = field(default_factory=dict)
    _drawn: Mapping[fx.Node, Tensor] | None = None
    _narrow: bool = False

    def value(self, node: fx.Node) -> Any:
        """What a node makes, where inputs are drawn at random; None if that is not known.

        It is a tensor, or several where an operator returns several.
        """
        if node not in self._values:
            try:
                self._values[node] = self._computed(node)
            except (IndexError, RuntimeError):
                self._values[node] = None
        if self._values[node] is None and not self._narrow and node in self.graph.from_inputs:
            self._narrow, self._drawn = True, None  # such as positions that a table has no row for
            self._values = {
                n: v for n, v in self._values.items() if n not in self.graph.from_inputs
            }
            return self.value(node)
        return self._values[node]

    def _computed(self, node: fx.Node) -> Any:
        if node in self.graph.given:
            if self._drawn is None:
                self._drawn = _drawn(self.graph.given, self._narrow)
            return self._drawn[node]
        if node.op != "call_function":
            names = {self.graph.state[name] for name in self.state if name in self.graph.state}
            return None if node in names else self.graph.values.get(node)
        if any(self.value(item) is None for item in node.all_input_nodes):
            return None
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self.value)
        result = node.target(*args, **kwargs)  # type: ignore[operator]
        several = result if isinstance(result, tuple | list) else (result,)
        known = all(isinstance(item, Tensor) and not item.is_meta for item in several)
        return result if known else None


def _drawn(given: Mapping[fx.Node, Tensor], narrow: bool) -> dict[fx.Node, Tensor]:
    gen = torch.Generator().manual_seed(0)
    found: dict[fx.Node, Tensor] = {}
    for node, example in given.items():
        if example.is_floating_point():
            drawn = torch.randn(example.shape, generator=gen, dtype=torch.float64)
        elif example.dtype is torch.bool or example.is_complex():
            found[node] = example
            continue
        else:
            most = int(example.max()) + 1 if narrow and example.numel() else _BEYOND
            drawn = torch.randint(0, max(1, most), example.shape, generator=gen)
        found[node] = drawn.to(example.dtype)
    return found
