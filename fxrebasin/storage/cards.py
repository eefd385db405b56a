"""Model cards: what was done, above what the folder that was read says of itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

CARD = "README.md"

_HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def card_with(card: str, previous: str) -> str:
    """A model card above another one, with the entries of both headers.

    What the header that was there says, such as the licence, stays; lists (tags) are joined.

    Args:
        card: the new text, with a header in YAML or without.
        previous: the text of the folder that was read.

    Example:
        >>> new, old = "---\\ntags: [merged]\\n---\\n# New\\n", "---\\nlicense: mit\\n---\\n# Old"
        >>> print(card_with(new, old))
        ---
        license: mit
        tags:
        - merged
        ---
        # New
        <BLANKLINE>
        ---
        <BLANKLINE>
        # Old
    """
    header, text = _parted(card)
    old_header, old_text = _parted(previous)
    below = f"\n---\n\n{old_text.lstrip()}" if old_text.strip() else ""
    return _joined(old_header, header) + text + below


def _parted(card: str) -> tuple[str, str]:
    """What is between the lines of the header, and what is below it."""
    found = _HEADER.match(card)
    return (found.group(1), card[found.end() :]) if found else ("", card)


def _joined(old: str, new: str) -> str:
    if not new.strip() or not old.strip():
        return _framed(old if old.strip() else new)
    entries, added = _entries(old), _entries(new)
    if entries is None or added is None:
        return _framed(old)  # what cannot be understood is best left alone
    for name, value in added.items():
        here = entries.get(name, value)
        if isinstance(here, list) and isinstance(value, list):
            entries[name] = [*here, *(item for item in value if item not in here)]
        else:
            entries[name] = here
    return _framed(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))


def _framed(header: str) -> str:
    return f"---\n{header}---\n" if header.strip() else ""


def _entries(header: str) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(header)
    except (yaml.YAMLError, RecursionError):
        return None
    return dict(found) if isinstance(found, Mapping) else None
