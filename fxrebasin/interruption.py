"""Ctrl-C ends a search with what it has found so far, and a warning instead of an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fxrebasin.errors import FxRebasinWarning

MATCHING_INTERRUPTED = "matching was interrupted: the best permutation so far is used"


@contextmanager
def interruptible(message: str = MATCHING_INTERRUPTED) -> Iterator[None]:
    """A block that Ctrl-C ends with a warning; what it found so far has to be kept outside it.

    Args:
        message: the warning.

    Example:
        >>> with interruptible():
        ...     found = "best so far"
    """
    try:
        yield
    except KeyboardInterrupt:
        warnings.warn(message, category=FxRebasinWarning, stacklevel=4)
