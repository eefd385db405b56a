"""The symmetry of a model: its permutation classes, and why they are what they are."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import networkx as nx
import numpy as np

from fxrebasin.choices import FoundWith
from fxrebasin.errors import InputError
from fxrebasin.facts import Brief, counted
from fxrebasin.flow import Flow
from fxrebasin.groups import Gauge, Groups
from fxrebasin.kinds import GroupKind
from fxrebasin.layout import Layout, PermutationClass
from fxrebasin.permutation import Permutation
from fxrebasin.reliance import Relied
from fxrebasin.wording import listed

AxisName = tuple[str, int]


class PinReason(str):
    """Why an axis cannot move, in words; `kind` says the same without the place in the model.

    Args:
        kind: the reason.
        place: the operator that made it known, and its line.
    """

    kind: str

    def __new__(cls, kind: str, place: str = "") -> PinReason:
        """The text, with the place behind a colon."""
        found = super().__new__(cls, f"{kind}: {place}" if place else kind)
        found.kind = kind
        return found


_LISTED = 12
_LIMITS = 2


@dataclass(frozen=True, repr=False)
class Symmetry(Brief):
    """All permutations of a model's state that leave its function unchanged, as far as found.

    Attributes:
        classes: the free classes.
        layout: where their units sit in each state tensor.
        pins: state tensors' axes that no class moves, with the reason.
        unknown_operators: operators without a rule; they pinned every axis that they met.
        shapes: of all state tensors, by name.
        parameters: the names among them that are parameters.
        operators: how often each ATen operator was called.
        relies_on: constants of the state that was analysed, without which it may not hold.
        found_with: the outputs that stay as they are, and buffers that were declared to be state.
        groups: what acts on units beyond permutations, if that was asked for.

    Example:
        >>> import torch, fxrebasin
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        >>> symmetry = fxrebasin.analyze(net)
        >>> [(c.name, c.size, c.count) for c in symmetry.classes]
        [('0.weight[0]', 5, 1)]
    """

    classes: tuple[PermutationClass, ...]
    layout: Layout
    pins: Mapping[AxisName, PinReason]
    unknown_operators: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    operators: Mapping[str, int]
    _notes: tuple[str, ...]
    relies_on: Relied
    found_with: FoundWith
    _graph: Callable[[], nx.Graph[AxisName]] = field(repr=False, compare=False)
    _flow: Callable[[], Flow] = field(repr=False, compare=False)
    _about_passing: Callable[[], tuple[str, ...]] = field(repr=False, compare=False)
    groups: Groups | None = field(default=None, repr=False, compare=False)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What limits what was found, or puts it in doubt, in words.

        If outputs that are intermediate states pin something, what they cost is worked out here.
        """
        return (*self._notes, *self._about_passing())

    def with_unknown(self, names: tuple[str, ...], note: str) -> Symmetry:
        """The same with other names for the operators that had no rule, and a note on them."""
        return replace(self, unknown_operators=names, _notes=(*self._notes, note))

    def said_as(self, other: Symmetry, note: str) -> Symmetry:
        """The same with the choices and notes of another one, which was found with less.

        Args:
            other: of the same model.
            note: what it was that was found with more.
        """
        notes = (*other._notes, note)
        return replace(self, found_with=other.found_with, _notes=notes, _about_passing=lambda: ())

    def log10_order(self) -> float:
        """The decimal logarithm of the number of permutations of the group."""
        return log10_order(self.permuted)

    @property
    def permuted(self) -> tuple[PermutationClass, ...]:
        """The classes whose units may be permuted: all but those of complex pairs."""
        return tuple(c for c in self.classes if c.kind is not GroupKind.COMPLEX_PAIRS)

    def dimension(self) -> int:
        """The dimension of the continuous part of the group, gauges included.

        It is 0 unless `analyze` was asked for `symmetry="all"`.
        """
        return 0 if self.groups is None else self.groups.dimension

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """Numbers that may be chosen freely, since other parameters make up for them."""
        return () if self.groups is None else self.groups.gauges

    def coverage(self) -> float:
        """The share of parameter elements, in [0, 1], that lie on at least one free axis."""
        total = self._elements()
        covered = sum(self._covered(name) for name in self.parameters)
        return covered / total if total else 0.0

    def _facts(self) -> list[tuple[str, str]]:
        largest = sorted(self.classes, key=lambda c: -c.size * c.count)
        sizes = [f"{c.count} × {c.size}" if c.count > 1 else str(c.size) for c in largest]
        covered = f"{self.coverage():.2%} of {counted(self._elements(), 'parameter element')}"
        facts = [
            ("classes", counted(len(self.classes), "class", "classes")),
            ("units", listed(sizes, 8)),
            ("log10 of the order", f"{self.log10_order():.3f}"),
            ("coverage", covered),
            ("pinned", counted(len(self.pins), "axis", "axes")),
        ]
        if self.unknown_operators:
            facts.append(("no rule for", listed(self.unknown_operators, 5)))
        return [*facts, *(("note", note) for note in self._notes[:1])]

    def _elements(self) -> int:
        return sum(math.prod(self.shapes[name]) for name in self.parameters)

    def _covered(self, name: str) -> int:
        shape = self.shapes[name]
        fixed = math.prod(shape)
        for group in self.layout.get(name, ()):
            length = math.prod(shape[axis] for axis in group.axes)
            moving = np.unique(
                np.concatenate([piece.positions.reshape(-1) for piece in group.pieces])
            )
            fixed = fixed // length * (length - moving.size)
        return math.prod(shape) - fixed

    def identity(self) -> Permutation:
        """The permutation that moves nothing."""
        still = Permutation.identity(self.permuted, self.layout)
        return still.relying_on(self.relies_on, self.found_with)

    def random(self, seed: int) -> Permutation:
        """A permutation drawn uniformly from the group."""
        drawn = Permutation.random(self.permuted, self.layout, seed)
        return drawn.relying_on(self.relies_on, self.found_with)

    @cached_property
    def graph(self) -> nx.Graph[AxisName]:
        """Ties between axes.

        Nodes are `(tensor, axis)`, with the attribute `kind`: `"parameter"`, `"buffer"` or
        `"value"` (a tensor inside the model, named after the node that computes it). Edges have
        the attributes `operator`, `node` and `source` of the call that ties their ends, and
        `joins`: whether the call reads several tensors.
        """
        return self._graph()

    @cached_property
    def flow(self) -> Flow:
        """The data flow between modules, with the classes of the tensors; see `fxrebasin.flow`."""
        return self._flow()

    def explain(self, tensor: str, axis: int) -> str:
        """Say in words what moves an axis of a parameter or buffer, or why nothing does.

        Args:
            tensor: name of the parameter or buffer, as in the state dict.
            axis: its axis; negative numbers count from the end.

        Raises:
            InputError: there is no such tensor or axis.
        """
        axis = self._checked(tensor, axis)
        mine = [c for c in self.classes if (tensor, axis) in c.axes]
        title = f"{tensor}, axis {axis} ({self.shapes[tensor][axis]} elements)"
        if not mine:
            return (
                f"{title} is pinned.\n  {self.pins.get((tensor, axis), 'no reason was recorded')}"
            )
        return "\n".join([f"{title} is free."] + [self._explained(c, tensor, axis) for c in mine])

    def _checked(self, tensor: str, axis: int) -> int:
        if tensor not in self.shapes:
            close = difflib.get_close_matches(tensor, list(self.shapes), n=3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise InputError(f"the model has no parameter or buffer {tensor!r}{hint}")
        ndim = len(self.shapes[tensor])
        if not -ndim <= axis < ndim:
            raise InputError(f"{tensor} has shape {self.shapes[tensor]}: it has no axis {axis}")
        return axis % ndim

    def _explained(self, c: PermutationClass, tensor: str, axis: int) -> str:
        copies = (
            f", in {c.count} copies, one per index of {', '.join(c.within)}" if c.within else ""
        )
        lines = [f"  Class {c.name}: {c.size} units{copies}.", *self._about_group(c)]
        others = [f"{name}[{i}]" for name, i in c.axes if (name, i) != (tensor, axis)]
        if others:
            lines.append(f"    With it move: {listed(others, _LISTED)}.")
            lines += self._chain((tensor, axis), set(c.axes) - {(tensor, axis)})
        else:
            lines.append("    No other axis moves with it.")
        return "\n".join(lines)

    def _about_group(self, c: PermutationClass) -> list[str]:
        """The group that acts on a class, and what allows no larger one."""
        if self.groups is None:
            return []
        limits = self.groups.kinds[c.name].limits[:_LIMITS]
        return [
            f"    Group: {c.kind.value}.",
            *(f"      No larger one: {limit}." for limit in limits),
        ]

    def tying_operators(self, c: PermutationClass) -> Mapping[str, int]:
        """The operators that tie the axes of a class, with their number, most frequent first.

        Counted are calls that read several tensors, on shortest paths from the first axis of the
        class to its others.
        """
        start, *others = c.axes
        before = dict(nx.bfs_predecessors(self.graph, start))
        calls: dict[str, str] = {}
        seen = {start}
        for axis in others:
            while axis in before and axis not in seen:
                seen.add(axis)
                edge = self.graph.edges[axis, before[axis]]
                if edge["joins"]:
                    calls[edge["node"]] = edge["operator"]
                axis = before[axis]
        return dict(Counter(calls.values()).most_common())

    def _chain(self, start: AxisName, goals: set[AxisName]) -> list[str]:
        """The operators on a shortest path to another axis of the class."""
        if start not in self.graph:
            return []
        paths = nx.single_source_shortest_path(self.graph, start)
        found = [paths[goal] for goal in sorted(goals) if goal in paths]
        if not found:
            return []
        path = min(found, key=len)
        lines = [f"    Tied to {path[-1][0]}[{path[-1][1]}] by:"]
        for one, two in pairwise(path):
            edge = self.graph.edges[one, two]
            place = f", {edge['source']}" if edge["source"] else ""
            lines.append(
                f"      {one[0]}[{one[1]}] – {two[0]}[{two[1]}]: "
                f"{edge['operator']} (node {edge['node']}{place})"
            )
        return lines


def log10_order(classes: Iterable[PermutationClass]) -> float:
    """The decimal logarithm of the number of elements of the group of some classes."""
    return sum(c.count * math.lgamma(c.size + 1) / math.log(10) for c in classes)
