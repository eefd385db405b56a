"""Tensors that go together by the outlines of two graphs, and the proof that they do.

Outlines leave out most of what a graph computes, so they only propose. What is proposed holds if
the graph of the file computes with the reference's tensors what the reference computes, in float64
and up to how exporters round their constants.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from fxrebasin.errors import ArchitectureMismatchError, InputError
from fxrebasin.exporters.verify.input_sets import example_set
from fxrebasin.exporters.verify.outputs import compare_tensors
from fxrebasin.exporters.verify.runs import Subject, Tensors, run_float64
from fxrebasin.importers.onnx.branches import taking, ways_of
from fxrebasin.importers.onnx.graph import Parsed
from fxrebasin.importers.onnx.inputs_of_both import Inputs, inputs_of_both
from fxrebasin.importers.onnx.loading import OnnxSource
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.importers.onnx.origins import Anchor, Leaf
from fxrebasin.importers.onnx.outlined import compare_outlines
from fxrebasin.importers.onnx.partner import Assembled, Correspondence, Partner
from fxrebasin.importers.onnx.tails import Fold, without_tails
from fxrebasin.wording import listed

_ROUNDED = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative errors that constants of short types leave."""

_ROUNDED_FLOAT32 = 1e-5
_LISTED = 4


class _OtherInputsError(ArchitectureMismatchError):
    """Two graphs that may correspond take no inputs in common."""


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
        except _OtherInputsError as other:
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
    _prove(source, reference, found, met.folds)
    return Correspondence(found, met.forms(source), frozenset(absorbed), frozenset(alone))


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


class _InOrder(nn.Module):
    """A graph that returns its outputs in their order; exporters give them other names."""

    def __init__(self, graph: OnnxModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *args: torch.Tensor) -> tuple[Any, ...]:
        return tuple(self.graph(*args).values())


def _prove(
    source: OnnxSource,
    reference: OnnxSource,
    found: Mapping[str, Partner],
    folds: Mapping[str, Fold],
) -> None:
    """Run the graph of the file with the tensors of the reference beside the reference.

    What is one with its layer in the reference only is one with it here, too. Of branches that read
    weights each is taken, whatever the inputs are.

    Raises:
        ArchitectureMismatchError: they do not compute the same.
    """
    theirs = reference.parsed.tensors
    tensors = {
        name: found[name].of(theirs).to(tensor.dtype) if name in found else tensor
        for name, tensor in source.parsed.tensors.items()
    }
    filled = without_tails(replace(source.parsed, tensors=tensors), folds)
    dtypes = {tensors[name].dtype for name in source.state}
    dtypes |= {theirs[name].dtype for name in reference.state}
    tolerance = max(_ROUNDED.get(dtype, _ROUNDED_FLOAT32) for dtype in dtypes)
    both = [(source, filled), (reference, reference.parsed)]
    faults: list[ArchitectureMismatchError] = []
    try:
        for sets in inputs_of_both(source, reference):
            try:
                _run_both(both, sets, tolerance)
            except ArchitectureMismatchError as error:
                faults.append(error)
                continue
            for way in ways_of(filled, source.state):
                taken = [(item, taking(parsed, item.state, way)) for item, parsed in both]
                _run_both(taken, sets, tolerance)
            return
    except InputError as error:
        raise _OtherInputsError(
            f"whether both graphs compute the same cannot be seen: {error}"
        ) from error
    if faults:
        raise faults[0]
    raise ArchitectureMismatchError(
        "whether both graphs compute the same cannot be seen: no inputs are taken by both"
    )


def _run_both(
    models: Sequence[tuple[OnnxSource, Parsed]],
    sets: Sequence[tuple[Inputs, Inputs]],
    tolerance: float,
) -> None:
    found, wanted = (
        run_float64(
            Subject(_InOrder(replace(item, parsed=parsed).module()), label=item.label),
            [example_set(tuple(pair[at].values()), {}) for pair in sets],
        )
        for at, (item, parsed) in enumerate(models)
    )
    for one, two in zip(wanted, found, strict=True):
        _compare(one, two, tolerance)


def _compare(wanted: Tensors | Exception, found: Tensors | Exception, tolerance: float) -> None:
    """Refuse outputs that differ, in order; their names may.

    Raises:
        ArchitectureMismatchError: they do.
    """
    for outcome in (wanted, found):
        if isinstance(outcome, Exception):
            raise ArchitectureMismatchError(
                f"whether both graphs compute the same cannot be seen: {outcome}"
            ) from outcome
    if isinstance(wanted, Exception) or isinstance(found, Exception):
        return
    for name in wanted.keys() | found.keys():
        if name not in wanted or name not in found:
            raise ArchitectureMismatchError(f"only one of the graphs returns the output {name}")
        figures = compare_tensors(name, wanted[name], found[name], tolerance=tolerance)
        if figures.problems or figures.max_rel > tolerance or figures.differing:
            raise ArchitectureMismatchError(
                "with the tensors of the reference the graph computes something else than the "
                f"reference does: output {name} differs by {figures.max_rel:.1e}"
            )
