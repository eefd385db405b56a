"""Aligning many models with the mean of the others (Git Re-Basin, algorithm 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from fxrebasin.counted import counted
from fxrebasin.errors import InputError
from fxrebasin.interruption import interruptible
from fxrebasin.layout import Layout
from fxrebasin.merge.dealing import Team
from fxrebasin.merge.sources import Sources
from fxrebasin.merge.states import is_number, wide_dtype
from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.permutation import Permutation
from fxrebasin.progress import LateBar
from fxrebasin.ranks import ALONE
from fxrebasin.running.batches import State
from fxrebasin.solvers.weight_search import Start, WeightSearch
from fxrebasin.symmetry import Symmetry

_STARTS = ("growing", "identity")


@dataclass(frozen=True)
class AlignmentProblem:
    """Models that are to be brought to one order of units.

    Args:
        sources: the models.
        symmetry: of their architecture.
        seed: of the order in which models are taken, and in which matching visits classes.
        max_sweeps: over the models.
        team: the processes that share the work.
    """

    sources: Sources
    symmetry: Symmetry
    seed: int
    max_sweeps: int
    team: Team = ALONE

    @property
    def names(self) -> list[str]:
        """The tensors whose agreement counts: parameters that units can be permuted in."""
        parameters = dict(self.sources.model.named_parameters())
        return [name for name in self.layout if name in parameters]

    @property
    def layout(self) -> Layout:
        """Where the units are in the tensors that all models have."""
        ignored = set(self.sources.ignored)
        return {n: groups for n, groups in self.symmetry.layout.items() if n not in ignored}

    def pair(self, state_b: State, state_a: State) -> MatchingProblem:
        """The matching problem of two models.

        Args:
            state_b: of the model that moves.
            state_a: of the other.
        """
        return MatchingProblem(
            self.symmetry,
            state_b,
            state_a,
            self.names,
            seed=self.seed,
            ignored=self.sources.ignored,
        )


def align_with_mean(problem: AlignmentProblem, *, init: str = "growing") -> Sequence[Permutation]:
    """Algorithm 3 of Git Re-Basin: align each model with the mean of the others, again and again.

    Models are taken in a random order, until no permutation changes; each is aligned by coordinate
    descent, so that the sum of the agreements of all pairs never falls. On Ctrl-C the best
    permutations so far are returned, with a warning.

    Args:
        problem: what to align.
        init: in the first sweep, `"growing"` aligns a model with the mean of those that were
            taken before it; `"identity"`, as in the paper, with the mean of all others in their
            original order.

    Raises:
        InputError: there is no such start.
    """
    if init not in _STARTS:
        raise InputError(f"no start {init!r}; init is one of: {', '.join(_STARTS)}")
    alignment = MeanAlignment(problem)
    alignment.run(None if init == "growing" else alignment.permutations)
    return alignment.permutations


class MeanAlignment:
    """Permutations of all models, and the mean of those that were taken so far.

    Args:
        problem: what to align.
    """

    def __init__(self, problem: AlignmentProblem) -> None:
        self._problem = problem
        identity = problem.symmetry.identity()
        self.permutations = [identity] * len(problem.sources)
        self.interrupted = False
        self._total: dict[str, torch.Tensor] = {}
        self._taken: dict[int, float] = {}

    def run(self, start: Sequence[Permutation] | None, *, polishing: bool = False) -> None:
        """Sweep over the models until no permutation changes.

        Args:
            start: where to start; None to begin with one model and add the others one by one.
            polishing: the start is a good one, from which matching always goes on. Otherwise it
                also starts afresh in the first sweep.
        """
        finished = False
        with closing(LateBar()) as report, interruptible():
            generator = np.random.default_rng(self._problem.seed)
            if start is not None:
                self.permutations = list(start)
                for index in range(len(self.permutations)):
                    self._take(index, self._arranged(index))
            for sweep in range(self._problem.max_sweeps):
                changed = False
                for done, index in enumerate(generator.permutation(len(self.permutations))):
                    report(f"aligning, sweep {sweep + 1}", done, len(self.permutations))
                    changed |= self._align(int(index), anew=not polishing and not sweep)
                    if self.interrupted:
                        return
                if not changed:
                    break
            finished = True
        self.interrupted |= not finished

    def value(self) -> float:
        """Squared length of the weighted mean of all models, which grows with their agreement."""
        total: dict[str, torch.Tensor] = {}
        for index, weight in enumerate(self._problem.sources.weights):
            arranged = self._arranged(index)
            for name in self._problem.names:
                own = counted(arranged[name], self._problem.symmetry.layout.get(name, ()))
                part = weight * own.to(_widest(own))
                total[name] = total[name] + part if name in total else part
        return sum(float(torch.linalg.vector_norm(tensor)) ** 2 for tensor in total.values())

    def _align(self, index: int, anew: bool) -> bool:
        """Align one model with the mean of the others; returns whether it moved."""
        own = self._arranged(index)
        others = self._others(index, own)
        if others is None:
            self._take(index, own)
            return True
        pair = self._problem.pair(own, others)
        with closing(LateBar()) as report:
            search = WeightSearch(pair.weights, pair.seed, report)
            search.start(Start.IDENTITY)
            if anew:
                search.start_all([s for s in search.usual_starts() if s is not Start.IDENTITY])
        self.interrupted |= search.interrupted
        found = pair.permutation(search.solution().arrays)
        if index in self._taken and found.is_identity:
            return False
        again = index in self._taken
        for name, tensor in own.items():  # one at a time: a moved copy of all would be a model more
            if again:
                self._take(index, {name: tensor}, -1)
            self._take(index, {name: found.permute_tensor(name, tensor)})
        self.permutations[index] = found.compose(self.permutations[index])
        return True

    def _arranged(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of a model that have units, in their present order."""
        state = self._problem.sources.state(index)
        order = self.permutations[index]
        return {name: order.permute_tensor(name, state[name]) for name in self._problem.layout}

    def _others(self, index: int, own: State) -> dict[str, torch.Tensor] | None:
        """The mean of all other models that were taken; None if there is none."""
        without = {k: weight for k, weight in self._taken.items() if k != index}
        if not without:
            return None
        weight, left = self._taken.get(index, 0.0), sum(without.values())
        return {
            name: ((self._total[name] - weight * tensor) / left).to(wide_dtype(tensor.dtype))
            if is_number(tensor)
            else tensor
            for name, tensor in own.items()
        }

    def _take(self, index: int, arranged: State, sign: int = 1) -> None:
        """Add a model to the mean, or take it out."""
        weight = self._problem.sources.weights[index]
        for name, tensor in arranged.items():
            if is_number(tensor):
                part = sign * weight * tensor.to(_widest(tensor))
                self._total[name] = self._total[name] + part if name in self._total else part
        self._taken[index] = weight


def to_first_order(permutations: Sequence[Permutation]) -> tuple[Permutation, ...]:
    """Permutations to the order of the first model, with the same maps between models.

    Args:
        permutations: of every model to an order that all share.
    """
    back = permutations[0].inverse()
    return tuple(back.compose(permutation) for permutation in permutations)


def _widest(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of sums that tensors are added to and taken from."""
    return torch.complex128 if tensor.is_complex() else torch.float64
