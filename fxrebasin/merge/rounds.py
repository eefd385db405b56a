"""Aligning many models in rounds: several of them at once, each with the mean of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch

from fxrebasin.interruption import interruptible
from fxrebasin.merge.alignment import AlignmentProblem
from fxrebasin.merge.dealing import dealt, gathered, handed_on
from fxrebasin.merge.states import is_number, moved_towards, own_state, wide_dtype
from fxrebasin.merge.turns import Turn, settle, squared_length, take_out
from fxrebasin.permutation import Permutation
from fxrebasin.progress import LateBar
from fxrebasin.ranks import Alone
from fxrebasin.solvers.weight_search import Start, WeightSearch

_ALL = Turn(sweep=0, part=0, parts=1)

Orders: TypeAlias = Sequence[Permutation]


@dataclass(frozen=True)
class _Found:
    """How one model is to move.

    Args:
        move: from its present order.
        interrupted: whether the search was.
    """

    move: Permutation
    interrupted: bool


def align_in_rounds(problem: AlignmentProblem) -> Sequence[Permutation]:
    """Align all models with the first, and then, round by round, each with the mean of the others.

    Which models decide at once, and when it is over, is said in `turns.py`. On Ctrl-C the best
    permutations so far are returned, with a warning.

    Args:
        problem: what to align.
    """
    rounds = _Rounds(problem)
    with rounds.alone_interruptible():
        rounds.start()
        settle(rounds, problem.max_sweeps)
    return rounds.orders


class _Rounds:
    """Models that are aligned in rounds; all processes find the same.

    Args:
        problem: what to align.

    Attributes:
        orders: of their units.
        interrupted: whether a search was.
    """

    def __init__(self, problem: AlignmentProblem) -> None:
        self._problem, self._team = problem, problem.team
        self._mine = dealt(len(problem.sources), problem.team)
        self.orders: Orders = [problem.symmetry.identity()] * len(problem.sources)
        self.interrupted = False

    def alone_interruptible(self) -> AbstractContextManager[None]:
        """Ctrl-C ends it with what was found, unless other processes would wait for this one."""
        return interruptible() if isinstance(self._team, Alone) else nullcontext()

    def start(self) -> None:
        """Align all models with the first one."""
        self.orders = self._moved("aligning with the first", None, _ALL) or self.orders

    def turned(self, mean: Mapping[str, torch.Tensor], turn: Turn) -> Orders | None:
        """Align the models of a turn, each with the mean of the others; None if none moved."""
        return self._moved(f"aligning, sweep {turn.sweep + 1}", mean, turn)

    def _moved(
        self, stage: str, mean: Mapping[str, torch.Tensor] | None, turn: Turn
    ) -> Orders | None:
        """The orders after some models were aligned by the processes that they are dealt to.

        Args:
            stage: for the progress.
            mean: of all models; None for the first one instead.
            turn: who is aligned.
        """
        found = gathered(self._team, lambda: self._aligned(stage, mean, turn))
        self.interrupted = any(one.interrupted for one in found.values())
        moves = {k: one.move for k, one in found.items() if not one.move.is_identity}
        if not moves:
            return None
        return [moves[k].compose(p) if k in moves else p for k, p in enumerate(self.orders)]

    def _aligned(
        self, stage: str, mean: Mapping[str, torch.Tensor] | None, turn: Turn
    ) -> dict[int, _Found]:
        found: dict[int, _Found] = {}
        others = [index for index in self._mine if turn.is_of(index)]
        target = self._arranged(0, self.orders) if mean is None and others else mean or {}
        weights = self._problem.sources.weights
        with closing(LateBar()) as report:
            for done, index in enumerate(others):
                report(stage, done, len(others))
                own = self._arranged(index, self.orders)
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
        others = dict(target)
        for name, tensor in own.items() if weight else ():
            if name in target:
                others[name] = target[name].clone()
                take_out(others[name], tensor, weight)
        pair = self._problem.pair(own, {**own, **others})
        with closing(LateBar()) as report:
            search = WeightSearch(pair.weights, pair.seed, report)
            search.start_all(search.usual_starts() if anew else (Start.IDENTITY,))
        return _Found(pair.permutation(search.solution().arrays), search.interrupted)

    def length(self, mean: Mapping[str, torch.Tensor]) -> float:
        """Squared length of a mean, in what is compared."""
        problem = self._problem
        layout = problem.symmetry.layout
        names = [name for name in problem.names if name in mean]
        return sum(squared_length(name, [(0, mean[name])], layout) for name in names)

    def _arranged(self, index: int, orders: Orders) -> dict[str, torch.Tensor]:
        """The tensors of a model that have units, in their present order."""
        state = self._problem.sources.state(index)
        order = orders[index]
        return {name: order.permute_tensor(name, state[name]) for name in self._problem.layout}

    def mean(self, orders: Orders) -> dict[str, torch.Tensor]:
        """The weighted mean of the numbers of all models as they lie."""
        sources = self._problem.sources

        def add(mean: dict[str, torch.Tensor]) -> None:
            for index in self._mine:
                share = sources.share(index)
                for name, tensor in self._arranged(index, orders).items():
                    if is_number(tensor):
                        wide = tensor.to(wide_dtype(tensor.dtype))
                        old = mean.get(name)
                        mean[name] = wide if old is None else moved_towards(old, wide, share)

        return handed_on(self._team, add, own_state(sources.model))
