"""Coordinate descent over permutation classes (Git Re-Basin, algorithm 1, arXiv:2209.04836).

One class at a time is solved exactly with all others held, until nothing changes. Three things are
not in the paper: classes within classes are solved together with the outer one; only classes whose
neighbours changed are visited, and only gains that changed are computed; and one of the starts
decides the classes one after another, each from those already decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fxrebasin.layout import IntArray
from fxrebasin.solvers.assignment import ROUNDING, assign, assign_in_place, improves
from fxrebasin.solvers.blocks import Block, focus
from fxrebasin.solvers.families import Evidence, Family, Gathered, gather
from fxrebasin.solvers.inner_problems import InnerProblems
from fxrebasin.solvers.nested import match_pairs, solve
from fxrebasin.solvers.on_device import clear_order, to_host
from fxrebasin.solvers.pair_table import Pairing
from fxrebasin.solvers.pairs import Pair
from fxrebasin.solvers.placement import Placement
from fxrebasin.solvers.scaling import Gains, Prices

_KEPT = 1.25


class CoordinateDescent:
    """The state of a descent: what is decided, and which families have to be looked at again.

    Args:
        families: of all classes that may move.
        placement: where to start from; changed in place.
        report: called after each step with the number of families that are waiting.
        frugal: whether to do without a second matrix where one is solved, which takes longer.
    """

    def __init__(
        self,
        families: Sequence[Family],
        placement: Placement,
        report: Callable[[int], None] = lambda waiting: None,
        *,
        frugal: bool = False,
    ) -> None:
        self._frugal = frugal
        self.families = families
        self.placement = placement
        self.sweeps = 0
        self._report = report
        self._neighbours = [family.neighbours() for family in families]
        # Where a member meets itself, a step may fall short of what its gains say.
        self._coupled = [
            not near.isdisjoint(family.members)
            for family, near in zip(families, self._neighbours, strict=True)
        ]
        self._stale = set(range(len(families)))
        self._prices: dict[int, Prices] = {}
        # Gains are kept for the next visit where they take less memory than the tensors that they
        # are of: the others are made of so few columns that to make them anew takes no longer than
        # to solve for them. Together they take at most this multiple of one family's tensors.
        largest = max((sum(p.a.nbytes for p in f.pairs()) for f in families), default=0)
        self._budget = int(_KEPT * largest)
        grams = [gram for family in families for gram in family.all_grams()]
        self._grams = [gram for gram in grams if gram.is_small]
        self._is_tight = sum(gram.full_bytes for gram in self._grams) > self._budget

    def decide(self) -> None:
        """Give every class a permutation, the clearest first, each from what is already decided."""
        self._stale = set()
        waiting = list(range(len(self.families)))
        evidence: dict[int, Evidence] = {}
        while waiting:
            for k in waiting:
                if k not in evidence:
                    evidence[k] = self.families[k].evidence(self.placement)
            k = max(waiting, key=lambda w: evidence[w].strength)
            waiting.remove(k)
            news = self._step(k, evidence[k])
            for w in waiting:
                if not self._neighbours[w].isdisjoint(news):
                    del evidence[w]
            self._report(len(waiting))
        self._note(self.placement.decide_rest())

    def descend(self, generator: np.random.Generator, most_sweeps: int) -> None:
        """Sweep over the families in random order until nothing changes.

        Args:
            generator: for the order.
            most_sweeps: the most sweeps to make.
        """
        while self._stale and self.sweeps < most_sweeps:
            self.sweeps += 1
            for k in generator.permutation(len(self.families)):
                if k in self._stale:
                    self._step(int(k))
                    self._report(len(self._stale))

    def visit(self, k: int) -> set[str]:
        """Solve for one family with everything else as it is, decided or not.

        Args:
            k: its number.

        Returns:
            Names of the classes that became known or changed.
        """
        family, known = self.families[k], self.placement.stamps
        decided = all(name in known for name in (*self._neighbours[k], *family.members))
        return self._step(k, None if decided else family.evidence(self.placement))

    def _step(self, k: int, evidence: Evidence | None = None) -> set[str]:
        """Solve for one family; returns the classes that changed."""
        self._stale.discard(k)
        family = self.families[k]
        news = self._solved(k, evidence)
        known = self.placement.stamps
        if self._coupled[k] and all(n in known for n in (*news, *self._neighbours[k])):
            changed = self._set_if_it_pays(family, news)
        else:
            changed = self.placement.set(news)
        kept = sum(gram.kept_bytes for gram in self._grams) if self._is_tight else 0
        for gram in family.all_grams():
            if kept > self._budget or not gram.is_small:
                gram.forget()
        self._note(changed)
        return changed

    def _solved(self, k: int, evidence: Evidence | None) -> dict[str, IntArray]:
        """The best permutations of a family with everything else as it is."""
        family, placement = self.families[k], self.placement
        gathered = gather(family, placement, evidence)
        if not family.inner:
            if gathered.own is None:
                return {}
            clear = None if gathered.own.is_cpu else clear_order(gathered.own)
            if clear is not None:
                return {family.root: clear}
            own = to_host(gathered.own)
            now = placement.arrays[family.root] if family.root in placement.stamps else None
            prices = None if self._frugal else self._prices.setdefault(k, np.zeros(family.size))
            return {family.root: best_order(own, now, prices)}
        linear = _inner_gains(family, gathered)
        if not family.is_free:
            return _solved_inside(family, placement, linear, gathered.blocks)
        constant = None if gathered.own is None else to_host(gathered.own)[None]
        return _solved_pairs(family, placement, constant, linear, gathered.blocks)

    def _set_if_it_pays(self, family: Family, news: dict[str, IntArray]) -> set[str]:
        """Take a step only if the objective grows; gains do not show that for classes that meet."""
        pairs, placement = family.pairs(), self.placement
        before = total_agreement(pairs, placement)
        old = {name: placement.arrays[name] for name in news}
        changed = placement.set(news)
        if not changed:
            return changed
        after = total_agreement(pairs, placement)
        if after - before > ROUNDING * (abs(after) + abs(before)):
            return changed
        placement.set(old)
        return set()

    def _note(self, changed: set[str]) -> None:
        """Remember which families a change concerns."""
        for k, names in enumerate(self._neighbours):
            if not names.isdisjoint(changed):
                self._stale.add(k)


def _inner_gains(family: Family, gathered: Gathered) -> dict[str, Gains]:
    """Gains of each inner class for all pairs of outer units: (1, n, n, size, size)."""
    n = family.size
    inner = {}
    for name, gram in gathered.grams.items():
        size = len(gram) // n
        inner[name] = to_host(gram).reshape(1, n, size, n, size).swapaxes(2, 3)
    return inner


def best_order(gains: Gains, now: IntArray | None, prices: Prices | None) -> IntArray:
    """The best permutation; the present one if that is as good.

    Args:
        gains: floats of shape (n, n).
        now: int64 of shape (n,), the present permutation; None if there is none.
        prices: as for `assign`; None to do without a second matrix.
    """
    chosen = assign_in_place(gains, now) if prices is None else assign(gains, now, prices)
    return chosen if now is None or improves(gains, chosen, now) else now


def _solved_pairs(
    family: Family,
    placement: Placement,
    own: Gains | None,
    linear: dict[str, Gains],
    blocks: list[tuple[Block, int]],
) -> dict[str, IntArray]:
    """Pair the outer units, each pair at its best inside."""
    known = {name: array[None] for name, array in placement.known_arrays().items()}
    owned = {name for block, _ in blocks for name in block.names()}
    parts = [focus(block, at, known, owned) for block, at in blocks]
    current = None
    if all(name in known for name in family.members):
        inner = {n: np.moveaxis(placement.arrays[n], at, 0)[None] for n, at in family.inner.items()}
        current = Pairing(placement.arrays[family.root][None], inner)
    found = match_pairs(
        (1, family.size), [part for part in parts if part is not None], own, linear, current
    )
    news = {
        name: np.moveaxis(found.inner[name][0], 0, at)
        for name, at in family.inner.items()
        if name in found.inner
    }
    return {family.root: found.chosen[0], **news}


def _solved_inside(
    family: Family,
    placement: Placement,
    linear: dict[str, Gains],
    blocks: list[tuple[Block, int]],
) -> dict[str, IntArray]:
    """Match what is inside the outer units, which stay as they are."""
    root = placement.arrays[family.root]
    problems = InnerProblems(
        1,
        tuple(family.inner),
        {name: gains[:, np.arange(family.size), root] for name, gains in linear.items()},
        [block.with_rigid(family.root) for block, _ in blocks],
    )
    known = {name: array[None] for name, array in placement.known_arrays().items()}
    found = solve(problems, known)
    return {name: found[name][0] for name in family.inner if name in found}


def total_agreement(pairs: Sequence[Pair], placement: Placement) -> float:
    """The objective: the inner product of the reference and the arranged model.

    Args:
        pairs: the tensors.
        placement: in which all classes are known.
    """
    return sum(pair.agreement(placement) for pair in pairs)
