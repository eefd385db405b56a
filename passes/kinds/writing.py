"""The mode that writes the operators of a model into a graph while the model runs.

Views and writes are gone by then, since torch takes these away above it: the model is given other
tensors, each of which stands for what was written to it last. Where the state and the inputs have
shapes only, what depends on none of them still has data, so that a model may look at that, and at
nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from fxrebasin.errors import FxRebasinError
from fxrebasin.running.on_meta import on_meta
from fxrebasin.running.operators import tensors_in, writes
from fxrebasin.running.watching import OperatorMode

_torch: Any = torch  # some of its functions have no types
_CPU = torch.device("cpu")
_NORMS = frozenset(
    (
        torch.ops.aten.native_batch_norm.default,
        torch.ops.aten._native_batch_norm_legit_no_training.default,
    )
)
"""Operators whose fourth and fifth arguments are a running mean and a running variance."""
_LOOKED_AT = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


def looks_at_data(func: Any) -> bool:
    """Whether Python gets to know values by an operator, or how many there are of them.

    Args:
        func: the operator.
    """
    return bool(_LOOKED_AT.intersection(getattr(func, "tags", ())))


class Writer(OperatorMode):
    """Writes operators into a graph.

    Attributes:
        graph: what was written.
        constants: tensors that no operator made, by node.
        statistics: what norms are given as statistics that training takes of data.
    """

    def __init__(
        self, taken_apart: Mapping[Any, Callable[..., Any]], *, with_data: bool = False
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[fx.Node, Tensor] = {}
        self.statistics: set[fx.Node] = set()
        self._taken_apart, self._with_data = taken_apart, with_data
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # so that no other tensor is taken for one of them

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Everything inside is written, without views and writes; of its results, forms stay."""
        with self:
            _torch._enable_functionalization(reapply_views=False)
            try:
                yield
            finally:
                _torch._disable_functionalization()
        self._alive.clear()
        self._nodes.clear()
        for node in self.graph.nodes:
            if "val" in node.meta:
                node.meta["val"] = map_aggregate(node.meta["val"], _form)

    def input(self, tensor: Tensor) -> Tensor:
        """What to run the model on in place of a tensor, while it is written.

        Args:
            tensor: an input of the graph.
        """
        found = tensor.detach()
        if not self._with_data:
            shape, strides = tuple(tensor.shape), tensor.stride()
            found = torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")
        self._made(found, self.graph.placeholder(f"input_{len(self._nodes)}"))
        return torch._to_functional_tensor(found)

    def end(self, tensors: Sequence[Tensor]) -> None:
        """Nothing more is going to be written.

        Args:
            tensors: that the graph returns.
        """
        returned: list[fx.Node] = []
        for tensor in tensors:
            if torch._is_functional_tensor(tensor):
                _torch._sync(tensor)
                tensor = torch._from_functional_tensor(tensor)
            returned.append(self._node(tensor))
        self.graph.output(tuple(returned))

    def called(
        self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See `OperatorMode`."""
        if func in _NORMS:
            self.statistics |= {self._node(item) for item in args[3:5] if isinstance(item, Tensor)}
        with self:  # what it is made of is written
            apart = self._taken_apart.get(func, func.decompose)(*args, **kwargs)
        if apart is not NotImplemented:
            return apart
        if writes(func):
            raise FxRebasinError(f"{func} writes to a constant")
        result = self._run(func, args, kwargs)
        made = tensors_in(result)
        if made or looks_at_data(func):
            given: Any = map_aggregate((args, kwargs), self._argument)
            node = self.graph.call_function(func, *given)
            node.meta["val"] = result
            for index, tensor in enumerate(made):
                several = not isinstance(result, Tensor)
                item = (operator.getitem, (node, index))
                self._made(tensor, self.graph.call_function(*item) if several else node)
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(tensor.is_meta for tensor in tensors_in((args, kwargs))):
            return on_meta(func, args, kwargs)
        if not self._with_data and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": _CPU}
        return func(*args, **kwargs)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        return _CPU if isinstance(value, torch.device) else value

    def _node(self, tensor: Tensor) -> fx.Node:
        node = self._nodes.get(id(tensor))
        if node is None:
            node = self.graph.create_node("get_attr", f"constant_{len(self.constants)}")
            self.constants[node] = tensor
            self._made(tensor, node)
        return node

    def _made(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta.setdefault("val", tensor)
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)


def _form(value: Any) -> Any:
    """A tensor without its data."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return torch.empty(value.shape, dtype=value.dtype, device="meta")
