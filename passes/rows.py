"""Rows of integers: numbering them, telling them apart, hashing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Table = npt.NDArray[np.int64]
"""A relation: one row per distinct tuple of labels, one column per field."""

_MOST = 1 << 62


def _joint_code(columns: Sequence[Ints]) -> tuple[Ints, int]:
    """One number per row, equal for equal rows, and a bound that all numbers are below."""
    code = np.zeros(columns[0].size, dtype=np.int64)
    span = 1
    for column in columns:
        if not column.size:
            continue
        low = int(column.min())
        width = int(column.max()) - low + 1
        values = column - low
        if span * width >= _MOST:
            code = np.unique(code, return_inverse=True)[1].reshape(-1)
            span = int(code.max()) + 1
        if span * width >= _MOST:
            values = np.unique(values, return_inverse=True)[1].reshape(-1)
            width = int(values.max()) + 1
        code = code * width + values
        span *= width
    return code, span


def row_codes(columns: Sequence[Ints]) -> Ints:
    """Number the rows of aligned columns so that equal rows get equal numbers, from 0 on."""
    code, span = _joint_code(columns)
    if _is_dense(code, span):
        present = np.zeros(span, dtype=np.bool_)
        present[code] = True
        return np.asarray((np.cumsum(present) - 1)[code], dtype=np.int64)
    return np.asarray(np.unique(code, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def distinct_rows(columns: Sequence[Ints]) -> Table:
    """The distinct tuples of aligned columns, sorted."""
    code, span = _joint_code(columns)
    if _is_dense(code, span):
        at = np.full(span, -1, dtype=np.int64)
        at[code] = np.arange(code.size)
        first = at[at >= 0]
    else:
        first = np.unique(code, return_index=True)[1]
    return np.stack([column[first] for column in columns], axis=1)


def _is_dense(code: Ints, span: int) -> bool:
    """Whether a table of all numbers costs less than sorting those that occur."""
    return span <= 8 * code.size + 64


def mix(values: npt.NDArray[np.generic], salt: int) -> Hashes:
    """The finaliser of splitmix64, salted."""
    with np.errstate(over="ignore"):
        whole = values if values.dtype == np.uint64 else values.astype(np.int64).view(np.uint64)
        z: Hashes = whole.astype(np.uint64, copy=False)
        z = z + np.uint64((salt * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def multiset_hashes(rows: Ints) -> Hashes:
    """One number per row, equal for rows that hold the same numbers in any order."""
    with np.errstate(over="ignore"):
        return np.asarray(mix(rows, 9).sum(axis=1, dtype=np.uint64))
