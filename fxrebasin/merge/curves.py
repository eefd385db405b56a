"""Curves through models: how much each model counts at a position on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from scipy.interpolate import make_interp_spline

from fxrebasin.errors import InputError

Weights: TypeAlias = Callable[[float], Sequence[float]]
"""From a position in [0, 1] to one weight per model; their sum is 1."""

DEGREES: Mapping[str, int] = {"linear": 1, "quadratic": 2, "cubic": 3, "spline": 3}


def spline_weights(path: str, count: int) -> Weights:
    """Weights of the models on an interpolating spline with evenly spaced knots.

    Args:
        path: a key of `DEGREES`; `"spline"` is the natural cubic spline. With fewer models than
            the degree needs it is lowered to their number less one.
        count: number of models, at least 2.

    Example:
        >>> spline_weights("linear", 3)(0.25)
        [0.5, 0.5, 0.0]
    """
    knots = np.linspace(0, 1, count)
    degree = DEGREES[path]
    natural = path == "spline" and count > 2
    curve = make_interp_spline(
        knots,
        np.eye(count),
        k=degree if natural else min(degree, count - 1),
        bc_type="natural" if natural else None,
    )

    def weights(t: float) -> list[float]:
        at = t * (count - 1)
        if math.isclose(at, round(at), abs_tol=1e-12):  # a model itself, without rounding
            return [float(k == round(at)) for k in range(count)]
        return [float(weight) for weight in curve(t)]

    return weights


def bezier_weights(count: int) -> Weights:
    """Bernstein polynomials: weights of the control points of a Bézier curve, ends included.

    Args:
        count: number of control points.

    Example:
        >>> bezier_weights(3)(0.5)
        [0.25, 0.5, 0.25]
    """
    n = count - 1
    return lambda t: [math.comb(n, k) * (1 - t) ** (n - k) * t**k for k in range(count)]


def nearest_model(t: float, count: int) -> int:
    """Index of the model whose knot is nearest; the later of two.

    Args:
        t: position in [0, 1].
        count: number of models.
    """
    return math.floor(t * (count - 1) + 0.5)


def check_positions(steps: object, positions: Sequence[float] | None) -> tuple[float, ...]:
    """The positions at which models are wanted.

    Args:
        steps: number of evenly spaced positions.
        positions: given by the caller instead.

    Raises:
        InputError: there are too few, or one is not in [0, 1].
    """
    if positions is None:
        if type(steps) is not int or steps < 2:
            raise InputError(f"steps is {steps!r}; it has to be a whole number of at least 2")
        return tuple(k / (steps - 1) for k in range(steps))
    try:
        wrong = [t for t in positions if isinstance(t, bool) or not 0 <= t <= 1]
    except TypeError as error:
        raise InputError(f"positions are {positions!r}; pass a list of numbers") from error
    if wrong or not len(positions):
        raise InputError(
            f"positions {'hold ' + repr(wrong[0]) if wrong else 'are empty'}; "
            "pass numbers from 0 (the first model) to 1 (the last)"
        )
    return tuple(float(t) for t in positions)
