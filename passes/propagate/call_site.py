"""Find out which module and which line of the model called an operator."""

from __future__ import annotations

import linecache
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch._ops import OpOverload

from fxrebasin.passes.fields.origin import Origin
from fxrebasin.passes.propagate import constants
from fxrebasin.running import devices, operators
from fxrebasin.running.module_calls import ModuleCalls

_PASSES, _RUNNING = Path(__file__).parent.parent, Path(operators.__file__).parent
_TORCH = str(Path(torch.__file__).parent) + os.sep
_OURS = (str(_PASSES) + os.sep, str(_RUNNING) + os.sep)
_WRAPPERS = (_TORCH + "_dynamo", _TORCH + "_compile.py")  # stand around a mode's functions
_REFUSING = torch.distributions.distribution.__file__
_BETWEEN = (constants.__file__, devices.__file__)  # stand between the model and torch


class CallSite:
    """Follows the running modules of a model, to name the place of each operator call."""

    def __init__(self, model: nn.Module) -> None:
        self._calls = ModuleCalls(model)
        self._counts: Counter[str] = Counter()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep track of the module that is running."""
        with self._calls.watch():
            yield

    def describe(self, operator: str, op: OpOverload | None = None) -> Origin:
        """Where the call that is being made comes from; its node gets a name of its own."""
        module = self._calls.innermost
        path = module or "forward"
        self._counts[path] += 1
        count = self._counts[path]
        node = path if count == 1 else f"{path}#{count}"
        return Origin(operator, node, self._source(), op, module)

    @staticmethod
    def refuses() -> bool:
        """Whether torch itself looks, to refuse the arguments or the samples of a distribution."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith((*_OURS, *_WRAPPERS)):
            frame = frame.f_back
        return frame is not None and frame.f_code.co_filename == _REFUSING

    def _source(self) -> str:
        found = self._model_frame(sys._getframe(2))
        if found is None:
            return ""
        line = linecache.getline(found.f_code.co_filename, found.f_lineno).strip()
        return f"{found.f_code.co_filename}:{found.f_lineno}: {line}"

    @staticmethod
    def _model_frame(frame: FrameType | None) -> FrameType | None:
        """The innermost frame of the model's own code: neither torch's nor that of the analysis.

        Walks out of the analysis, through the model, and gives up when it enters the analysis
        again: beyond that is the code that asked for it.
        """
        in_analysis = True
        while frame is not None:
            name = frame.f_code.co_filename
            if name in _BETWEEN:
                in_analysis = False
            elif name.startswith(_OURS):
                if not in_analysis:
                    return None
            else:
                in_analysis = False
                if not name.startswith((_TORCH, "<")):
                    return frame
            frame = frame.f_back
        return None
