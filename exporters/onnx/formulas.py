"""How large formulas of open sizes may get while a model is traced."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import PurePath
from typing import Any

import sympy

from fxrebasin.errors import FxRebasinError

MOST_PARTS = 1000
"""Of a formula that is decided.

Where images are padded to whole windows, layer after layer, formulas double from one to the next,
and what PyTorch takes for each grows faster. Four stages of Swin have up to 939 parts, after some
fifteen seconds; networks that go beyond this bound may take an hour. It is not time that is
bounded, since the same file has to come out on every machine.
"""

_NOT_THE_MODEL = frozenset({"torch", "sympy"})
"""Folders of the code that is between a model and its formulas."""


class LargeFormulaError(FxRebasinError):
    """A formula of sizes has more parts than are allowed; the text says where."""


@contextmanager
def bounded_formulas(environment: Any, most: int) -> Iterator[None]:
    """Let PyTorch decide on formulas of so many parts at most.

    Args:
        environment: of symbols, in which a model is traced.
        most: parts of a formula.

    Raises:
        LargeFormulaError: one has more.
    """
    # what is called on the way to each decision, and is over when PyTorch notes who asked for it
    decide: Callable[..., Any] = environment._maybe_evaluate_static
    parts: dict[sympy.Basic, int] = {}

    @wraps(decide)  # PyTorch clears its cache
    def decide_if_small(formula: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(formula, sympy.Basic) and _parts(formula, parts) > most:
            raise LargeFormulaError(f"formulas of sizes grow beyond {most} parts ({_place()})")
        return decide(formula, *args, **kwargs)

    environment._maybe_evaluate_static = decide_if_small  # of this object only
    try:
        yield
    finally:
        del environment._maybe_evaluate_static


def _parts(formula: sympy.Basic, known: dict[sympy.Basic, int]) -> int:
    """Numbers, symbols and functions in a formula, as often as they are written in it."""
    found = known.get(formula)
    if found is None:
        found = 1 + sum(_parts(part, known) for part in formula.args)
        known[formula] = found
    return found


def _place() -> str:
    """The line of the model that is traced."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and not _NOT_THE_MODEL & {*PurePath(frame.filename).parts}:
            return f"{frame.filename}:{frame.lineno} in {frame.name}"
    return "in PyTorch"
