"""States of which tensors are made when they are looked up, so that no second copy is held."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch

from fxrebasin.alignment import Alignment, Certificate
from fxrebasin.running.batches import State


class StateView(Mapping[str, torch.Tensor]):
    """Some tensors of a state, with their units in another order if asked for.

    Args:
        state: what is looked at; left as it is.
        names: of the tensors; all when left out.
        permutation: of the units, or an alignment.

    Example:
        >>> list(StateView({"a": torch.ones(1), "b": torch.ones(1)}, names=["b"]))
        ['b']
    """

    def __init__(
        self,
        state: State,
        names: Collection[str] | None = None,
        permutation: Certificate | None = None,
    ) -> None:
        if isinstance(permutation, Alignment):  # which acts on all at once
            state, permutation = permutation.apply(state, check_constants=False), None
        self._state = state
        self._names = [name for name in state if names is None or name in names]
        self._permutation = permutation

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._state[name]
        if self._permutation is None or name not in self._permutation.layout:
            return tensor
        return self._permutation.permute_tensor(name, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
