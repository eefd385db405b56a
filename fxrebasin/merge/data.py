"""A loader that gives the same batches in every pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxrebasin.running.batches import Batch, Runner, check_loader, runner


class Data:
    """A loader that gives the same batches in every pass.

    Args:
        loader: of the caller.
        most: number of batches; all when None.

    Raises:
        InputError: the loader can be gone through only once.
    """

    def __init__(self, loader: Iterable[Any], most: int | None) -> None:
        check_loader(loader)
        self._loader, self._most = loader, most
        generator = getattr(loader, "generator", None)
        self._generator = generator if isinstance(generator, torch.Generator) else None
        self._start = None if self._generator is None else self._generator.get_state()

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[tuple[Runner, Iterator[Batch]]]:
        """A runner and the batches of one pass, with the random numbers of every other pass.

        Args:
            model: to run.
        """
        with self._from_the_start(), runner(model, 0) as running:
            yield running, running.batches(self._loader, self._most)

    @contextmanager
    def _from_the_start(self) -> Iterator[None]:
        """A generator of the loader's own is as it was at first, and afterwards as it was."""
        if self._generator is None or self._start is None:
            yield
            return
        before = self._generator.get_state()
        self._generator.set_state(self._start)
        try:
            yield
        finally:
            self._generator.set_state(before)
