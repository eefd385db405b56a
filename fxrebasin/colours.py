"""The colours of pictures: one for each meaning, wherever it is drawn.

They are those of Okabe and Ito, which stay apart for readers who see few colours. What has no
meaning of its own gets other colours, of Paul Tol's muted ones, and dashes where these repeat.
"""

from __future__ import annotations

from enum import Enum


class Meaning(Enum):
    """What a curve or a dot is; the value is its colour."""

    UNTOUCHED = "#D55E00"
    """A and B as they were trained."""
    UNTOUCHED_RECALIBRATED = "#E69F00"
    """The same, with BatchNorm statistics taken anew."""
    REBASED = "#0072B2"
    """A and rebased B."""
    RECALIBRATED = "#009E73"
    """The same, with BatchNorm statistics taken anew."""
    REPAIRED = "#CC79A7"
    """The same after REPAIR."""
    MODELS = "#000000"
    """The models themselves, from which something else is made."""
    CONTROL = "#56B4E9"
    """B and rebased B, or what is aligned only in part."""
    PEER = "#888888"
    """What another tool found."""


DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_FURTHER = ("#332288", "#882255", "#999933", "#661100")


def colour_of(number: int) -> tuple[str, str]:
    """A colour for what has no meaning of its own, and dashes that differ where colours repeat.

    Args:
        number: of the line, from 0; all pairs up to 15 are different.

    Example:
        >>> colour_of(0), colour_of(4)
        (('#332288', '-'), ('#332288', '--'))
    """
    return _FURTHER[number % len(_FURTHER)], DASHES[number // len(_FURTHER) % len(DASHES)]
