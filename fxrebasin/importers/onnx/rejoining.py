"""Uses of a tensor that were taken apart, and go together after all since nothing is lost by it.

A weight may be read twice and mean one thing: where a filter is divided by its length, the length
is the same in whatever order its elements are. Alone that use would stay as it is while the other
moves, and the file would need the filter twice. So each such use is tried as one with the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fxrebasin.importers.onnx.graph import Parsed
from fxrebasin.importers.onnx.module import OnnxModule
from fxrebasin.symmetry import Symmetry

SAME_ORDER = 1e-9
"""Orders are sums of logarithms, which are rounded."""


def rejoined(
    parsed: Parsed,
    module: OnnxModule,
    symmetry: Symmetry,
    of_joined: Callable[[Mapping[str, str]], Symmetry],
) -> Symmetry:
    """The symmetry with uses of one tensor that move alike, where that leaves as much freedom.

    Args:
        parsed: the model, with a tensor for each use.
        module: what was analysed.
        symmetry: of that.
        of_joined: the symmetry where uses are one with another: names in the file, with the names
            of those that they are one with.
    """
    keys = {name: key for key, name in module.file_names.items()}
    uneven = _uneven(parsed, symmetry, keys)
    pending = [uneven] if uneven else []
    joined: list[str] = []
    while pending:
        tried = pending.pop()
        together = {name: parsed.uses[name].tensor for name in (*joined, *tried)}
        found = of_joined(together)
        if found.log10_order() >= symmetry.log10_order() - SAME_ORDER:
            joined += tried
            symmetry = _for_each_use(
                found, symmetry, {keys[n]: keys[t] for n, t in together.items()}
            )
        elif len(tried) > 1:
            middle = len(tried) // 2
            pending += [tried[:middle], tried[middle:]]
    return symmetry


def _uneven(parsed: Parsed, symmetry: Symmetry, keys: Mapping[str, str]) -> list[str]:
    """Uses that stay along an axis along which another use of their tensor moves."""
    moving: dict[str, list[set[int]]] = {}
    uses: dict[str, list[str]] = {}
    for name, use in parsed.uses.items():
        uses.setdefault(use.tensor, []).append(name)
    for tensor, copies in uses.items():
        for name in (tensor, *copies):
            groups = symmetry.layout.get(keys[name], ())
            moving.setdefault(tensor, []).append({axis for g in groups for axis in g.axes})
    return [
        name
        for tensor, copies in uses.items()
        if len({frozenset(axes) for axes in moving[tensor]}) > 1
        for name in copies
    ]


def _for_each_use(found: Symmetry, apart: Symmetry, together: Mapping[str, str]) -> Symmetry:
    """The symmetry of joined uses, said of each of them."""
    layout = dict(found.layout)
    layout.update({name: layout[first] for name, first in together.items() if first in layout})
    return replace(found, layout=layout, shapes=apart.shapes, parameters=apart.parameters)
