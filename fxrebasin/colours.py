"""The colours of pictures: one for each meaning, wherever it is drawn.

They are those of Okabe and Ito, which stay apart for readers who see few colours. Where a picture
has more than there are meanings for, `colour_of` gives a line one and a dash pattern of its own.
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

_FURTHER = (
    *(Meaning.RECALIBRATED, Meaning.REPAIRED, Meaning.UNTOUCHED_RECALIBRATED, Meaning.CONTROL),
    *(Meaning.MODELS, Meaning.PEER),
)


def colour_of(number: int) -> tuple[str, str]:
    """A colour for what has no meaning of its own, and dashes that differ where colours repeat.

    Colours of the pair before and after rebasing are left to these.

    Args:
        number: of the line, from 0; all pairs up to 23 are different.

    Example:
        >>> colour_of(0), colour_of(6)
        (('#009E73', '-'), ('#009E73', '--'))
    """
    meaning = _FURTHER[number % len(_FURTHER)]
    return meaning.value, DASHES[number // len(_FURTHER) % len(DASHES)]
