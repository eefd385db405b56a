"""Running the reference of a matching problem, which may have other tensors than the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fxrebasin.passes.match.problem import MatchingProblem
from fxrebasin.passes.match.representatives import outputs_of
from fxrebasin.running.batches import Batch, Runner, State, runner


@dataclass(frozen=True)
class ReferenceRun:
    """The reference, ready to run.

    Args:
        runner: of its own code, or of the model's.
        state: the weights to run it with.
        borrowed: tensors of the model in the place of those that the reference does not have.
    """

    runner: Runner
    state: State
    borrowed: State

    def own_modules(self, names: Sequence[str], batch: Batch) -> list[str]:
        """The modules whose outputs are the reference's: no borrowed tensor has a part in them.

        That is found by experiment: with other values in these tensors such outputs stay the same.

        Args:
            names: of modules of the model.
            batch: what to experiment with.
        """
        known = dict(self.runner.model.named_modules())
        found = [name for name in names if name in known]
        if not self.borrowed:
            return found
        generator = torch.Generator().manual_seed(0)
        others = {name: _another(tensor, generator) for name, tensor in self.borrowed.items()}
        batch = self.runner.moved(batch)
        first, second = (
            outputs_of(self.runner, found, {**self.state, **state}, batch)
            for state in (self.borrowed, others)
        )
        return [name for name in found if _alike(first.get(name, []), second.get(name, []))]


@contextmanager
def reference_run(problem: MatchingProblem, running: Runner) -> Iterator[ReferenceRun]:
    """The reference by its own code where it has tensors of its own, otherwise by the model's.

    Args:
        problem: whose reference.
        running: the model.
    """
    module = problem.reference
    by_itself = bool(problem.ignored) and module is not None and module is not problem.model
    if module is not None and by_itself:
        state = module.state_dict()
        if all(name in state for name in problem.compared):  # under the names of the model
            with runner(module, problem.seed, "the reference") as reference:
                yield ReferenceRun(reference, state, {})
            return
    lacking = (name for name in problem.ignored if name not in problem.state_a)
    borrowed = running.own({name: problem.state_b[name] for name in lacking})
    yield ReferenceRun(running, problem.state_a, borrowed)


def _another(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A tensor with larger values; integers as they are."""
    if not tensor.is_floating_point():
        return tensor
    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)
    return tensor + (0.5 + noise) * (1 + tensor.abs().max() if tensor.numel() else 1)


def _alike(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))
