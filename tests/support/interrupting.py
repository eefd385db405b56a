"""Batches during which somebody presses Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


class Interrupting(list[tuple[Tensor, Tensor]]):
    """Batches during which somebody presses Ctrl-C, once."""

    def __init__(self, items: list[tuple[Tensor, Tensor]], at: int) -> None:
        super().__init__(items)
        self._left = at

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for item in super().__iter__():
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
            yield item
