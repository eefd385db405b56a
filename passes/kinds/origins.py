"""Where in a model the operators of a graph were called, for people."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from fxrebasin.running.literals import with_literals
from fxrebasin.running.module_calls import ModuleCalls

_TORCH = str(Path(torch.__file__).parent) + os.sep
_MODULES = str(Path(torch.__file__).parent / "nn" / "modules") + os.sep
_OURS = str(Path(__file__).parent.parent) + os.sep


@dataclass(frozen=True)
class CalledAt:
    """Where an operator was called.

    Attributes:
        module: the path of the module that was running; empty for the model itself.
        file: of the line; empty if it is not known.
        line: its number.
    """

    module: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        place = f" in {self.module}" if self.module else ""
        if not self.file:
            return place
        return (
            f"{place} at {self.file}:{self.line}: {linecache.getline(self.file, self.line).strip()}"
        )


class Places:
    """Notes, while a model is written down, by which module and line each node was made.

    Attributes:
        found: the place of each node.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._graph = graph
        self._calls = ModuleCalls(model)
        self._last: fx.Node | None = None
        self.found: dict[fx.Node, CalledAt] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep track of the module that is running."""
        with self._calls.watch(), _Lines(self):
            yield

    def note(self, frame: FrameType | None) -> None:
        """All nodes since the last call were made by the module that runs.

        Args:
            frame: of the line, or of what it called.
        """
        newest = self._graph._root.prev
        if newest is self._last:
            return
        module = self._calls.innermost
        line = _line_of(frame)
        place = CalledAt(module) if line is None else CalledAt(module, *line)
        node = newest
        while node is not self._last and node.op != "root":
            self.found[node] = place
            node = node.prev
        self._last = newest


class _Lines(TorchFunctionMode):
    """Sees each call of a function of torch, before it is taken apart, and keeps its literals."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        func, args, options = with_literals(func, tuple(args), kwargs)
        result = func(*args, **options)
        self._places.note(sys._getframe(1))
        return result


def _line_of(frame: FrameType | None) -> tuple[str, int] | None:
    """The innermost line that is the model's own, or else the outermost of a module of torch."""
    found: tuple[str, int] | None = None
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            return found
        if not name.startswith((_TORCH, "<")):
            return name, frame.f_lineno
        if name.startswith(_MODULES) and found is None and frame.f_code.co_name == "forward":
            found = name, frame.f_lineno
        frame = frame.f_back
    return found
