"""Dictionaries with default values, which torch's restricted loader makes but does not fill.

They are read as plain ones, and become what they were when all is read.
"""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import torch


class DefaultDicts:
    """Those of one file."""

    def __init__(self) -> None:
        self._plain: list[dict[Any, Any]] = []
        self._made: dict[int, collections.defaultdict[Any, Any]] = {}

    def make(self, factory: Any = None) -> dict[Any, Any]:
        """A plain dictionary in the place of one with default values."""
        plain: dict[Any, Any] = {}
        self._plain.append(plain)
        self._made[id(plain)] = collections.defaultdict(factory)
        return plain

    def restored(self, tree: Any) -> Any:
        """What was read, with dictionaries as they were."""
        if not self._plain:
            return tree
        for plain in self._plain:
            self._made[id(plain)].update(plain)
        return self._restored(tree, {})

    def _restored(self, value: Any, seen: dict[int, Any]) -> Any:
        if id(value) in seen:
            return seen[id(value)]
        made = seen[id(value)] = self._made.get(id(value), value)
        if isinstance(made, dict):
            for key, item in list(made.items()):
                made[key] = self._restored(item, seen)
        elif type(made) is list:
            made[:] = [self._restored(item, seen) for item in made]
        elif type(made) is tuple:
            made = seen[id(value)] = tuple(self._restored(item, seen) for item in made)
        if hasattr(made, "__dict__") and not isinstance(made, type | torch.Tensor | np.ndarray):
            vars(made).update({n: self._restored(item, seen) for n, item in vars(made).items()})
        return made
