"""Checks of options that are numbers; each refusal names the option and what was given."""

from __future__ import annotations

import math

from fxrebasin.errors import InputError


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse an option that is not a whole number, or is too small.

    Args:
        name: of the option.
        value: what was given for it.
        least: the smallest number that it may be.

    Raises:
        InputError: with name and value.

    Example:
        >>> check_count("epochs", 3)
    """
    if type(value) is not int or value < least:
        raise InputError(f"{name} is {value!r}; it has to be a whole number of at least {least}")


def check_positive(name: str, value: object) -> None:
    """Refuse an option that is not a finite number above 0.

    Args:
        name: of the option.
        value: what was given for it.

    Raises:
        InputError: with name and value.

    Example:
        >>> check_positive("rate", 0.5)
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise InputError(f"{name} is {value!r}; it has to be a number above 0")
