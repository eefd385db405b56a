"""How messages list things."""

from __future__ import annotations

from collections.abc import Sequence


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
