"""Which tensor of one file is which of another: by where the graphs read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.graph import Graph, Parsed, Step
from fxrebasin.importers.onnx.joining import joined
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.partner import Correspondence, Partner
from fxrebasin.importers.onnx.ports import with_ports_of
from fxrebasin.importers.onnx.roles import read_as_numbers, weights_of
from fxrebasin.importers.onnx.skeleton import compare
from fxrebasin.importers.onnx.tensors import same_bits

_WHAT_NOW = (
    "Both files have to be of one architecture. How exporters spell it matters little, but what "
    "they compute in advance may: export both with the same options."
)


def correspondence(
    source: OnnxSource, reference: OnnxSource, ignored: Collection[str] = ()
) -> Correspondence:
    """For each tensor of a file, the tensor of a reference that its graph reads at its place.

    Nodes go together one after the other, which needs no names; where the order differs, those
    that make the same names do; and where exporters differ, those that compute the same.

    Args:
        source: a model.
        reference: another one.
        ignored: names of tensors of the source that may have other shapes there.

    Raises:
        ArchitectureMismatchError: the graphs differ; the first difference is named.
    """
    reference = with_ports_of(reference, source)
    faults = []
    for go in (_by_position, _by_names, _by_skeleton):
        found = _Pairing(source, reference, ignored)
        try:
            go(found)
        except ArchitectureMismatchError as error:
            faults.append(str(error))
            continue
        if go is _by_skeleton:
            return Correspondence(found.partners())
        numbers = found.other_numbers()
        alike = not numbers and _opsets(source) == _opsets(reference)
        return Correspondence(found.partners(), alike=alike, numbers=numbers)
    try:
        return joined(source, reference, ignored)
    except ArchitectureMismatchError as error:
        raise ArchitectureMismatchError(
            f"{reference.label} is no reference for {source.label}: {faults[-1]}\n"
            f"Compared by what reads weights: {error}\n{_WHAT_NOW}"
        ) from error


def _opsets(source: OnnxSource) -> dict[str, int | None]:
    """Versions of what the nodes of a graph are of."""
    parsed = source.parsed
    return {step.domain: parsed.opsets.get(step.domain) for _, step in parsed.graph.all_steps()}


def _sizes(parsed: Parsed) -> list[list[int]]:
    """Of the inputs of a graph, nothing for those that are open."""
    kinds = [kind.tensor_type.shape.dim for kind in parsed.types.values()]
    return [[dim.dim_value for dim in dims] for dims in kinds]


class _Values:
    """Names of values that nodes make, in both graphs.

    Attributes:
        partners: theirs by ours.
        theirs: all of theirs.
    """

    def __init__(self, around: _Values | None = None) -> None:
        self.partners: dict[str, str] = {} if around is None else dict(around.partners)
        self.theirs: set[str] = set() if around is None else set(around.theirs)

    def add(self, own: Sequence[str], other: Sequence[str]) -> None:
        """More of them."""
        self.partners.update(zip(own, other, strict=True))
        self.theirs.update(other)


class _Pairing:
    """Names of two graphs that mean the same, as they are met."""

    def __init__(self, source: OnnxSource, reference: OnnxSource, ignored: Collection[str]) -> None:
        self._source, self._reference, self._ignored = source, reference, ignored
        self._partners: dict[str, Partner] = {}
        self._taken: dict[str, str] = {}

    def partners(self) -> dict[str, Partner]:
        """What was found."""
        return self._partners

    def other_numbers(self) -> tuple[str, ...]:
        """Tensors that are no weights, and hold something else in the reference.

        Where the files were written for inputs of other sizes, sizes may differ.
        """
        own, other = self._source.parsed, self._reference.parsed
        apart = set(weights_of(own))
        if _sizes(own) != _sizes(other):
            numbers = read_as_numbers(own.graph)
            apart |= {name for name in numbers if not own.tensors[name].is_floating_point()}
        return tuple(
            mine
            for mine, theirs in self._partners.items()
            if mine not in apart and not _same(own.tensors[mine], other.tensors[theirs.name])
        )

    def in_order(self, by_name: bool) -> None:
        """Go through the graphs node by node.

        Args:
            by_name: nodes go together by the names of their outputs.
        """
        self.graphs(self._source.parsed.graph, self._reference.parsed.graph, by_name)

    def from_the_end(self) -> None:
        """Go through what the graphs compute, from their outputs back."""
        compare(self._source, self._reference, self._pair)

    def graphs(
        self,
        own: Graph,
        other: Graph,
        by_name: bool,
        known: _Values | None = None,
        outer: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    ) -> None:
        """Go through two graphs.

        Args:
            own: of the source.
            other: of the reference.
            by_name: nodes go together by the names of their outputs.
            known: names of values outside, with their partners.
            outer: stored tensors of the graphs around, of both sides.
        """
        values = _Values(known)
        stored = ({**outer[0], **own.tensors}, {**outer[1], **other.tensors})
        self._ports("inputs", own.inputs, other.inputs)
        values.add(own.inputs, other.inputs)
        for one, two in self._steps(own.steps, other.steps, by_name):
            self._compare(one, two)
            for mine, theirs in zip(one.inputs, two.inputs, strict=True):
                self._read(one, mine, theirs, values, stored)
            for name, body in one.graphs.items():
                self.graphs(body, two.graphs[name], by_name, values, stored)
            values.add(one.outputs, two.outputs)
        self._ports("outputs", own.outputs, other.outputs)
        for mine, theirs in zip(own.outputs, other.outputs, strict=True):
            self._same_value("an output of the graph", mine, theirs, values, stored)

    def _ports(self, what: str, own: Sequence[str], other: Sequence[str]) -> None:
        if len(own) != len(other):
            raise ArchitectureMismatchError(f"{len(own)} {what} instead of {len(other)}")

    def _steps(
        self, own: Sequence[Step], other: Sequence[Step], by_name: bool
    ) -> list[tuple[Step, Step]]:
        if not by_name:
            for one, two in zip(own, other, strict=False):
                if (one.domain, one.kind) != (two.domain, two.kind):
                    raise ArchitectureMismatchError(
                        f"{one.kind} {one.name!r} is where the reference has "
                        f"{two.kind} {two.name!r}"
                    )
        if len(own) != len(other):
            raise ArchitectureMismatchError(f"{len(own)} nodes, and the reference has {len(other)}")
        if not by_name:
            return list(zip(own, other, strict=True))
        made = {step.outputs: step for step in other}
        for step in own:
            if step.outputs not in made:
                raise ArchitectureMismatchError(
                    f"nothing in the reference makes {', '.join(step.outputs)}"
                )
        return [(step, made[step.outputs]) for step in own]

    def _compare(self, one: Step, two: Step) -> None:
        """Refuse nodes that do not do the same."""
        place = f"{one.kind} {one.name!r}"
        if (one.domain, one.kind) != (two.domain, two.kind):
            raise ArchitectureMismatchError(f"{place} is {two.kind} in the reference")
        for what in ("inputs", "outputs"):
            mine, theirs = getattr(one, what), getattr(two, what)
            if [not name for name in mine] != [not name for name in theirs]:
                raise ArchitectureMismatchError(f"{place} has other {what} in the reference")
        if one.graphs.keys() != two.graphs.keys():
            raise ArchitectureMismatchError(f"{place} has other bodies in the reference")
        for name in {*one.attributes, *two.attributes}:
            mine, theirs = one.attributes.get(name), two.attributes.get(name)
            if not _equal(mine, theirs):
                raise ArchitectureMismatchError(
                    f"{place} has {name} = {_shown(mine)}, and {_shown(theirs)} in the reference"
                )

    def _read(
        self,
        step: Step,
        mine: str,
        theirs: str,
        values: _Values,
        stored: tuple[Mapping[str, str], Mapping[str, str]],
    ) -> None:
        if mine:
            self._same_value(f"{step.kind} {step.name!r}", mine, theirs, values, stored)

    def _same_value(
        self,
        place: str,
        mine: str,
        theirs: str,
        values: _Values,
        stored: tuple[Mapping[str, str], Mapping[str, str]],
    ) -> None:
        """Two names are of the same value, or of tensors that are at the same place."""
        if mine in values.partners or theirs in values.theirs:
            if values.partners.get(mine) != theirs:
                raise ArchitectureMismatchError(
                    f"{place} reads {mine!r}, and {theirs!r} in the reference, "
                    "which something else makes"
                )
            return
        if mine not in stored[0] or theirs not in stored[1]:
            raise ArchitectureMismatchError(
                f"{place} reads {mine!r}, and {theirs!r} in the reference; "
                "one is stored, the other is not"
            )
        self._pair(place, stored[0][mine], stored[1][theirs])

    def _pair(
        self, place: str, mine: str, theirs: str, order: tuple[int, ...] | None = None
    ) -> None:
        own, other = self._source.parsed.tensors[mine], self._reference.parsed.tensors[theirs]
        counts = mine in self._source.state and mine not in self._ignored
        partner = Partner(theirs, order if counts and order and len(order) == other.ndim else None)
        first = self._partners.setdefault(mine, partner)
        if first != partner and not self._one_for_both(first, partner):
            raise ArchitectureMismatchError(
                f"{place} reads {mine!r}, which it shares with other nodes; in the reference it "
                f"does not share {theirs!r} with them"
            )
        before = self._taken.setdefault(theirs, mine)
        if before != mine and not self._are_copies(before, mine):
            raise ArchitectureMismatchError(
                f"{place} reads {mine!r}; in the reference it shares {theirs!r} with other nodes"
            )
        if not counts:
            return
        other = other if partner.order is None else other.permute(partner.order)
        if own.shape != other.shape:
            raise ArchitectureMismatchError(
                f"{mine} has the shape {tuple(own.shape)}, and {theirs} of the reference "
                f"{tuple(other.shape)}"
            )
        if not other.is_floating_point():
            raise ArchitectureMismatchError(f"{theirs} of the reference holds {other.dtype}")

    def _one_for_both(self, first: Partner, second: Partner) -> bool:
        """Whether a reference has copies where we have one tensor: exporters untie what is tied."""
        tensors = self._reference.parsed.tensors
        return same_bits(first.of(tensors), second.of(tensors))

    def _are_copies(self, first: str, second: str) -> bool:
        """Whether we have copies where a reference has one tensor, each in a form of its own."""
        tensors = self._source.parsed.tensors
        return same_bits(*(self._partners[name].undone(tensors[name]) for name in (first, second)))


def _by_position(found: _Pairing) -> None:
    found.in_order(by_name=False)


def _by_names(found: _Pairing) -> None:
    found.in_order(by_name=True)


def _by_skeleton(found: _Pairing) -> None:
    found.from_the_end()


def _same(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors hold the same numbers, rounded to the shorter of their types."""
    dtypes = {mine.dtype, theirs.dtype}
    if len(dtypes) == 1 or not all(dtype.is_floating_point for dtype in dtypes):
        return same_bits(mine, theirs)
    shorter = min(dtypes, key=lambda dtype: (dtype.itemsize, str(dtype)))
    return same_bits(mine.to(shorter), theirs.to(shorter))


def _equal(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, Tensor) or isinstance(theirs, Tensor):
        return isinstance(mine, Tensor) and isinstance(theirs, Tensor) and torch.equal(mine, theirs)
    if hasattr(mine, "SerializeToString") and hasattr(theirs, "SerializeToString"):
        return bool(mine.SerializeToString() == theirs.SerializeToString())
    return bool(mine == theirs)


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value!r}"[:60]
