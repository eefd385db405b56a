"""Follow one class through the operators of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxrebasin.passes.kinds.analysis import Analysis
from fxrebasin.passes.kinds.functional import FunctionalGraph
from fxrebasin.passes.kinds.marks import (
    Mark,
    Shape,
    Value,
    common,
    complete,
    covered,
    distinct,
    overlap,
    raised,
    same_units,
)
from fxrebasin.passes.rules.pointwise import pointwise
from fxrebasin.passes.rules.registry import RULES
from fxrebasin.passes.rules.scaling import scaling_of
from fxrebasin.running.operators import bind

_NAME, _SHAPE, _ARGUMENTS = "name of the operator", "its shape", "its arguments"
"""Where a node keeps what many walks ask for."""

Handler: TypeAlias = "Callable[[Step], list[Value]]"

HANDLERS: dict[str, Handler] = {}
"""By the operator's name, without its overload and without `_copy`."""


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register what is done at an operator."""

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


def name_of(node: fx.Node) -> str:
    """The name of a node's operator, without its overload; that of a view if it is a copy of one.

    Of other operators the end belongs to the name: `index_copy` is not `index`.
    """
    found: str | None = node.meta.get(_NAME)
    if found is None:
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            found = target._schema.name.removeprefix("aten::")
            found = found.removesuffix("_copy") if torch.Tag.view_copy in target.tags else found
        else:
            found = str(target)
        node.meta[_NAME] = found
    return found


def shape_of(node: fx.Node) -> Shape:
    """The shape of the tensor that a node makes; of the first one if it makes several."""
    found: Shape | None = node.meta.get(_SHAPE)
    if found is None:
        made = node.meta["val"]
        made = made[0] if isinstance(made, list | tuple) else made
        found = node.meta[_SHAPE] = tuple(int(size) for size in made.shape)
    return found


def bound(node: fx.Node) -> Mapping[str, Any]:
    """All arguments of a node's operator by name; tensors are nodes."""
    found: Mapping[str, Any] | None = node.meta.get(_ARGUMENTS)
    if found is None:
        found = node.meta[_ARGUMENTS] = bind(node.target, node.args, node.kwargs)
    return found


@dataclass(frozen=True)
class At:
    """An operator with its place in the model, which is put into words only where it is told."""

    graph: FunctionalGraph
    node: fx.Node

    def __str__(self) -> str:
        return f"{self.node.target}{self.graph.places.get(self.node, '')}"


@dataclass
class Walk:
    """One class on its way through a graph.

    Attributes:
        graph: of the model.
        analysis: what is asked.
        values: what is known of each node's tensor; of nodes that are not here, nothing moves.
        met: the names of the operators on the way.
    """

    graph: FunctionalGraph
    analysis: Analysis
    values: dict[fx.Node, list[Value]] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Go through all operators that the class reaches.

        Raises:
            LimitError: an operator does not commute with the group; the message names it.
        """
        reached = self.graph.downstream([node for node, found in self.values.items() if any(found)])
        for node in reached:
            self.analysis.node = node
            self.analysis.at = At(self.graph, node)
            self.values[node] = found = self._step(node)
            if any(found):
                reached.go_on(node)
        self.analysis.at = "the model's output"
        for node in self.graph.outputs:
            for mark in self.values.get(node, [()])[0]:
                self.analysis.kept(mark)

    def _step(self, node: fx.Node) -> list[Value]:
        if getattr(node.target, "__name__", "") == "getitem":
            found, index = self.values[node.all_input_nodes[0]], int(str(node.args[1]))
            return [found[index] if index < len(found) else ()]
        step = Step(self, node, bound(node))
        name = name_of(node)
        self.met.add(name)
        if name in HANDLERS:
            return HANDLERS[name](step)
        target: Any = node.target
        if RULES.get(target) is not pointwise:
            return step.give_up()
        scaling = scaling_of(name, step.args) if len(step.operands()) == 1 else None
        if scaling is None:
            return step.stay()
        return [step.each(lambda mark: self.analysis.scaled(mark, scaling))]


@dataclass
class Step:
    """One operator on the way.

    Attributes:
        walk: the way.
        node: of the operator.
        args: all its arguments by name; tensors are nodes.
    """

    walk: Walk
    node: fx.Node
    args: Mapping[str, Any]

    @property
    def analysis(self) -> Analysis:
        """What is asked."""
        return self.walk.analysis

    @property
    def shape(self) -> Shape:
        """Of the result."""
        return shape_of(self.node)

    def operands(self) -> list[fx.Node]:
        """All tensor arguments."""
        return list(self.node.all_input_nodes)

    def value(self, item: Any) -> Value:
        """What is known of an argument; of numbers and constants, nothing moves."""
        found = self.walk.values.get(item) if isinstance(item, fx.Node) else None
        return found[0] if found else ()

    def each(self, form: Callable[[Mark], Any], name: str = "self") -> Value:
        """The marks of an argument, with other forms."""
        return tuple(Mark(mark.units, form(mark)) for mark in self.value(self.args[name]))

    def move(self, name: str, units: Callable[[Tensor], Tensor]) -> Value:
        """The marks of an argument, at other places."""
        found = (mark.moved(units) for mark in self.value(self.args[name]))
        return tuple(mark for mark in found if mark is not None)

    def give_up(self) -> list[Value]:
        """Nothing is known of the operator but that units may be permuted."""
        for item in self.operands():
            for mark in self.value(item):
                self.analysis.kept(mark)
        return [()]

    def stay(self) -> list[Value]:
        """Units may be permuted and nothing else, and are where they were, element by element."""
        rank = len(self.shape)
        found: list[Mark] = []
        for item in self.operands():
            for mark in self.spread(item, rank):
                form = self.analysis.stays(mark)
                if not any(same_units(mark.units, other.units) for other in found):
                    found.append(Mark(mark.units, form))
        return [tuple(found)]

    def give_up_marks(self, marks: Sequence[Mark]) -> None:
        """Some units stay but for being permuted."""
        for mark in marks:
            self.analysis.kept(mark)

    # Element by element -----------------------------------------------------------------------

    def spread(self, item: Any, rank: int) -> Value:
        """The marks of an argument that is broadcast."""
        found = (mark.moved(lambda units: raised(units, rank)) for mark in self.value(item))
        return tuple(mark for mark in found if mark is not None)

    def constant_along(self, item: Any, mark: Mark) -> bool:
        """Whether an argument is the same for all units of a copy."""
        if not isinstance(item, fx.Node):
            return True
        own = shape_of(item)
        sizes = [1] * (len(self.shape) - len(own)) + list(own)
        inner = mark.inner_axes(self.analysis.size)
        return all(sizes[axis] == 1 for axis in inner)

    def meet(
        self,
        one: Any,
        two: Any,
        both: Callable[[Mark, Mark], Any],
        alone: Callable[[Mark], Any],
    ) -> Value:
        """The result of an operator on two tensors, element by element.

        Args:
            one: a tensor or a number.
            two: another.
            both: the form where both have the same units.
            alone: the form where only one has units, and the other is the same for all of these.
        """
        rank = len(self.shape)
        left, right = self.spread(one, rank), self.spread(two, rank)
        together = self.analysis.collected(left, right, name_of(self.node))
        if together is not None:
            return together
        if _alike(left, right):
            return (Mark(left[0].units, both(left[0], right[0])),)
        found = [Mark(units, both(mark, other)) for mark, other, units in self.pairs(left, right)]
        for marks, others, item in ((left, right, two), (right, left, one)):
            for mark in marks:
                if not any(overlap(mark.units, other.units) for other in others):
                    found += self._alone(mark, item, alone)
        return distinct(found)

    def pairs(self, left: Value, right: Value) -> Iterator[tuple[Mark, Mark, Tensor]]:
        """Marks of two tensors that meet, and the units that both have; odd ones are given up."""
        if _alike(left, right):
            yield left[0], right[0], left[0].units
            return
        for mark in left:
            if covered(mark.units, [other.units for other in right]):
                for other in right:
                    if overlap(mark.units, other.units):
                        yield mark, other, common(mark.units, other.units)
            elif met := [other for other in right if overlap(mark.units, other.units)]:
                self.give_up_marks([mark, *met])
        for other in right:
            if not covered(other.units, [mark.units for mark in left]) and any(
                overlap(other.units, mark.units) for mark in left
            ):
                self.give_up_marks([other])

    def _alone(self, mark: Mark, other: Any, form: Callable[[Mark], Any]) -> list[Mark]:
        if self.constant_along(other, mark):
            return [Mark(mark.units, form(mark))]
        uneven = self.analysis.uneven(mark, other, name_of(self.node))
        return [] if uneven is None else [Mark(mark.units, uneven)]

    # Sums -------------------------------------------------------------------------------------

    def reduce(
        self, name: str, dims: Sequence[int] | None, keepdim: bool, form: Callable[[Mark], Any]
    ) -> Value:
        """What is left of an argument after a sum, or the like, over some axes.

        Args:
            name: of the argument.
            dims: the axes; None for all.
            keepdim: whether they stay, of size 1.
            form: of units that are not summed over.
        """
        rank = len(shape_of(self.args[name]))
        axes = {dim % rank for dim in dims} if dims else set(range(rank))
        found = []
        for mark in self.value(self.args[name]):
            inner = set(mark.inner_axes(self.analysis.size))
            if not inner & axes:
                units = mark.units
                for axis in sorted(axes, reverse=True):
                    units = units.narrow(axis, 0, 1) if units.shape[axis] == 1 else units
                    if units.shape[axis] > 1:  # copies are summed up
                        self.analysis.kept(mark)
                        break
                    units = units if keepdim else units.squeeze(axis)
                else:
                    found.append(Mark(units, form(mark)))
            elif complete(mark.units, sorted(axes), self.analysis.size):
                self.analysis.summed(mark)
            else:
                self.analysis.kept(mark)
        return tuple(found)

    def contract(self, one: Any, two: Any, pattern: tuple[str, str, str]) -> Value:
        """The product of two tensors, summed over the axes whose letters the result lacks.

        Args:
            one: a tensor.
            two: another.
            pattern: letters for the axes of both and of the result.
        """
        left, right = ((self.value(item), shape_of(item)) for item in (one, two))
        return self.contract_values(left, right, pattern)

    def contract_values(
        self, one: tuple[Value, Shape], two: tuple[Value, Shape], pattern: tuple[str, str, str]
    ) -> Value:
        """As `contract`, of what is known of two tensors, with their shapes."""
        left, right, result = pattern
        letters = sorted({*left, *right})
        first, second = (
            [_on_letters(mark, own, letters) for mark in value]
            for (value, _), own in ((one, left), (two, right))
        )
        summed = [k for k, letter in enumerate(letters) if letter not in result]
        if self.analysis.contracted_whole(tuple(first), tuple(second), summed):
            return ()
        found: list[Mark] = []
        for mark, other, units in self.pairs(tuple(first), tuple(second)):
            found += self._met(mark, other, units, summed)
        for marks, others, item, own in (
            (first, second, two, right),
            (second, first, one, left),
        ):
            sizes = dict(zip(own, item[1], strict=True))
            across = [sizes.get(letter, 1) for letter in letters]
            for mark in marks:
                if not any(overlap(mark.units, other.units) for other in others):
                    found += self._carried(mark, summed, across)
        order = [letters.index(letter) for letter in result]
        return distinct(
            Mark(
                mark.units.permute(*order, *summed).reshape([mark.units.shape[k] for k in order]),
                mark.form,
            )
            for mark in found
        )

    def _met(self, mark: Mark, other: Mark, units: Tensor, summed: Sequence[int]) -> list[Mark]:
        """What becomes of units that both tensors of a product have."""
        over = [axis for axis in mark.axes() if axis in summed]
        if not over:
            return [Mark(units, self.analysis.multiplied(mark, other))]
        inner = set(mark.inner_axes(self.analysis.size))
        if inner <= set(over) and complete(units, over, self.analysis.size):
            self.analysis.contracted(mark, other)
        else:
            self.give_up_marks([mark, other])
        return []

    def _carried(self, mark: Mark, summed: Sequence[int], across: Sequence[int]) -> list[Mark]:
        """What becomes of units that one tensor of a product has.

        Args:
            mark: the units.
            summed: axes that are summed over.
            across: the sizes of the other tensor along all axes.
        """
        inner = mark.inner_axes(self.analysis.size)
        if any(axis in summed for axis in mark.axes()) or any(across[k] > 1 for k in inner):
            self.give_up_marks([mark])
            return []
        return [Mark(mark.units, self.analysis.carried(mark))]


def _alike(left: Value, right: Value) -> bool:
    """Whether two tensors have the same units at the same positions, as they mostly have."""
    if len(left) != 1 or len(right) != 1:
        return False
    units = left[0].units
    return units.numel() > 1 and same_units(units, right[0].units)


def _on_letters(mark: Mark, own: str, letters: Sequence[str]) -> Mark:
    """A mark with an axis for each letter."""
    order = [own.index(letter) for letter in letters if letter in own]

    def placed(units: Tensor) -> Tensor:
        units = units.permute(order)
        for position, letter in enumerate(letters):
            if letter not in own:
                units = units.unsqueeze(position)
        return units

    return mark.moved(placed) or mark
