"""What a merge is made of: checkpoints, the order of their units, and a formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from fxrebasin.cli.aligning import Aligned, moved
from fxrebasin.cli.work import Bench
from fxrebasin.merge.combinations import Combination, combine
from fxrebasin.merge.states import tied_names
from fxrebasin.merge.views import StateView
from fxrebasin.running.batches import State
from fxrebasin.storage.reading import Checkpoint
from fxrebasin.storage.reference import ignored_in


@dataclass(frozen=True)
class Ingredients:
    """Checkpoints that were read and matched.

    Args:
        bench: has the model.
        checkpoints: in their order.
        base: what differences are taken from; None if the formula takes none.
        aligned: of the checkpoints, and of the base behind them.
    """

    bench: Bench
    checkpoints: tuple[Checkpoint, ...]
    base: Checkpoint | None
    aligned: Aligned

    @property
    def everything(self) -> tuple[Checkpoint, ...]:
        """The checkpoints, and the base behind them."""
        return self.checkpoints if self.base is None else (*self.checkpoints, self.base)

    @property
    def kept(self) -> tuple[str, ...]:
        """Tensors that are those of the first checkpoint: ignored, or another has none like it."""
        first, *others = (checkpoint.state for checkpoint in self.everything)
        ignored = set(ignored_in(self.bench.module, self.bench.reading.ignore))
        return tuple(
            name
            for name, tensor in first.items()
            if name in ignored
            or any(name not in state or state[name].shape != tensor.shape for state in others)
        )

    def combined(
        self, combination: Combination, *, aligned: bool = True
    ) -> dict[str, torch.Tensor]:
        """The merged weights, in the dtypes of the first checkpoint.

        Args:
            combination: what is computed.
            aligned: False to leave the units of all checkpoints as they are.
        """
        permutations = self.aligned.permutations if aligned else (None,) * len(self.everything)
        views = [
            StateView(checkpoint.state, permutation=permutation)
            for checkpoint, permutation in zip(self.everything, permutations, strict=True)
        ]
        module = self.bench.module
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        return combine(
            views[: len(self.checkpoints)],
            combination,
            views[-1] if self.base is not None else None,
            buffers=[name for name in views[0] if name not in parameters],
            kept=self.kept,
            ties=tied_names(module),
        )

    def whole(self, index: int, *, aligned: bool = True) -> State:
        """The state of one checkpoint, with what it lacks taken from the first.

        Args:
            index: of the checkpoint.
            aligned: False to leave its units as they are.
        """
        checkpoint = self.checkpoints[index]
        own = moved(checkpoint, self.aligned.permutations[index] if aligned else None)
        first = self.checkpoints[0].state
        kept = set(self.kept)
        return {name: first[name] if name in kept else own.get(name, first[name]) for name in first}


def classes_by_tensor(aligned: Aligned) -> Mapping[str, Sequence[str]]:
    """The names of the classes that move a tensor, by its name."""
    found: dict[str, list[str]] = {}
    for permutation in aligned.permutations:
        for c in permutation.classes if permutation is not None else ():
            for name, _ in c.axes:
                if c.name not in found.setdefault(name, []):
                    found[name].append(c.name)
    return found
