"""Models to merge, which may be files: each is read when it is needed and let go afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import nn

from fxrebasin.errors import InputError
from fxrebasin.merge.states import states_of, usable
from fxrebasin.models.checks import unwrap
from fxrebasin.passes.trace.graph_state import named_state
from fxrebasin.running.batches import State


class Sources:
    """Models of one architecture, checked.

    Args:
        models: modules, or paths of files of weights.
        model: the architecture; the first module when left out.
        weights: of the models, above 0; all the same when left out.

    Raises:
        ArchitectureMismatchError: the models differ in names, shapes or ties of their tensors.
        CheckpointError: a file cannot be read.
        InputError: a model cannot be used, there is none, or weights do not fit.
    """

    def __init__(
        self, models: Sequence[Any], model: nn.Module | None, weights: Sequence[float] | None
    ) -> None:
        self._models = _listed(models)
        self.weights = _shares(weights, len(self._models))
        self.model = _architecture(self._models, model)
        for index in range(len(self)):
            self.state(index)  # to refuse it before any work

    def __len__(self) -> int:
        return len(self._models)

    def state(self, index: int) -> State:
        """The weights of one model by the names of the architecture; read now if it is a file.

        Args:
            index: of the model.
        """
        return states_of(self.model, [self._models[index]], [f"models[{index}]"])[1]

    def whole_state(self, index: int) -> State:
        """The weights of one model, with the buffers that its state dict leaves out if it is a
        module.

        Args:
            index: of the model.
        """
        module = self.module(index)
        own = {} if module is None else named_state(module)
        return {**own, **self.state(index)}

    def module(self, index: int) -> nn.Module | None:
        """One model, unless it is a file.

        Args:
            index: of the model.
        """
        found = self._models[index]
        return unwrap(found) if isinstance(found, nn.Module) else None

    @property
    def heaviest(self) -> int:
        """Index of the model that counts most; the first of several."""
        return max(range(len(self)), key=lambda k: self.weights[k])


def _listed(models: Sequence[Any]) -> list[Any]:
    if isinstance(models, nn.Module | str | PathLike) or not isinstance(models, Sequence):
        raise InputError(
            f"models is a {type(models).__name__}; pass a list of modules or of paths of files"
        )
    if not models:
        raise InputError("models is empty; pass at least one")
    return list(models)


def _architecture(models: Sequence[Any], model: nn.Module | None) -> nn.Module:
    if model is not None:
        return usable(model)
    for index, candidate in enumerate(models):
        if isinstance(candidate, nn.Module):
            return usable(candidate, f"models[{index}]")
    raise InputError(
        "all models are files of weights; pass model=, a module of their architecture, whose own "
        "weights do not matter"
    )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights whose sum is 1."""
    if weights is None:
        return [1 / count] * count
    given = [float(weight) for weight in weights]
    if len(given) != count:
        raise InputError(f"weights has {len(given)} numbers for {count} models")
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise InputError(f"weights are {given}; they have to be numbers above 0")
    return [weight / sum(given) for weight in given]
