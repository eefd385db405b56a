"""What element-wise operators do when an element is multiplied by a number.

Beside the rule of an operator, which says how axes correspond, this says which numbers it commutes
with: `op(s * x) = s ** degree * op(x)` for positive `s`, and whether it is odd or even. An operator
that is not listed commutes with none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any


class Parity(Enum):
    """What becomes of the sign of an element."""

    ODD = "odd"
    EVEN = "even"


@dataclass(frozen=True)
class Scaling:
    """How an element-wise operator of one tensor answers to a factor.

    Attributes:
        degree: of homogeneity for positive factors; None if it is not homogeneous.
        parity: for the factor -1; None if it is neither odd nor even.
    """

    degree: Fraction | None
    parity: Parity | None


_LINEAR = Scaling(Fraction(1), Parity.ODD)
_POSITIVE = Scaling(Fraction(1), None)
_ODD = Scaling(None, Parity.ODD)
_EVEN = Scaling(None, Parity.EVEN)

SCALINGS: dict[str, Scaling] = {
    **dict.fromkeys(("neg", "positive", "deg2rad", "rad2deg", "conj_physical"), _LINEAR),
    **dict.fromkeys(("relu", "leaky_relu"), _POSITIVE),
    **dict.fromkeys(
        (
            *("tanh", "sin", "asin", "atan", "sinh", "asinh", "atanh", "tan", "erf", "erfinv"),
            *("hardshrink", "softshrink", "round", "trunc", "frac", "special_i1", "special_i1e"),
        ),
        _ODD,
    ),
    **dict.fromkeys(("cos", "cosh", "sinc", "i0", "special_i0e"), _EVEN),
    **dict.fromkeys(("sign", "sgn"), Scaling(Fraction(0), Parity.ODD)),
    "abs": Scaling(Fraction(1), Parity.EVEN),
    "square": Scaling(Fraction(2), Parity.EVEN),
    "sqrt": Scaling(Fraction(1, 2), None),
    "rsqrt": Scaling(Fraction(-1, 2), None),
    "reciprocal": Scaling(Fraction(-1), Parity.ODD),
}
"""By the operator's name; all overloads that work on one tensor, with any other arguments."""


def scaling_of(name: str, args: Mapping[str, Any]) -> Scaling | None:
    """How an element-wise operator of one tensor answers to a factor; None if it does not.

    Args:
        name: of the operator, without its overload.
        args: its other arguments, by name.
    """
    if name == "pow":
        return _power(args.get("exponent"))
    if name in ("hardtanh", "clamp") and _is_odd_range(name, args):
        return _ODD
    if name in ("clamp", "clamp_min") and args.get("min") == 0 and args.get("max") is None:
        return _POSITIVE
    if name in ("clamp", "clamp_max") and args.get("max") == 0 and args.get("min") is None:
        return _POSITIVE
    return SCALINGS.get(name)


def _is_odd_range(name: str, args: Mapping[str, Any]) -> bool:
    low, high = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    least, most = args.get(low), args.get(high)
    if not isinstance(least, (int, float)) or not isinstance(most, (int, float)):
        return False
    return least == -most


def _power(exponent: Any) -> Scaling | None:
    if isinstance(exponent, bool) or not isinstance(exponent, (int, float)):
        return None
    if float(exponent).is_integer():
        even = int(exponent) % 2 == 0
        return Scaling(Fraction(int(exponent)), Parity.EVEN if even else Parity.ODD)
    return Scaling(Fraction(exponent), None)
