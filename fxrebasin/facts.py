"""Facts for people: a name and what there is to say about it, line by line."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

_GAP = 2
_LEAST = 30
_MOST, _LONGEST = 8, 90  # facts of an object, and what they say
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


class Brief:
    """Shows itself in a few facts, in a terminal and in a notebook, however large it is."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}\n{textwrap.indent(facts_text(self._shown()), '  ')}"

    def _repr_html_(self) -> str:
        """For notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._shown()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"

    def _facts(self) -> Sequence[tuple[str, str]]:
        """What is shown, the most important first."""
        return ()

    def _shown(self) -> list[tuple[str, str]]:
        """As many facts as fit, each on one line."""
        facts = list(self._facts())
        return [(name, textwrap.shorten(text, _LONGEST)) for name, text in facts[:_MOST]]
