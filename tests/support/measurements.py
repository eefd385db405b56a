"""Measurements for a process of their own: endless, dying, and well."""

from __future__ import annotations

import os
from collections.abc import Callable

from benchmarks.support.equivalence_table import Row

Tell = Callable[[Row], None]


def never_ending(tell: Tell) -> Row:
    tell(Row("endless", classes=3))
    while True:
        pass


def dying(tell: Tell) -> Row:
    os._exit(3)


def measuring(tell: Tell) -> Row:
    return Row("endless", reason="")
