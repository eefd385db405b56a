"""Files that were just written, read again: they hold what they should, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fxrebasin.errors import EquivalenceError
from fxrebasin.importers.onnx.graph import Parsed
from fxrebasin.importers.onnx.loading import read
from fxrebasin.importers.onnx.tensors import same_bits


def tensors_written(
    path: Path, before: Parsed, changed: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """The tensors of a file that was written, if they are those that it was to have.

    Args:
        path: of the file, which nobody else knows of yet.
        before: the model that was written with other numbers.
        changed: these, by name; all others are to be as before.

    Raises:
        EquivalenceError: a tensor has other bits, or the file has others.
    """
    found = read(path, "the result", mapped=True).parsed.tensors
    if found.keys() != before.tensors.keys():
        raise EquivalenceError("the result has other tensors than the model")
    for name, tensor in found.items():
        expected = changed[name] if name in changed else before.tensors[name]
        if not same_bits(tensor, expected):
            raise EquivalenceError(f"{name} was not written as it should be; nothing was written")
    return found
