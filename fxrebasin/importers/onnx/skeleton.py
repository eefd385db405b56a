"""What two graphs compute, compared from their outputs back, whoever wrote them.

Exporters differ in how they spell out sizes, in defaults that they write or leave out, in nodes
that only change shapes, and in whether a weight is stored transposed. None of that matters here:
values are followed back through it to the operators that compute something, and to the weights that
these read. What a file computes is proved by running it; this only says which tensors to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

from onnx import defs, helper

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.foreign import full_name
from fxrebasin.importers.onnx.graph import Step
from fxrebasin.importers.onnx.loading import OnnxSource

_PASSED_THROUGH = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Dropout"),
        *("Expand", "CastLike"),
    }
)
_ONE_KIND = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
_IN_ANY_ORDER = frozenset({"Add", "Mul", "Max", "Min", "Sum"})
_OF_SHAPES = frozenset({"Shape", "Size"})
_LEFT_OUT: Mapping[str, int] = {"pads": 0, "output_padding": 0, "strides": 1, "dilations": 1}
"""What lists of numbers hold where they are left out."""

_Pairs: TypeAlias = Callable[[str, str, str, tuple[int, ...] | None], None]


@dataclass(frozen=True)
class Stored:
    """A tensor of the file.

    Args:
        name: of it in the whole model.
        order: how its axes are transposed; None if they are not.
    """

    name: str
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Given:
    """An input of the file, by its place."""

    place: int


@dataclass(frozen=True)
class Fixed:
    """A number that does not depend on inputs or weights."""


@dataclass(frozen=True, eq=False)
class Made:
    """An output of a node, by its place."""

    step: Step
    place: int


_Value: TypeAlias = Stored | Given | Fixed | Made


class Skeleton:
    """One graph, followed from its outputs back.

    Args:
        source: the model.
    """

    def __init__(self, source: OnnxSource) -> None:
        graph = source.parsed.graph
        self._graph, self._state, self._opsets = graph, set(source.state), source.parsed.opsets
        self._tensors = source.parsed.tensors
        self._made = {
            name: (step, place)
            for step in graph.steps
            for place, name in enumerate(step.outputs)
            if name
        }
        self._inputs = {name: place for place, name in enumerate(graph.inputs)}
        self._fixed = self._found_fixed()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the graph returns."""
        return self._graph.outputs

    def _found_fixed(self) -> set[str]:
        tensors = self._graph.tensors
        found = {local for local, name in tensors.items() if name not in self._state}
        for step in self._graph.steps:
            read = [name for name in step.inputs if name]
            if step.kind in _OF_SHAPES or (read and found.issuperset(read)):
                found.update(name for name in step.outputs if name)
        return found

    def value(self, name: str) -> _Value:
        """Where a value comes from."""
        order: tuple[int, ...] | None = None
        while name in self._made and name not in self._fixed:
            step, place = self._made[name]
            if step.kind not in _PASSED_THROUGH or place or step.domain:
                return Made(step, place)
            name = step.inputs[0]
            if step.kind == "Transpose" and name in self._graph.tensors:
                ndim = self._tensors[self._graph.tensors[name]].ndim
                order = tuple(step.attributes.get("perm") or range(ndim)[::-1])
        return self._end(name, order)

    def _end(self, name: str, order: tuple[int, ...] | None) -> _Value:
        if name in self._inputs:
            return Given(self._inputs[name])
        if name in self._graph.tensors and name not in self._fixed:
            return Stored(self._graph.tensors[name], order)
        return Fixed()

    def operands(self, step: Step) -> list[_Value | None]:
        """What a node computes with; None for what is left out, and for plain numbers, which
        other opsets have as attributes.
        """
        reads = step.operator.reads if step.operator is not None else ()
        found = [
            self.value(name) if name and at not in reads and name not in self._fixed else None
            for at, name in enumerate(step.inputs)
        ]
        if step.kind in _IN_ANY_ORDER:
            return sorted(found, key=lambda item: item is None or isinstance(item, Stored))
        return found

    def attributes(self, step: Step) -> dict[str, Any]:
        """Attributes of a node, those included that have a default."""
        version = self._opsets.get(step.domain, 1)
        found: dict[str, Any] = {}
        if defs.has(step.kind, max_inclusive_version=version, domain=step.domain):
            schema = defs.get_schema(step.kind, version, step.domain)
            for name, item in schema.attributes.items():
                default = item.default_value
                found[name] = helper.get_attribute_value(default) if default.name else None
        found = {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}
        return {**found, **step.attributes}


def compare(own: OnnxSource, other: OnnxSource, pair: _Pairs) -> None:
    """Go through two graphs, and report weights that are read at the same places.

    Args:
        own: a model.
        other: another one.
        pair: is told where two stored tensors meet, of their names, and how the axes of the second
            have to be transposed; it may raise.

    Raises:
        ArchitectureMismatchError: they compute something else.
    """
    mine, theirs = Skeleton(own), Skeleton(other)
    if len(mine.outputs) != len(theirs.outputs):
        raise ArchitectureMismatchError(
            f"{len(mine.outputs)} outputs instead of {len(theirs.outputs)}"
        )
    pending: list[tuple[str, _Value, _Value]] = [
        (f"the output {one!r}", mine.value(one), theirs.value(two))
        for one, two in reversed([*zip(mine.outputs, theirs.outputs, strict=True)])
    ]
    seen: set[tuple[str, int, str, int]] = set()
    while pending:
        place, one, two = pending.pop()
        if isinstance(one, Stored) and isinstance(two, Stored):
            pair(place, one.name, two.name, _from(two.order, one.order))
        elif isinstance(one, Made) and isinstance(two, Made):
            key = (one.step.name, one.place, two.step.name, two.place)
            if key not in seen:
                seen.add(key)
                pending += reversed([*_compared(mine, one, theirs, two)])
        elif type(one) is not type(two) or one != two:
            raise ArchitectureMismatchError(
                f"{place} is made of {_spoken(one)}, and of {_spoken(two)} in the reference"
            )


def _from(order: tuple[int, ...] | None, wanted: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How axes have to be transposed that are read in one order, to be as others are stored."""
    if order == wanted:
        return None
    inverse = None if wanted is None else sorted(range(len(wanted)), key=wanted.__getitem__)
    if inverse is None or order is None:
        return order if inverse is None else tuple(inverse)
    return tuple(order[at] for at in inverse)


def _compared(
    mine: Skeleton, one: Made, theirs: Skeleton, two: Made
) -> Iterator[tuple[str, _Value, _Value]]:
    """Operands of two nodes that have to do the same."""
    first, second = one.step, two.step
    place = f"{first.kind} {first.name!r}"
    kinds = [(step.domain, _ONE_KIND.get(step.kind, step.kind)) for step in (first, second)]
    if kinds[0] != kinds[1] or one.place != two.place:
        raise ArchitectureMismatchError(
            f"{place} is {second.kind} {second.name!r} in the reference"
        )
    if first.graphs or second.graphs:
        raise ArchitectureMismatchError(f"{place} has bodies, which only one exporter writes alike")
    if first.kind == second.kind:
        for name, a, b in _both(mine.attributes(first), theirs.attributes(second)):
            raise ArchitectureMismatchError(
                f"{place} has {name} = {a!r}, and {b!r} in the reference"
            )
    operands = zip_longest(mine.operands(first), theirs.operands(second))
    for a, b in operands:
        if (a is None) != (b is None):
            raise ArchitectureMismatchError(f"{place} has other inputs in the reference")
        if a is not None and b is not None:
            yield place, a, b


def _both(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Attributes that both kinds of node have, and that differ."""
    for name in one.keys() & two.keys():
        a, b = one[name], two[name]
        if name in _LEFT_OUT and (a is None) != (b is None):
            length = len(a or b)
            a, b = (item or [_LEFT_OUT[name]] * length for item in (a, b))
        if a is not None and b is not None and a != b:
            yield name, a, b


def _spoken(value: _Value) -> str:
    if isinstance(value, Stored):
        return f"the weight {value.name!r}"
    if isinstance(value, Made):
        return f"{full_name(value.step.domain, value.step.kind)} {value.step.name!r}"
    return f"input {value.place}" if isinstance(value, Given) else "numbers"
