"""Aligning many models in rounds: all of them at once with the mean of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import torch

from fxrebasin.counted import counted
from fxrebasin.interruption import interruptible
from fxrebasin.merge.alignment import AlignmentProblem
from fxrebasin.merge.dealing import dealt, gathered, handed_on
from fxrebasin.merge.states import is_number, moved_towards, own_state, wide_dtype
from fxrebasin.permutation import Permutation
from fxrebasin.progress import LateBar
from fxrebasin.ranks import Alone
from fxrebasin.solvers.assignment import ROUNDING
from fxrebasin.solvers.weight_search import Start, WeightSearch

_MOST_PARTS = 8


@dataclass(frozen=True)
class _Found:
    """How one model is to move.

    Args:
        move: from its present order.
        interrupted: whether the search was.
    """

    move: Permutation
    interrupted: bool


@dataclass(frozen=True)
class _Turn:
    """Which models decide at once.

    Args:
        part: number of the part that they are.
        parts: in how many all models are cut; those that follow each other are in different ones.
    """

    part: int
    parts: int

    def is_of(self, index: int) -> bool:
        """Whether a model is one of them."""
        return index % self.parts == self.part


def align_in_rounds(problem: AlignmentProblem) -> Sequence[Permutation]:
    """Align all models with the first, and then, round by round, each with the mean of the others.

    Models of a round do not wait for each other, so that they can be dealt to processes. What all
    of them decide at once may fit together badly: where the mean would be shorter afterwards, which
    is when all pairs agree less, a round does not count, and from then on half as many models
    decide at once, down to one of eight; with up to nine models that is one after the other. On
    Ctrl-C the best permutations so far are returned, with a warning.

    Args:
        problem: what to align.
    """
    rounds = _Rounds(problem)
    with rounds.alone_interruptible():
        rounds.run()
    return rounds.permutations


class _Rounds:
    """Permutations of all models, the same in all processes after each round."""

    def __init__(self, problem: AlignmentProblem) -> None:
        self._problem, self._team = problem, problem.team
        self.permutations = [problem.symmetry.identity()] * len(problem.sources)
        self._mine = dealt(len(self.permutations), problem.team)
        self._interrupted = False

    def alone_interruptible(self) -> AbstractContextManager[None]:
        """Ctrl-C ends it with what was found, unless other processes would wait for this one."""
        return interruptible() if isinstance(self._team, Alone) else nullcontext()

    def run(self) -> None:
        """Sweep over the models until no permutation changes, or none for the better."""
        self._round("aligning with the first", None, _Turn(0, 1))
        mean, parts = self._mean(), 1
        for sweep in range(self._problem.max_sweeps):
            before, stage = self.permutations, f"aligning, sweep {sweep + 1}"
            was = parts
            for part in range(was):
                if parts > was or self._interrupted:
                    break
                kept = self.permutations
                if not self._round(stage, mean, _Turn(part, parts)):
                    continue
                found = self._mean()
                if self._length(found) > self._length(mean) * (1 + ROUNDING):
                    mean = found
                else:
                    self.permutations, parts = kept, min(2 * parts, _MOST_PARTS)
            if self._interrupted or (parts == was and self.permutations == before):
                return

    def _round(self, stage: str, mean: Mapping[str, torch.Tensor] | None, turn: _Turn) -> bool:
        """Align some models with the mean of the others, or with the first one; returns whether one
        of them moved.

        Args:
            stage: for the progress.
            mean: of all models; None for the first one.
            turn: who they are.
        """
        found = gathered(self._team, lambda: self._aligned(stage, mean, turn))
        moves = {k: one.move for k, one in found.items() if not one.move.is_identity}
        self.permutations = [
            moves[k].compose(p) if k in moves else p for k, p in enumerate(self.permutations)
        ]
        self._interrupted = any(one.interrupted for one in found.values())
        return bool(moves)

    def _aligned(
        self, stage: str, mean: Mapping[str, torch.Tensor] | None, turn: _Turn
    ) -> dict[int, _Found]:
        found: dict[int, _Found] = {}
        others = [index for index in self._mine if index and turn.is_of(index)]
        target = self._arranged(0) if mean is None and others else mean or {}
        weights = self._problem.sources.weights
        with closing(LateBar()) as report:
            for done, index in enumerate(others):
                report(stage, done, len(others))
                own = self._arranged(index)
                weight = 0.0 if mean is None else weights[index]
                found[index] = self._towards(own, target, weight, anew=mean is None)
                if found[index].interrupted:
                    break
        return found

    def _towards(
        self,
        own: Mapping[str, torch.Tensor],
        target: Mapping[str, torch.Tensor],
        weight: float,
        *,
        anew: bool,
    ) -> _Found:
        """Align one model: from its present order, or from usual starts.

        Args:
            own: its tensors in the present order.
            target: what it is aligned with.
            weight: how much of that is the model itself, and does not count.
            anew: whether it also starts elsewhere.
        """
        others = {
            name: (target[name] - weight * tensor) / (1 - weight) if weight else target[name]
            for name, tensor in own.items()
            if name in target
        }
        pair = self._problem.pair(own, {**own, **others})
        with closing(LateBar()) as report:
            search = WeightSearch(pair.weights, pair.seed, report)
            search.start_all(search.usual_starts() if anew else (Start.IDENTITY,))
        return _Found(pair.permutation(search.solution().arrays), search.interrupted)

    def _length(self, mean: Mapping[str, torch.Tensor]) -> float:
        """Squared length of a mean, in what is compared."""
        problem = self._problem
        groups = problem.symmetry.layout
        return sum(
            float(torch.linalg.vector_norm(counted(mean[name], groups.get(name, ())))) ** 2
            for name in problem.names
            if name in mean
        )

    def _arranged(self, index: int) -> dict[str, torch.Tensor]:
        """The tensors of a model that have units, in their present order."""
        state = self._problem.sources.state(index)
        order = self.permutations[index]
        return {name: order.permute_tensor(name, state[name]) for name in self._problem.layout}

    def _mean(self) -> dict[str, torch.Tensor]:
        """The weighted mean of the numbers of all models as they lie."""
        sources = self._problem.sources

        def add(mean: dict[str, torch.Tensor]) -> None:
            for index in self._mine:
                share = sources.share(index)
                for name, tensor in self._arranged(index).items():
                    if is_number(tensor):
                        wide = tensor.to(wide_dtype(tensor.dtype))
                        old = mean.get(name)
                        mean[name] = wide if old is None else moved_towards(old, wide, share)

        return handed_on(self._team, add, own_state(sources.model))
