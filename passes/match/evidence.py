"""What data show of the units of two models, for the groups that act on them.

Values that matrices mix are compared by their cross-moments, at every module that reads them, each
depth with the same weight: a stream grows with depth, and what is read of it is often normalised.
Values of heads are compared of every head with every other one. Other units are compared by
correlations, whose sign tells that of a unit where it may be chosen. Both models are balanced
before they run, so that what may be any invertible matrix is a rotation between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fxrebasin.indexing import Arrays, gather_index
from fxrebasin.kinds import Behind, GroupKind, Place
from fxrebasin.layout import AxisGroup, PermutationClass, Piece, Slot
from fxrebasin.passes.match.balance import Balanced
from fxrebasin.passes.match.group_problem import GroupProblem
from fxrebasin.passes.match.moments import Moments
from fxrebasin.passes.match.representatives import (
    Representative,
    Side,
    find_representatives,
    watching,
)
from fxrebasin.places import parts_of, units_of
from fxrebasin.progress import LateBar
from fxrebasin.running.batches import Batch, Runner, State
from fxrebasin.solvers.activations import Assembled, Correlation, of_sums, sum_device

_FIRST = 4
"""Batches that are kept."""
_ROTATED = frozenset({GroupKind.ORTHOGONAL, GroupKind.ORTHOGONAL_FIXING_ONES})


@dataclass
class CrossMoment:
    """Second moments between what two models have on one axis.

    Attributes:
        product: sum over samples of the outer products, float64.
        powers: sum of the squares of each model.
    """

    product: Tensor | None = None
    powers: tuple[float, float] = (0.0, 0.0)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in samples.

        Args:
            a: of the reference, of shape (samples, units).
            b: of the model, for the same data.
        """
        device = sum_device(a)
        product = (a.T @ b).to(device, torch.float64)
        self.product = product if self.product is None else self.product + product
        own = (float(x.to(device, torch.float64).square().sum()) for x in (a, b))
        self.powers = (self.powers[0] + next(own), self.powers[1] + next(own))

    def cosine(self) -> Tensor:
        """The product as if all samples together had length one in both models."""
        assert self.product is not None  # noqa: S101 - only asked after samples
        size = (self.powers[0] * self.powers[1]) ** 0.5
        return self.product / size if size else self.product


@dataclass
class Evidence:
    """What data show, summed up batch by batch.

    Args:
        problem: what is matched.
        references: several balanced models, with how much each counts, whose mean the model is
            compared with; then the states of the problem are balanced already, and its reference
            has the mean of their weights. The reference of the problem alone when left out.

    Attributes:
        balanced: the same between balanced states.
        first: a few of the batches, where permutations alone may turn out to do better.
    """

    problem: GroupProblem
    references: Sequence[tuple[float, State]] = ()
    balanced: Balanced = field(init=False)
    _watched: list[_Watched] = field(init=False, default_factory=list)
    _correlations: list[tuple[bool, Correlation]] = field(init=False, default_factory=list)
    _written: list[Correlation] = field(init=False, default_factory=list)
    first: list[Batch] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        alone = not self.references
        self.balanced = Balanced.of(self.problem) if alone else Balanced.already(self.problem)
        if alone:
            self.references = [(1.0, self.balanced.problem.state_a)]

    @property
    def rotated(self) -> list[PermutationClass]:
        """Classes whose matrices data can show: orthogonal ones, once in a model."""
        return [
            c
            for c in self.problem.classes
            if self._kind(c) in _ROTATED and c.count == 1 and self.problem.free(c)
        ]

    @property
    def headed(self) -> list[PermutationClass]:
        """The other classes that matrices mix, such as the dimensions of heads."""
        rotated = {c.name for c in self.rotated}
        return [
            c
            for c in self.problem.classes
            if self._kind(c).has_matrices and c.name not in rotated and self.problem.free(c)
        ]

    @property
    def paired(self) -> list[PermutationClass]:
        """Classes whose units are told apart, and those within them."""
        classes = self.problem.classes
        mixing = {c.name for c in classes if self._kind(c).has_matrices}
        mixing |= {name for c in classes if c.name in mixing for name in c.within}
        return [c for c in classes if c.name not in mixing and self.problem.free(c)]

    @property
    def only_units(self) -> bool:
        """Whether all that acts are signs and factors of units, and permutations."""
        return not any(self._kind(c).has_matrices for c in self.problem.classes)

    def _kind(self, c: PermutationClass) -> GroupKind:
        return self.problem.groups.kinds[c.name].kind

    def collect(
        self,
        running: Runner,
        loader: Iterable[Any],
        most: int | None,
        report: LateBar,
    ) -> None:
        """Run both models on the batches of a loader.

        Args:
            running: of the model, whose code runs both states.
            loader: any iterable of batches.
            most: number of batches; all when None.
            report: shows how far this is.

        Raises:
            InputError: a model does not run on a batch.
        """
        references = [(share, running.own(state)) for share, state in self.references]
        b = running.own(self.balanced.problem.state_b)
        total = min(len(loader), most or len(loader)) if isinstance(loader, Sized) else most
        for batch in running.batches(loader, most):
            if batch.number == 0:
                self._prepare(running, b, batch)
            if batch.number < _FIRST:
                self.first.append(batch)
            shown = ((share, self._seen(running, a, batch)) for share, a in references)
            self._add(_mean(shown), self._seen(running, b, batch))
            report("activations", batch.number + 1, total)

    def matrices(self) -> dict[str, Tensor]:
        """For classes of streams that data show: the mean of cosines, of shape (units, units)."""
        moments = self._moments([c.name for c in self.rotated])
        return {name: moment.of_copies(1)[0, 0, 0] for name, moment in moments.items()}

    def heads(self) -> dict[str, Moments]:
        """For the other classes that matrices mix and that data show: the mean of cosines."""
        return self._moments([c.name for c in self.headed])

    def _moments(self, names: Sequence[str]) -> dict[str, Moments]:
        """The mean of the cosines of all that was seen of some classes."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        known = {c.name: c for c in self.problem.classes}
        sizes = {c.name: c.size for c in self.problem.classes}
        for item in self._watched:
            if isinstance(item.compared, CrossMoment) and item.mixed in names:
                if item.compared.product is None:
                    continue
                c = known[item.mixed]
                at = [slot.class_name for slot in item.piece.slots].index(c.name)
                units = units_of(item.piece, at, c, sizes)
                places = torch.from_numpy(units.reshape(-1).argsort(kind="stable"))
                cosine = item.compared.cosine()
                for own in places.reshape(c.count * c.size, -1).T:
                    part = cosine[own][:, own]
                    sums[c.name] = sums[c.name] + part if c.name in sums else part
                counts[c.name] = counts.get(c.name, 0) + 1
        return {n: Moments((total / counts[n]).cpu(), known[n].size) for n, total in sums.items()}

    def pairs(self) -> Pairs:
        """Correlations of the other units."""
        even: dict[tuple[Slot, ...], Tensor] = {}
        odd: dict[tuple[Slot, ...], Tensor] = {}
        for is_odd, correlation in self._correlations:
            for slots, matrix in correlation.matrices().items():
                total = odd if is_odd else even
                total[slots] = total[slots] + matrix if slots in total else matrix
        return self._pairs(even, odd)

    def pairs_written(self) -> Pairs:
        """Correlations of all outputs as they are, which is what permutations are found by."""
        even: dict[tuple[Slot, ...], Tensor] = {}
        for correlation in self._written:
            for slots, matrix in correlation.matrices().items():
                even[slots] = even[slots] + matrix if slots in even else matrix
        return self._pairs(even, {})

    def _pairs(
        self, even: Mapping[tuple[Slot, ...], Tensor], odd: Mapping[tuple[Slot, ...], Tensor]
    ) -> Pairs:
        classes = self.problem.plain.symmetry.classes
        signed = frozenset(c.name for c in classes if self._signed(c.name))
        return Pairs(classes, [c.name for c in self.paired], even, odd, signed)

    def _prepare(self, running: Runner, state: State, batch: Batch) -> None:
        """Find out which modules to watch: readers, and writers of what no module reads."""
        own = self.problem.plain.symmetry
        layout = {name: groups for name, groups in own.layout.items() if name in state}
        read: set[str] = set()
        for side in (Side.INPUTS, Side.OUTPUTS):
            found = find_representatives(running, own.classes, layout, state, batch, (), side)
            for item in found:
                tells = side is Side.INPUTS or not self._shown_by(item) <= read
                if tells or self.only_units:
                    watched = self._watch(item, side, tells=tells)
                    read |= watched if side is Side.INPUTS else set()

    def _watch(self, item: Representative, side: Side, *, tells: bool) -> set[str]:
        """Compare what an item shows, part by part; returns the classes that are seen there.

        Args:
            item: to be watched.
            side: of its module.
            tells: whether more than a permutation is found by it.
        """
        seen: set[str] = set()
        paired = {c.name for c in self.paired}
        mixed = {c.name: {c.name, *c.within} for c in (*self.rotated, *self.headed)}
        for place, one in self._parts(item):
            names = _names(AxisGroup(item.group.axes, (one,)))
            compared: CrossMoment | Correlation | None = None
            own = next((name for name, all_names in mixed.items() if names == all_names), "")
            if own:
                compared = CrossMoment() if self._reads(place, one, side) else None
            elif names <= paired:
                compared = Correlation(AxisGroup(item.group.axes, (one,)))
                if tells and self._hides_signs(item, place, one):
                    if side is Side.OUTPUTS:
                        self._written.append(compared)
                        self._watched.append(_Watched(item, side, one, compared, own))
                    continue
                if tells:
                    self._correlations.append((self._is_odd(place, one), compared))
                if side is Side.OUTPUTS:
                    self._written.append(compared)
            if compared is not None:
                self._watched.append(_Watched(item, side, one, compared, own))
                seen |= names
        return seen

    def _shown_by(self, item: Representative) -> set[str]:
        """The classes that an item could show."""
        parts = tuple(one for _, one in self._parts(item))
        return _names(AxisGroup(item.group.axes, parts))

    def _parts(self, item: Representative) -> Iterator[tuple[Place, Piece]]:
        """What is along the axis that an item shows: permuted units, and those turned in pairs."""
        groups = self.problem.groups
        for layout in (groups.layout, groups.turned_layout):
            for number, group in enumerate(layout.get(item.state, ())):
                if group.axes == item.group.axes:
                    for at, piece in enumerate(group.pieces):
                        for part, index in enumerate(parts_of(piece)):
                            yield Place(item.state, number, at, 0, part), _part(piece, index)

    def _reads(self, place: Place, piece: Piece, side: Side) -> bool:
        """Whether matrices act on what is seen as a whole: norms read what is not normalised."""
        found = False
        for at, slot in enumerate(piece.slots):
            if slot.class_name is not None:
                parts = self.problem.groups.kinds[slot.class_name].parts
                part = parts.get(replace(place, slot=at), Behind(0))
                found = bool(part.variance) and (part.reads or not part.factors)
        return found or side is Side.OUTPUTS

    def _is_odd(self, place: Place, piece: Piece) -> bool:
        """Whether the sign that may be chosen for a unit is that of what is seen."""
        powers = [
            self.problem.groups.kinds[slot.class_name].signs.get(replace(place, slot=at), 0)
            for at, slot in enumerate(piece.slots)
            if slot.class_name is not None
        ]
        return sum(power % 2 for power in powers) == 1

    def _hides_signs(self, item: Representative, place: Place, piece: Piece) -> bool:
        """Whether units may change their sign there although the parameter does not.

        A norm's scale stays, and both what it reads and what it returns change.
        """
        is_bare = self.problem.state_b[item.state].dim() == len(item.group.axes)
        kinds = [
            self._signed(slot.class_name) for slot in piece.slots if slot.class_name is not None
        ]
        return is_bare and any(kinds) and not self._is_odd(place, piece)

    def _signed(self, name: str) -> bool:
        kind = self.problem.groups.kinds[name].kind
        return kind >= GroupKind.SIGNED and not kind.has_matrices

    def _add(self, first: _Seen, second: _Seen) -> None:
        """Take in what both models show of one batch."""
        for item in self._watched:
            key = (item.shown.module, item.side)
            for own, other in zip(first.get(key, []), second.get(key, []), strict=False):
                if own.shape == other.shape:
                    item.add(own, other)

    def _seen(self, running: Runner, state: State, batch: Batch) -> _Seen:
        """What a model shows of one batch; what several modules read is taken once."""
        shown = {(item.shown.module, item.side): item.shown for item in self._watched}
        found: _Seen = {}
        taken: list[Tensor] = []

        def keeping(side: Side) -> Callable[[str, Tensor], None]:
            def keep(name: str, value: Tensor) -> None:
                if not any(value is other for other in taken):
                    taken.append(value)
                    samples = shown[name, side].samples(value)
                    found.setdefault((name, side), []).append(samples)

            return keep

        with ExitStack() as stack:
            for side in Side:
                names = [name for name, own in shown if own is side]
                stack.enter_context(watching(running.model, names, keeping(side), side))
            running.call(state, batch)
        return found


_Seen: TypeAlias = dict[tuple[str, Side], list[Tensor]]


def _mean(shown: Iterable[tuple[float, _Seen]]) -> _Seen:
    """The mean of what several models show of one batch, where all show as much.

    Args:
        shown: by each model, with how much it counts.
    """
    weight, found = 0.0, dict[tuple[str, Side], list[Tensor]]()
    for share, seen in shown:
        weight += share
        for key, values in seen.items():
            own = found.setdefault(key, values)
            pairs = zip(own, values, strict=False)
            found[key] = [
                x if x is y else torch.lerp(x, y, share / weight)
                for x, y in pairs
                if x.shape == y.shape
            ]
    return found


@dataclass(frozen=True)
class _Watched:
    """A part of what a module shows.

    Attributes:
        shown: which module, and where.
        side: of it.
        piece: where the units are.
        compared: what is summed up.
        mixed: the class whose units matrices mix there, if any does.
    """

    shown: Representative
    side: Side
    piece: Piece
    compared: CrossMoment | Correlation
    mixed: str

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in samples of both models, of shape (samples, units)."""
        if isinstance(self.compared, Correlation):
            self.compared.add(a, b)
        else:
            at = torch.from_numpy(self.piece.positions.reshape(-1))
            self.compared.add(a[:, at.to(a.device)], b[:, at.to(b.device)])


@dataclass(frozen=True)
class Pairs:
    """Correlations of units that are told apart.

    Attributes:
        classes: of the symmetry.
        free: names of those that may move.
        even: correlations where the sign of a unit does not show, by slots.
        odd: correlations where it does.
        signed: names of the classes whose units may change their sign; heads around them do not.
    """

    classes: tuple[PermutationClass, ...]
    free: Sequence[str]
    even: Mapping[tuple[Slot, ...], Tensor]
    odd: Mapping[tuple[Slot, ...], Tensor]
    signed: frozenset[str]

    def assembled(self) -> Assembled:
        """The matching problem whose objective is the sum of what paired units agree."""
        total = dict(self.even)
        for slots, matrix in self.odd.items():
            agreed = matrix.abs()
            total[slots] = total[slots] + agreed if slots in total else agreed
        return of_sums(self.classes, self.free, total)

    def signs(self, arrays: Arrays) -> dict[str, Tensor]:
        """For classes whose signs show: those with which paired units agree, (copies, units).

        Args:
            arrays: int64 by class name, of the permutation.
        """
        sizes = {c.name: c.size for c in self.classes}
        known = {c.name: c for c in self.classes}
        found: dict[str, Tensor] = {}
        for slots, matrix in self.odd.items():
            shape = tuple(slot.size for slot in slots)
            piece = Piece(slots, np.arange(len(matrix), dtype=np.int64).reshape(shape))
            source = gather_index(AxisGroup((0,), (piece,)), len(matrix), arrays)
            picked = matrix[torch.arange(len(matrix)), torch.from_numpy(source)].cpu()
            for at, slot in enumerate(slots):
                if slot.class_name not in self.signed:
                    continue
                c = known[slot.class_name]
                units = torch.from_numpy(units_of(piece, at, c, sizes).reshape(-1))
                total = found.setdefault(c.name, torch.zeros(c.count * c.size, dtype=picked.dtype))
                total.index_add_(0, units, picked)
        return {
            name: torch.where(total < 0, -1.0, 1.0).double().reshape(known[name].count, -1)
            for name, total in found.items()
        }


def _names(group: AxisGroup) -> set[str]:
    """The classes whose units an axis has."""
    slots = (slot for piece in group.pieces for slot in piece.slots)
    return {slot.class_name for slot in slots if slot.class_name is not None}


def _part(piece: Piece, index: tuple[slice, ...]) -> Piece:
    """A rigid part of a piece."""
    positions = piece.positions[index]
    slots = zip(piece.slots, positions.shape, strict=True)
    return Piece(tuple(replace(slot, size=size) for slot, size in slots), positions)
