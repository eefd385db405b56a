"""How messages list things, and whether they speak of arguments or of options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_ON_COMMAND_LINE = ContextVar("fxrebasin.on_command_line", default=False)


def listed(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first few of some items, and how many more there are.

    Args:
        items: in the order in which they are shown.
        most: how many are shown.
        separator: what stands between two of them.

    Example:
        >>> listed(["a", "b", "c", "d"], most=2)
        'a, b and 2 more'
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


_LONG = 200


def escaped(text: object, most: int = _LONG) -> str:
    r"""A text from a file or a foreign error, as it may be shown: of one line and not too long.

    Control characters, by which a terminal could be led to show something else, become escapes.

    Args:
        text: of anyone.
        most: characters that are kept.

    Example:
        >>> print(escaped("a" + chr(27) + "[2Jb"), escaped("long" * 9, 10))
        a\x1b[2Jb longlonglo… (36 characters)
    """
    whole = str(text)
    kept = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in whole[:most])
    return kept if len(whole) <= most else f"{kept}… ({len(whole)} characters)"


_LONGEST_LINE = 2000
_MOST_LINES = 400


def presentable(text: str) -> str:
    r"""A text of several lines as it may be shown: no control characters, no endless lines.

    Args:
        text: with names from anywhere.

    Example:
        >>> presentable("a\tb\nc")
        'a\\tb\nc'
    """
    lines = text.split("\n")
    kept = [escaped(line, _LONGEST_LINE) for line in lines[:_MOST_LINES]]
    more = [f"and {len(lines) - _MOST_LINES} lines more"] if len(lines) > _MOST_LINES else []
    return "\n".join([*kept, *more])


def spoken(python: str, option: str) -> str:
    """Words for whoever reads a message: a program's author, or someone at a command line.

    Args:
        python: what to pass in a call.
        option: what to write on the command line.

    Example:
        >>> spoken("overwrite=True", "--overwrite")
        'overwrite=True'
    """
    return option if _ON_COMMAND_LINE.get() else python


@contextmanager
def speaking_options() -> Iterator[None]:
    """Messages that are made inside are for someone at a command line.

    Example:
        >>> with speaking_options():
        ...     spoken("overwrite=True", "--overwrite")
        '--overwrite'
    """
    token = _ON_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _ON_COMMAND_LINE.reset(token)
