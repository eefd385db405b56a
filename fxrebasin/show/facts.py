"""Facts for people: a name and what there is to say about it, line by line."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_GAP = 2
_LEAST = 30
_STEP = 1024
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def facts_text(facts: Sequence[tuple[str, str]], width: int | None = None) -> str:
    """Names at the left, aligned, and what belongs to them at the right.

    Args:
        facts: pairs of a name and a text; an empty name goes on with the line before.
        width: of a terminal, at which texts are broken between words; None for none.

    Example:
        >>> print(facts_text([("method", "weight"), ("note", "nothing moved")]))
        method  weight
        note    nothing moved
    """
    margin = max((len(name) for name, _ in facts), default=0) + _GAP
    lines = []
    for name, text in facts:
        room = None if width is None else max(_LEAST, width - margin)
        parts = [
            part
            for line in text.splitlines() or [""]
            for part in ([line] if room is None else textwrap.wrap(line, room) or [""])
        ]
        for number, part in enumerate(parts):
            lines.append(f"{'' if number else name:<{margin}}{part}".rstrip())
    return "\n".join(lines)


def bytes_text(number: int) -> str:
    """A number of bytes for people.

    Example:
        >>> bytes_text(900), bytes_text(46_830_571)
        ('900 bytes', '44.7 MiB')
    """
    size, unit = float(number), 0
    while size >= _STEP and unit + 1 < len(_UNITS):
        size, unit = size / _STEP, unit + 1
    return f"{number} bytes" if not unit else f"{size:.1f} {_UNITS[unit]}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with what is counted.

    Example:
        >>> counted(1, "class", "classes"), counted(2, "sweep")
        ('1 class', '2 sweeps')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
