"""Which tensors go to one file."""

from __future__ import annotations

from collections.abc import Mapping

from fxrebasin.streaming.schedule import BLOCK
from fxrebasin.streaming.stored import Stored

_LEAST_FILES = 16


def bundles(forms: Mapping[str, Stored]) -> list[list[str]]:
    """Names of tensors by the files that they go to: large ones alone, small ones together.

    There are more files than a few, so that several processes have something to do.

    Args:
        forms: of the tensors, in order.

    Example:
        >>> import torch
        >>> bundles({name: Stored((2,), torch.float32) for name in "ab"})
        [['a'], ['b']]
    """
    most = min(BLOCK, sum(form.bytes for form in forms.values()) // _LEAST_FILES)
    found: list[list[str]] = [[]]
    for name, form in forms.items():
        if found[-1] and sum(forms[n].bytes for n in found[-1]) + form.bytes > most:
            found.append([])
        found[-1].append(name)
    return found
