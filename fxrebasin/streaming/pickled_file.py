"""A file of `torch.save`, whose tensors are read by position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fxrebasin.storage.tree import KeyPath, at
from fxrebasin.streaming.archive import Lying


@dataclass(frozen=True)
class PickledFile:
    """A file of `torch.save`.

    Args:
        path: where it is.
        content: what is in it, with `Lying` in the place of tensors.
    """

    path: Path
    content: Any

    @cached_property
    def tree(self) -> Any:
        """What is in it, with tensors on the meta device; ties stay ties."""
        made: dict[Lying, torch.Tensor] = {}

        def without_data(value: Any) -> Any:
            if isinstance(value, Lying):
                return made.setdefault(value, value.stored.on_meta())
            if isinstance(value, dict):
                return {key: without_data(item) for key, item in value.items()}
            if type(value) in (list, tuple):
                return type(value)(map(without_data, value))
            return value

        return without_data(self.content)

    def read(self, place: KeyPath, rows: slice | None) -> torch.Tensor:
        """A tensor, or some of its rows, in memory of its own."""
        lying: Lying = at(self.content, place)
        with self.path.open("rb", buffering=0) as file:
            return lying.read(file, rows)
