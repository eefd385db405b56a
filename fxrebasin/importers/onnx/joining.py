"""Tensors that go together by the outlines of two graphs, and the proof that they do.

Outlines leave out most of what a graph computes, so they only propose. What is proposed holds if
the graph of the file computes with the reference's tensors what the reference computes, in float64
and up to how exporters round their constants; see `fxrebasin.importers.onnx.alike`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.alike import OtherInputsError, prove_alike
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.origins import Anchor, Leaf
from fxrebasin.importers.onnx.outlined import compare_outlines
from fxrebasin.importers.onnx.partner import Assembled, Correspondence, Partner, inverse
from fxrebasin.importers.onnx.tails import Fold
from fxrebasin.importers.onnx.tensors import same_bits
from fxrebasin.wording import listed

_LISTED = 4

_Meeting: TypeAlias = tuple[Leaf, Leaf]
"""A weight of the file, and one of the reference at its place."""


def joined(source: OnnxSource, reference: OnnxSource, ignored: Collection[str]) -> Correspondence:
    """For each tensor of a file, what the reference has in its place.

    Args:
        source: a model.
        reference: another one.
        ignored: names of tensors of the source that may have other shapes there.

    Raises:
        ArchitectureMismatchError: their outlines differ, or they compute something else.
    """
    try:
        return _joined(source, reference, ignored, loose=False)
    except ArchitectureMismatchError as error:
        try:
            return _joined(source, reference, ignored, loose=True)
        except OtherInputsError as other:
            raise other from error
        except ArchitectureMismatchError:
            raise error from None


def _joined(
    source: OnnxSource, reference: OnnxSource, ignored: Collection[str], *, loose: bool
) -> Correspondence:
    """See `joined`.

    Where angles of positions are looked up in one file and computed in the other, nothing is in the
    place of the tables: then these stay as they are, and if all the same both compute the same,
    they are what the reference has.
    """
    met = _Met(source, reference)
    compare_outlines(source, reference, met, loose)
    found = met.partners()
    absorbed = {name for fold in met.folds.values() for name in fold.names} - found.keys()
    alone = {*source.state} - found.keys() - absorbed - {*ignored}
    if alone and not loose:
        raise ArchitectureMismatchError(
            f"nothing in the reference is in the place of {listed(sorted(alone), _LISTED)}"
        )
    prove_alike(source, reference, found, met.folds)
    return Correspondence(found, met.forms(), frozenset(absorbed), frozenset(alone), alike=True)


@dataclass(frozen=True)
class _Met:
    """Weights that were at the same places.

    Attributes:
        source: the file.
        reference: what it is held against.
        parts: of tensors of the file, with what the reference has there.
        whole: tensors of the file, as they are read.
        taken: of those of the reference, what met them first.
        folds: what went into layers, by where it ends.
    """

    source: OnnxSource
    reference: OnnxSource
    parts: dict[str, dict[tuple[int, int] | None, Leaf]] = field(default_factory=dict)
    whole: dict[str, Leaf] = field(default_factory=dict)
    taken: dict[tuple[str, Any], _Meeting] = field(default_factory=dict)
    folds: dict[str, Fold] = field(default_factory=dict)

    def meet(self, place: str, mine: Leaf, theirs: Leaf) -> None:
        """Two weights are at one place.

        Args:
            place: who reads the first.
            mine: of the file.
            theirs: of the reference.
        """
        if mine.shape == theirs.shape:  # several in one for both: all of them go together
            mine, theirs = replace(mine, part=None), replace(theirs, part=None)
        if mine.dims != theirs.dims:
            raise ArchitectureMismatchError(
                f"{place} reads {mine.name}, of the shape {mine.dims}, and {theirs.name} of the "
                f"reference has {theirs.dims}"
            )
        self.whole.setdefault(mine.name, mine)
        other = self.parts.setdefault(mine.name, {}).setdefault(mine.part, theirs)
        if other != theirs and not self._one_for_both((mine, theirs), other):
            self._refuse(place, mine, theirs)
        before = self.taken.setdefault((theirs.name, theirs.part), (mine, theirs))
        same = (before[0].name, before[0].part) == (mine.name, mine.part)
        if not same and not self._are_copies(before, (mine, theirs)):
            self._refuse(place, mine, theirs)

    def _refuse(self, place: str, mine: Leaf, theirs: Leaf) -> None:
        raise ArchitectureMismatchError(
            f"{place} reads {mine.name!r}, and {theirs.name!r} in the reference, which only "
            "one of them shares with other nodes"
        )

    def _one_for_both(self, met: _Meeting, other: Leaf) -> bool:
        """Whether a reference has copies where we have one tensor: exporters untie what is tied."""
        mine, theirs = met
        pairs = (self.whole[mine.name], other), (mine, theirs)
        if not all(map(_is_whole, (*pairs[0], *pairs[1]))):
            return False
        tensors = self.reference.parsed.tensors
        shape = tuple(self.source.parsed.tensors[mine.name].shape)
        return same_bits(*(_as_stored(a, b, shape).of(tensors) for a, b in pairs))

    def _are_copies(self, one: _Meeting, two: _Meeting) -> bool:
        """Whether we have copies where a reference has one tensor, each in a form of its own."""
        if not all(map(_is_whole, (*one, *two))):
            return False
        tensors = self.source.parsed.tensors
        shape = tuple(self.reference.parsed.tensors[one[1].name].shape)
        return same_bits(*(_as_stored(b, a, shape).of(tensors) for a, b in (one, two)))

    def absorb(self, mine: Anchor) -> None:
        """A layer that is one with what follows it in the reference is at a place.

        Args:
            mine: of the file.
        """
        if mine.fold is not None:
            self.folds[mine.fold.end] = mine.fold

    def forms(self) -> dict[str, Partner]:
        """How tensors are read that went together with what follows their layers."""
        shapes = {name: tuple(self.source.parsed.tensors[name].shape) for name in self.whole}
        return {
            name: Assembled(name, _inverse(leaf.order), (leaf,), shapes[name], leaf.shape)
            for name, leaf in self.whole.items()
            if leaf.computed is not None
        }

    def partners(self) -> dict[str, Partner]:
        """What was found, for tensors all parts of which were met."""
        found: dict[str, Partner] = {}
        for name, parts in self.parts.items():
            leaf, shape = self.whole[name], tuple(self.source.parsed.tensors[name].shape)
            places = [part for part in parts if part is not None]
            if None not in parts and not _covers(sorted(places), leaf.shape[-1]):
                continue
            read = [parts[None]] if None in parts else [parts[part] for part in sorted(places)]
            found[name] = Assembled(
                read[0].name, _inverse(leaf.order), tuple(read), shape, leaf.shape
            )
        return found


def _inverse(order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """How axes are put back that were transposed."""
    return None if order is None else inverse(order)


def _is_whole(leaf: Leaf) -> bool:
    return leaf.part is None and leaf.computed is None


def _as_stored(mine: Leaf, theirs: Leaf, shape: tuple[int, ...]) -> Assembled:
    """What one file has in the form of the other, both being read as they were met."""
    return Assembled(theirs.name, _inverse(mine.order), (theirs,), shape, mine.shape)


def _covers(places: list[tuple[int, int]], size: int) -> bool:
    starts, stops = [start for start, _ in places], [stop for _, stop in places]
    return starts == [0, *stops[:-1]] and stops[-1] == size
