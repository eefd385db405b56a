"""What two graphs compute, compared from their outputs back, whoever wrote them.

Exporters differ in how they spell out sizes, in defaults that they write or leave out, in nodes
that only change shapes, and in whether a weight is stored transposed. None of that matters here:
values are followed back through it to the operators that compute something, and to the weights that
these read. What a file computes is proved by running it; this only says which tensors to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

from onnx import defs, helper

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.foreign import full_name
from fxrebasin.importers.onnx.graph import Graph, Step
from fxrebasin.importers.onnx.loading import OnnxSource

_PASSED_THROUGH = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Dropout"),
        *("Expand", "CastLike"),
    }
)
_ONE_KIND = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
_IN_ANY_ORDER = frozenset({"Add", "Mul", "Max", "Min", "Sum"})
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
    """An input of the file, or of a body that is in so many others, by its place."""

    place: int
    depth: int = 0


@dataclass(frozen=True)
class Fixed:
    """A number that does not depend on inputs or weights."""


@dataclass(frozen=True, eq=False)
class Made:
    """An output of a node of a graph, by its place."""

    step: Step
    place: int
    within: Skeleton


Value: TypeAlias = Stored | Given | Fixed | Made


class Skeleton:
    """One graph, followed from its outputs back.

    Args:
        source: the model.
        graph: a body; that of the model when left out.
        around: the graph that it is in.
    """

    def __init__(
        self, source: OnnxSource, graph: Graph | None = None, around: Skeleton | None = None
    ) -> None:
        self._source, self._around = source, around
        self._graph = graph = source.parsed.graph if graph is None else graph
        self._depth: int = 0 if around is None else around._depth + 1
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

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the graph is given."""
        return self._graph.inputs

    @property
    def is_body(self) -> bool:
        """Whether it is in another one."""
        return self._around is not None

    def body(self, graph: Graph) -> Skeleton:
        """A body of one of its nodes."""
        return Skeleton(self._source, graph, self)

    def _found_fixed(self) -> set[str]:
        state = set(self._source.state)
        found = {local for local, name in self._graph.tensors.items() if name not in state}
        for step in self._graph.steps:
            fixed = all(name in found or self._fixed_around(name) for name in step.used)
            if any(step.inputs) and fixed and not step.graphs:
                found.update(name for name in step.outputs if name)
        return found

    def _owner(self, name: str) -> Skeleton:
        """The graph that a name is of."""
        scope = self
        while not (name in scope._made or name in scope._inputs or name in scope._graph.tensors):
            if scope._around is None:
                break
            scope = scope._around
        return scope

    def _fixed_around(self, name: str) -> bool:
        inside = name in self._made or name in self._inputs or name in self._graph.tensors
        return not inside and self._around is not None and self._around.is_fixed(name)

    def is_fixed(self, name: str) -> bool:
        """Whether a value depends on nothing."""
        return name in self._fixed or self._fixed_around(name)

    def value(self, name: str) -> Value:
        """Where a value comes from."""
        order: tuple[int, ...] | None = None
        scope = self._owner(name)
        while name in scope._made and name not in scope._fixed:
            step, place = scope._made[name]
            if step.kind not in _PASSED_THROUGH or place or step.domain:
                return Made(step, place, scope)
            name = step.inputs[0]
            scope = scope._owner(name)
            if step.kind == "Transpose" and name in scope._graph.tensors:
                ndim = self._source.parsed.tensors[scope._graph.tensors[name]].ndim
                order = tuple(step.attributes.get("perm") or range(ndim)[::-1])
        return scope._end(name, order)

    def _end(self, name: str, order: tuple[int, ...] | None) -> Value:
        if name in self._inputs:
            return Given(self._inputs[name], self._depth)
        if name in self._graph.tensors and name not in self._fixed:
            return Stored(self._graph.tensors[name], order)
        return Fixed()

    def operands(self, step: Step) -> list[Value | None]:
        """What a node computes with; None for what is left out, and for plain numbers, which
        other opsets have as attributes.
        """
        reads = step.operator.reads if step.operator is not None and not step.graphs else ()
        found = [
            self.value(name) if name and at not in reads and not self.is_fixed(name) else None
            for at, name in enumerate(step.inputs)
        ]
        if step.kind in _IN_ANY_ORDER:
            return sorted(found, key=lambda item: item is None or isinstance(item, Stored))
        return found

    def attributes(self, step: Step) -> dict[str, Any]:
        """Attributes of a node, those included that have a default."""
        version = self._source.parsed.opsets.get(step.domain, 1)
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
    pending = [*_results("the graph", Skeleton(own), Skeleton(other))][::-1]
    seen: set[tuple[str, int, str, int]] = set()
    while pending:
        place, one, two = pending.pop()
        if isinstance(one, Stored) and isinstance(two, Stored):
            pair(place, one.name, two.name, _from(two.order, one.order))
        elif isinstance(one, Made) and isinstance(two, Made):
            key = (one.step.name, one.place, two.step.name, two.place)
            if key not in seen:
                seen.add(key)
                pending += reversed([*_compared(one, two)])
        elif type(one) is not type(two) or one != two:
            raise ArchitectureMismatchError(
                f"{place} is made of {_spoken(one)}, and of {_spoken(two)} in the reference"
            )


_Meeting: TypeAlias = tuple[str, Value, Value]
"""Two values that have to be the same, and who reads the first."""


def _results(what: str, mine: Skeleton, theirs: Skeleton) -> Iterator[_Meeting]:
    """What two graphs return."""
    for kind, one, two in (
        ("inputs", mine.inputs, theirs.inputs),
        ("outputs", mine.outputs, theirs.outputs),
    ):
        if kind == "inputs" and not mine.is_body:
            continue  # inputs that nothing reads do not matter
        if len(one) != len(two):
            raise ArchitectureMismatchError(
                f"{what} has {len(one)} {kind}, and {len(two)} in the reference"
            )
    for first, second in zip(mine.outputs, theirs.outputs, strict=True):
        yield f"the output {first!r} of {what}", mine.value(first), theirs.value(second)


def _from(order: tuple[int, ...] | None, wanted: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How axes have to be transposed that are read in one order, to be as others are stored."""
    if order == wanted:
        return None
    inverse = None if wanted is None else sorted(range(len(wanted)), key=wanted.__getitem__)
    if inverse is None or order is None:
        return order if inverse is None else tuple(inverse)
    return tuple(order[at] for at in inverse)


def _compared(one: Made, two: Made) -> Iterator[_Meeting]:
    """Operands of two nodes that have to do the same."""
    first, second = one.step, two.step
    place = f"{first.kind} {first.name!r}"
    if (first.kind, second.kind) == ("Gemm", "Gemm") or first.kind != second.kind:
        layer, other = linear(one), linear(two)
        if layer is not None and other is not None:
            yield from _operands(place, layer, other)
            return
    kinds = [(step.domain, _ONE_KIND.get(step.kind, step.kind)) for step in (first, second)]
    if kinds[0] != kinds[1] or one.place != two.place:
        raise ArchitectureMismatchError(
            f"{place} is {second.kind} {second.name!r} in the reference"
        )
    mine, theirs = one.within, two.within
    if first.kind == second.kind:
        for name, a, b in _both(mine.attributes(first), theirs.attributes(second)):
            raise ArchitectureMismatchError(
                f"{place} has {name} = {a!r}, and {b!r} in the reference"
            )
    yield from _operands(place, mine.operands(first), theirs.operands(second))
    if first.graphs.keys() != second.graphs.keys():
        raise ArchitectureMismatchError(f"{place} has other bodies in the reference")
    for name, graph in first.graphs.items():
        inner = mine.body(graph), theirs.body(second.graphs[name])
        yield from _results(f"{name} of {place}", *inner)


def _operands(
    place: str, mine: Sequence[Value | None], theirs: Sequence[Value | None]
) -> Iterator[_Meeting]:
    for a, b in zip_longest(mine, theirs):
        if (a is None) != (b is None):
            raise ArchitectureMismatchError(f"{place} has other inputs in the reference")
        if a is not None and b is not None:
            yield place, a, b


def linear(made: Made) -> list[Value] | None:
    """A value, the weight that it is multiplied by, and what is added; None if it is no such thing.

    Some exporters write one node, and others one for each step.
    """
    step, within = made.step, made.within
    if step.kind == "Add" and not step.domain:
        values = [within.value(name) for name in step.inputs]
        for product, bias in (values, values[::-1]):
            if isinstance(product, Made) and isinstance(bias, Stored | Fixed):
                found = linear(product) if product.step.kind == "MatMul" else None
                return None if found is None else [*found, bias]
        return None
    if step.kind not in ("Gemm", "MatMul") or step.domain:
        return None
    own = within.attributes(step)
    if own.get("alpha", 1) != 1 or own.get("beta", 1) != 1 or own.get("transA"):
        return None
    value, weight, *bias_values = [within.value(name) for name in step.inputs if name]
    if not isinstance(weight, Stored):
        return None
    if own.get("transB"):
        order = weight.order or (0, 1)
        weight = Stored(weight.name, None if order == (1, 0) else (1, 0))
    return [value, weight, *bias_values]


def _both(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Attributes that both kinds of node have, and that differ."""
    for name in one.keys() & two.keys():
        a, b = one[name], two[name]
        if name in _LEFT_OUT and (a is None) != (b is None):
            length = len(a or b)
            a, b = (item or [_LEFT_OUT[name]] * length for item in (a, b))
        if a is not None and b is not None and a != b:
            yield name, a, b


def _spoken(value: Value) -> str:
    if isinstance(value, Stored):
        return f"the weight {value.name!r}"
    if isinstance(value, Made):
        return f"{full_name(value.step.domain, value.step.kind)} {value.step.name!r}"
    return f"input {value.place}" if isinstance(value, Given) else "numbers"
