"""One operator call, as it is kept for explaining and for pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from fxrebasin.passes.fields.fields import Value
from fxrebasin.passes.propagate.tracks import Track

Entry: TypeAlias = tuple[str, "Value | Track"]
"""A tensor in a record: its name, and its value, or its track while that is not looked up yet."""


@dataclass(frozen=True, eq=False)
class Record:
    """One operator call, for explaining: its operands and outputs with their fields."""

    origin: int
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[tuple[str, Value], ...]
