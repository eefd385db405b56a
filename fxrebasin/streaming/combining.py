"""One model's tensors out of those of several checkpoints, a tensor or a few rows at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from fxrebasin.merge.combinations import Combination, Formula, combine
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
    """

    opened: Sequence[Opened]
    permutations: Sequence[Permutation | None]
    combination: Combination
    buffers: Collection[str]
    kept: Collection[str]
    firsts: Mapping[str, str]

    def pieces(self, place: KeyPath, name: str) -> Iterator[Piece]:
        """The parts of a new tensor."""
        first = self.opened[0]
        stored = first.stored[name]
        if name in self.kept or not (stored.dtype.is_floating_point or stored.dtype.is_complex):
            for rows in ranges(stored):
                tensor = first.reader.read(place, rows)
                yield (rows.start if rows else 0), tensor, tensor
            return
        name = self.firsts.get(name, name)
        formula = Formula.MEAN if name in self.buffers else self.combination.formula
        sides = [_Side(o, p, name) for o, p in zip(self.opened, self.permutations, strict=True)]
        for rows in ranges(stored, cut=formula in _BY_ELEMENT):
            made = self._combined(name, [side.read(rows) for side in sides])
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


class _Side:
    """A tensor of one checkpoint in the order of the first; whole only if it has to be."""

    def __init__(self, opened: Opened, permutation: Permutation | None, name: str) -> None:
        self._opened, self._name = opened, name
        self._groups = () if permutation is None else permutation.layout.get(name, ())
        self._arrays = {} if permutation is None else permutation.arrays
        cut = not self._groups or may_be_cut(opened.stored[name].shape, self._groups)
        self._whole = None if cut else self._moved(None)

    def _moved(self, rows: slice | None) -> torch.Tensor:
        return moved(self._opened.read(self._name, rows), self._groups, self._arrays)

    def read(self, rows: slice | None) -> torch.Tensor:
        """A range of rows, or all of them."""
        if self._whole is None:
            return self._moved(rows)
        return self._whole if rows is None else self._whole[rows]
