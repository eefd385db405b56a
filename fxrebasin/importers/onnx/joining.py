"""Tensors that go together by the outlines of two graphs, and the proof that they do.

Outlines leave out most of what a graph computes, so they only propose. What is proposed holds if
the graph of the file computes with the reference's tensors what the reference computes, in float64
and up to how exporters round their constants; see `fxrebasin.importers.onnx.alike`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from fxrebasin.errors import ArchitectureMismatchError
from fxrebasin.importers.onnx.alike import OtherInputsError, prove_alike
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.origins import Anchor, Leaf
from fxrebasin.importers.onnx.outlined import compare_outlines
from fxrebasin.importers.onnx.partner import Assembled, Correspondence, Partner
from fxrebasin.importers.onnx.tails import Fold
from fxrebasin.wording import listed

_LISTED = 4


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
    met = _Met()
    compare_outlines(source, reference, met, loose)
    found = met.partners(source)
    absorbed = {name for fold in met.folds.values() for name in fold.names} - found.keys()
    alone = {*source.state} - found.keys() - absorbed - {*ignored}
    if alone and not loose:
        raise ArchitectureMismatchError(
            f"nothing in the reference is in the place of {listed(sorted(alone), _LISTED)}"
        )
    prove_alike(source, reference, found, met.folds)
    return Correspondence(
        found, met.forms(source), frozenset(absorbed), frozenset(alone), alike=True
    )


@dataclass(frozen=True)
class _Met:
    """Weights that were at the same places.

    Attributes:
        parts: of tensors of the file, with what the reference has there.
        whole: tensors of the file, as they are read.
        taken: the same the other way.
        folds: what went into layers, by where it ends.
    """

    parts: dict[str, dict[tuple[int, int] | None, Leaf]] = field(default_factory=dict)
    whole: dict[str, Leaf] = field(default_factory=dict)
    taken: dict[tuple[str, Any], tuple[str, Any]] = field(default_factory=dict)
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
        key = (mine.name, mine.part)
        if other != theirs or self.taken.setdefault((theirs.name, theirs.part), key) != key:
            raise ArchitectureMismatchError(
                f"{place} reads {mine.name!r}, and {theirs.name!r} in the reference, which only "
                "one of them shares with other nodes"
            )

    def absorb(self, mine: Anchor) -> None:
        """A layer that is one with what follows it in the reference is at a place.

        Args:
            mine: of the file.
        """
        if mine.fold is not None:
            self.folds[mine.fold.end] = mine.fold

    def forms(self, source: OnnxSource) -> dict[str, Partner]:
        """How tensors are read that went together with what follows their layers."""
        shapes = {name: tuple(source.parsed.tensors[name].shape) for name in self.whole}
        return {
            name: Assembled(name, _inverse(leaf.order), (leaf,), shapes[name], leaf.shape)
            for name, leaf in self.whole.items()
            if leaf.computed is not None
        }

    def partners(self, source: OnnxSource) -> dict[str, Partner]:
        """What was found, for tensors all parts of which were met."""
        found: dict[str, Partner] = {}
        for name, parts in self.parts.items():
            leaf, shape = self.whole[name], tuple(source.parsed.tensors[name].shape)
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
    return None if order is None else tuple(sorted(range(len(order)), key=order.__getitem__))


def _covers(places: list[tuple[int, int]], size: int) -> bool:
    starts, stops = [start for start, _ in places], [stop for _, stop in places]
    return starts == [0, *stops[:-1]] and stops[-1] == size
