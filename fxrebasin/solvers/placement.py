"""What is decided so far, and where that puts every position of an axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fxrebasin.indexing import piece_source
from fxrebasin.layout import AxisGroup, IntArray, Piece

# Shared by all placements, so that a stamp says whose it is as well.
_TICKS = itertools.count(1)


class Placement:
    """Permutations by class name, some of them perhaps not known yet.

    Args:
        arrays: int64 by class name, as in `Permutation`.
        known: names of the classes whose arrays count; the others are open.
    """

    def __init__(self, arrays: Mapping[str, IntArray], known: Iterable[str]) -> None:
        self.arrays = dict(arrays)
        self.clock = next(_TICKS)
        self.stamps = dict.fromkeys(known, self.clock)

    def known_arrays(self) -> dict[str, IntArray]:
        """The arrays that count."""
        return {name: self.arrays[name] for name in self.stamps}

    def decide_rest(self) -> set[str]:
        """Keep all classes that are still open as they are; returns their names."""
        return self.set({n: a for n, a in self.arrays.items() if n not in self.stamps})

    def set(self, arrays: Mapping[str, IntArray]) -> set[str]:
        """Take over permutations, and say which classes became known or changed.

        Args:
            arrays: int64 by class name.
        """
        news = {
            name
            for name, array in arrays.items()
            if name not in self.stamps or not np.array_equal(array, self.arrays[name])
        }
        self.clock = next(_TICKS) if news else self.clock
        for name in news:
            self.arrays[name] = arrays[name]
            self.stamps[name] = self.clock
        return news


class Axis:
    """The flat positions of an axis group, and where each of them comes from.

    Args:
        pieces: with positions on this axis.
        total: number of positions.
    """

    def __init__(self, pieces: Sequence[Piece], total: int) -> None:
        self.total = total
        self.names = frozenset(names_of(pieces))
        self._parts = [(piece, names_of([piece]), -1) for piece in pieces]
        self._source = np.arange(total, dtype=np.int64)
        self._clock = 0
        self.everything = self._source
        self.included = total
        # The usual case: positions are the units of a class.
        self.is_one_class = (
            len(pieces) == 1
            and [slot.within for slot in pieces[0].slots] == [()]
            and len(self.names) == 1
            and np.array_equal(pieces[0].positions, self.everything)
        )

    def source(self, placement: Placement) -> IntArray:
        """int64 of shape (total,): where a position comes from, or -1 if that is open.

        A new array is made whenever something changed.

        Args:
            placement: what is decided.
        """
        if self._clock != placement.clock:
            self._clock = placement.clock
            if self.is_one_class:
                self._follow(placement)
            else:
                self._refresh(placement)
        return self._source

    def _follow(self, placement: Placement) -> None:
        """Follow the only class on this axis."""
        piece, (name,), seen = self._parts[0]
        stamp = placement.stamps.get(name, 0)
        if stamp != seen:
            self._parts[0] = (piece, [name], stamp)
            source = placement.arrays[name] if stamp else np.full(self.total, -1)
            self._set(source, self.total if stamp else 0)

    def _refresh(self, placement: Placement) -> None:
        """Rewrite the pieces whose classes changed."""
        fresh = None
        for at, (piece, names, seen) in enumerate(self._parts):
            stamps = [placement.stamps.get(name, 0) for name in names]
            stamp = 0 if 0 in stamps else max(stamps, default=1)
            if stamp == seen:
                continue
            self._parts[at] = (piece, names, stamp)
            fresh = self._source.copy() if fresh is None else fresh
            known = placement.arrays if stamp else {}
            fresh[piece.positions] = piece_source(piece, known)
        if fresh is not None:
            self._set(fresh, int(np.count_nonzero(fresh >= 0)))

    def _set(self, source: IntArray, included: int) -> None:
        """Take over where positions come from, and of how many that is known."""
        self._source = self.everything if (source == self.everything).all() else source
        self.included = included


class Axes:
    """Axes of equal structure are one object, so that their sources are found once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], Axis] = {}

    def of(self, group: AxisGroup, total: int) -> Axis:
        """The axis of a group.

        Args:
            group: its pieces.
            total: number of flat positions.
        """
        key = (total, group.pattern)
        if key not in self._known:
            self._known[key] = Axis(group.pieces, total)
        return self._known[key]


def names_of(pieces: Iterable[Piece]) -> list[str]:
    """Names of the classes on pieces, in order of appearance."""
    names = (s.class_name for piece in pieces for s in piece.slots if s.class_name is not None)
    return list(dict.fromkeys(names))
