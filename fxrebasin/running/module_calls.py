"""Which module of a model is running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


class ModuleCalls:
    """Follows the calls of modules in the thread that watches; those of others are not seen."""

    def __init__(self, model: nn.Module) -> None:
        """Start with none.

        Args:
            model: whose modules go by their paths, and all others by the name of their class.
        """
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._stack: list[str] = []
        self._thread: int | None = None

    @property
    def innermost(self) -> str:
        """The module that is running; empty for the model itself, and if there is none."""
        return self._stack[-1] if self._stack else ""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep track of the modules that this thread runs."""
        self._thread = threading.get_ident()
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() == self._thread:
            self._stack.append(self._paths.get(id(module), type(module).__name__))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack and threading.get_ident() == self._thread:
            self._stack.pop()
