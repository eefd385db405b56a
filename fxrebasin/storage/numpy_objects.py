"""NumPy's numbers, arrays and dtypes from pickles, of plain kinds only.

NumPy's own functions would take a dtype with any flags from a file, and believe it about memory.
What stands here in their place takes numbers, truth values and texts, and checks their sizes.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = "biufcSU"


class PlainDType:
    """A dtype of numbers or texts, as it is written in a pickle."""

    def __init__(self, name: object, align: bool = False, copy: bool = True) -> None:
        self.dtype = np.dtype(name) if isinstance(name, str) else np.dtype(object)
        if self.dtype.kind not in _KINDS:
            raise pickle.UnpicklingError(f"a NumPy dtype {name!r} is not one of plain numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("a NumPy dtype is not one of plain numbers")
        self.dtype = self.dtype.newbyteorder(order)

    def __reduce__(self) -> Any:
        return self.dtype.__reduce__()


class PlainArray(np.ndarray[Any, Any]):
    """An array of a plain dtype, which is written as NumPy's own."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        array = _values(kind, data).reshape(shape, order="F" if fortran else "C")
        plain: Any = array.__reduce__()[2]
        super().__setstate__(plain)

    def __reduce__(self) -> Any:
        return np.asarray(self).__reduce__()


def _values(kind: Any, data: Any) -> NDArray[Any]:
    """The items in a run of bytes."""
    if not isinstance(kind, PlainDType) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a NumPy object does not hold plain numbers")
    return np.frombuffer(data, kind.dtype).copy()


def _scalar(kind: Any, data: Any) -> Any:
    return _values(kind, data)[0]


def _array(*_: Any) -> PlainArray:
    return PlainArray((0,), np.uint8)


def _under(names: tuple[str, ...], made: Any) -> dict[str, Any]:
    return dict.fromkeys(names, made)


NUMPY: Mapping[str, Any] = {
    "numpy.dtype": PlainDType,
    "numpy.ndarray": PlainArray,
    **_under(("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar"), _scalar),
    **_under(("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct"), _array),
}
"""What is made for NumPy's names in a file; the second place is that of NumPy 1."""
