"""One model's tensors out of those of several checkpoints, a tensor or a few rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch

from fxrebasin.merge.by_pattern import ByPattern
from fxrebasin.merge.combinations import Combination, Formula, combine
from fxrebasin.merge.formulas import mean_of
from fxrebasin.merge.states import wide_dtype
from fxrebasin.permutation import Permutation
from fxrebasin.storage.tree import KeyPath
from fxrebasin.streaming.making import Piece, ranges
from fxrebasin.streaming.opening import Opened
from fxrebasin.streaming.problem import may_be_cut
from fxrebasin.streaming.sweeping import moved

_BY_ELEMENT = (Formula.MEAN, Formula.TASK_ARITHMETIC)
"""Formulas whose numbers depend on nothing but those at the same place."""


@dataclass(frozen=True)
class Combining:
    """The tensors that a formula makes of several checkpoints; they are compared as they are.

    Args:
        opened: the checkpoints, and the one that differences are taken from behind them, if the
            formula takes any.
        permutations: of their units; None for none.
        combination: what is computed.
        buffers: names of tensors that are no parameters, which are averaged.
        kept: names of tensors that are those of the first checkpoint.
        firsts: the name under which a tied tensor is computed, by its other names.
        wide: whether means stay in the precision that they are computed in.
    """

    opened: Sequence[Opened]
    permutations: Sequence[Permutation | None]
    combination: Combination
    buffers: Collection[str]
    kept: Collection[str]
    firsts: Mapping[str, str]
    wide: bool = False

    def pieces(self, place: KeyPath, name: str) -> Iterator[Piece]:
        """The parts of a new tensor."""
        first = self.opened[0]
        stored = first.stored[name]
        number = stored.dtype.is_floating_point or stored.dtype.is_complex
        count = len(self.opened) - self.combination.formula.needs_base
        heaviest = 0 if number else self.combination.heaviest(self.firsts.get(name, name), count)
        if name in self.kept or not (number or heaviest):
            for rows in ranges(stored):
                tensor = first.reader.read(place, rows)
                yield (rows.start if rows else 0), tensor, tensor
            return
        name = self.firsts.get(name, name)
        if not number:
            side = _Side(self.opened[heaviest], self.permutations[heaviest], name, keep=False)
            for rows in ranges(stored, cut=side.may_be_cut):
                tensor = side.read(rows).to(stored.dtype)
                yield (rows.start if rows else 0), tensor, tensor
            return
        formula = Formula.MEAN if name in self.buffers else self.combination.formula
        pairs = zip(self.opened, self.permutations, strict=True)
        if formula is Formula.MEAN and name not in self.buffers:
            yield from self._mean(name, [_Side(o, p, name, keep=False) for o, p in pairs])
            return
        sides = [_Side(o, p, name, keep=True) for o, p in pairs]
        for rows in ranges(stored, cut=formula in _BY_ELEMENT):
            made = self._combined(name, [side.read(rows) for side in sides])
            yield (rows.start if rows else 0), made, made

    def _mean(self, name: str, sides: Sequence[_Side]) -> Iterator[Piece]:
        """Of any number of checkpoints, one after the other."""
        stored = self.opened[0].stored[name]
        weights = self.combination.weights or ByPattern((1.0,) * len(sides))
        for rows in ranges(stored, cut=all(side.may_be_cut for side in sides)):
            made = mean_of(weights, name, _Rows(sides, rows, wide_dtype(stored.dtype)))
            made = made if self.wide else made.to(stored.dtype)
            yield (rows.start if rows else 0), made, made

    def _combined(self, name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        states = [{name: tensor} for tensor in tensors]
        base = states.pop() if self.combination.formula.needs_base else None
        buffers = [name] if name in self.buffers else []
        return combine(states, self.combination, base, buffers=buffers)[name]

    def is_whole(self, name: str) -> bool:
        """Nothing is undone."""
        return False

    def undo(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Nothing."""
        return tensor


@dataclass(frozen=True)
class _Rows(Sequence[torch.Tensor]):
    """The same rows of a tensor of several checkpoints, of which one is in memory at a time."""

    sides: Sequence[_Side]
    rows: slice | None
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.sides)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(index, slice):
            return _Rows(self.sides[index], self.rows, self.dtype)
        return self.sides[index].read(self.rows).to(self.dtype)


class _Side:
    """A tensor of one checkpoint in the order of the first; whole only if it has to be, and kept
    then if it is to be read in parts."""

    def __init__(
        self, opened: Opened, permutation: Permutation | None, name: str, *, keep: bool
    ) -> None:
        self._opened, self._name = opened, name
        self._groups = () if permutation is None else permutation.layout.get(name, ())
        self._arrays = {} if permutation is None else permutation.arrays
        self.may_be_cut = not self._groups or may_be_cut(opened.stored[name].shape, self._groups)
        self._whole = self._moved(None) if keep and not self.may_be_cut else None

    def _moved(self, rows: slice | None) -> torch.Tensor:
        return moved(self._opened.read(self._name, rows), self._groups, self._arrays)

    def read(self, rows: slice | None) -> torch.Tensor:
        """A range of rows, or all of them."""
        if self._whole is None:
            return self._moved(rows)
        return self._whole if rows is None else self._whole[rows]
