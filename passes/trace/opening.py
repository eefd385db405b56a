"""Axes of inputs that torch.export is asked to leave open, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import sympy
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from fxrebasin.passes.trace.guards import Guard, closing, compared, guards_of, now, objection
from fxrebasin.passes.trace.made_for import MadeFor

Axes: TypeAlias = list[set[int]]
"""Of each tensor among the inputs, in order."""

_Place: TypeAlias = tuple[int, int]  # the number of a tensor, and an axis
_Pair: TypeAlias = tuple[sympy.Symbol, sympy.Symbol]


def tensors_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors, in order."""
    leaves = tree_leaves((tuple(args), dict(kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def no_axes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Axes:
    """None."""
    return [set() for _ in tensors_among(args, kwargs)]


def batch_axes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Axes:
    """Axis 0 of every tensor that is as long there as the first."""
    tensors = tensors_among(args, kwargs)
    rows = next((tensor.shape[0] for tensor in tensors if tensor.dim()), 0)
    return [{0} if x.dim() and rows and x.shape[0] == rows else set() for x in tensors]


def token_axes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Axes:
    """The batch, and all axes of whole numbers and masks: texts have any length.

    Those of images stay closed, since formulas of their sizes may take PyTorch minutes.
    """
    axes = batch_axes(args, kwargs)
    for tensor, places in zip(tensors_among(args, kwargs), axes, strict=True):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            places.update(axis for axis, size in enumerate(tensor.shape) if size)
    return axes


class Opened:
    """Notes what stands for the sizes of open axes while a model is traced.

    Args:
        axes: that are to be open.
    """

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._sizes: dict[_Place, torch.SymInt] = {}
        self._lengths: dict[_Place, int] = {}

    def note(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note the sizes in the first call of the model; later ones are its own."""
        tensors = tensors_among(args, kwargs)
        if self._sizes or len(tensors) != len(self._axes):
            return
        for number, (tensor, axes) in enumerate(zip(tensors, self._axes, strict=True)):
            for axis in sorted(axes):
                size: Any = tensor.shape[axis]
                if isinstance(size, torch.SymInt):
                    self._sizes[number, axis] = size
                    self._lengths[number, axis] = size.node.hint

    def made_for(self, names: Sequence[str], batch: Sequence[int]) -> MadeFor:
        """What became of the axes.

        An axis is open if its size is any number. One that is a formula of others follows these,
        and then neither may have a size of its own. The batch has one size, and so have axes of
        which one must not be longer than the other: a mask is as long as what it masks.

        Args:
            names: of the tensors among the inputs, in order.
            batch: numbers of those whose first axis is the batch.
        """
        known = {place: now(size) for place, size in self._sizes.items()}
        formulas = [size for size in known.values() if not size.is_Symbol]
        tied = {symbol for formula in formulas for symbol in formula.free_symbols}
        free = {place: size for place, size in known.items() if size.is_Symbol and size not in tied}
        closed = {
            (names[number], axis): self._reason(size, names)
            for (number, axis), size in self._sizes.items()
            if (number, axis) not in free
        }
        rows = [free[number, 0] for number in batch if (number, 0) in free]
        one = self._joined([*pairwise(rows), *self._compared(free)])
        return MadeFor(
            {(names[n], axis): str(one.get(size, size)) for (n, axis), size in free.items()}, closed
        )

    def _compared(self, free: Mapping[_Place, sympy.Symbol]) -> Iterator[_Pair]:
        """Pairs of sizes that are equal in the example and were compared."""
        environments = [size.node.shape_env for size in self._sizes.values()]
        lengths = {symbol: self._lengths[place] for place, symbol in free.items()}
        for one, two in compared(guards_of(environments[0])) if environments else ():
            pair = environments[0].replace(one), environments[0].replace(two)
            if pair[0] in lengths and lengths.get(pair[0]) == lengths.get(pair[1]):
                yield pair

    @staticmethod
    def _joined(pairs: Sequence[_Pair]) -> Mapping[sympy.Symbol, sympy.Symbol]:
        """What stands for each size, if those of each pair are one."""
        one: dict[sympy.Symbol, sympy.Symbol] = {}
        for left, right in pairs:
            kept, lost = one.get(left, left), one.get(right, right)
            alike = [symbol for symbol, known in one.items() if known == lost]
            one.update(dict.fromkeys((left, right, *alike), kept))
        return one

    def _reason(self, size: torch.SymInt, names: Sequence[str]) -> str:
        labels = {
            other.node._expr: f"{names[number]}.shape[{axis}]"
            for (number, axis), other in reversed(list(self._sizes.items()))
        }
        return closing(size.node._expr, guards_of(size.node.shape_env), labels)


def objection_of(
    graph_module: fx.GraphModule, labels: Mapping[tuple[str, int], str], names: Sequence[str]
) -> Callable[[Mapping[str, int]], str | None]:
    """PyTorch's reason why a graph may not hold for sizes, by label.

    Args:
        graph_module: that torch.export made, in this process.
        labels: of open axes, by the name of an input and the place of the axis.
        names: of the tensors among the inputs, in order.
    """
    nodes = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    values = [node.meta["val"] for node in nodes if isinstance(node.meta["val"], torch.Tensor)]
    guards: tuple[Guard, ...] = ()
    known: dict[sympy.Basic, str] = {}
    for name, value in zip(names, values, strict=True):
        sizes: Any = value.shape
        for axis, size in enumerate(sizes):
            if (name, axis) in labels:
                known.update(dict.fromkeys((now(size), size.node._expr), labels[name, axis]))
                guards = guards_of(size.node.shape_env)
    return lambda sizes: objection(guards, known, sizes)
