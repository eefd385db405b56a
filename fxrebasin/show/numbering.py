"""Numbers and names of classes, the same in tables and in pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fxrebasin.layout import PermutationClass
from fxrebasin.show.folding import sketch
from fxrebasin.symmetry import Symmetry


def numbers_of(symmetry: Symmetry) -> dict[str, str]:
    """By the name of a class, its number, such as `#3`; those in repeated layers share one."""
    rows = enumerate(folded_classes(symmetry), start=1)
    return {name: f"#{number}" for number, (_, names) in rows for name in names}


def folded_classes(symmetry: Symmetry) -> Iterator[tuple[PermutationClass, tuple[str, ...]]]:
    """Classes, each with the names of those in its place in layers that are alike."""
    alike = dict(sketch(symmetry).alike)
    for outer, others in list(alike.items()):
        alike |= _alike_within(symmetry, (outer, *others))
    shown: set[str] = set()
    for c in symmetry.classes:
        if c.name not in shown:
            names = alike.get(c.name, (c.name,))
            shown |= {c.name, *names}
            yield c, names


def _alike_within(symmetry: Symmetry, outer: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Classes inside of classes that are alike, such as dimensions within heads.

    Args:
        symmetry: of the model.
        outer: names of classes that are alike; the first may come twice.
    """
    inner = [
        [c for c in symmetry.classes if c.within and c.within[0] == name]
        for name in dict.fromkeys(outer)
    ]
    forms = {tuple((c.size, c.count, len(c.axes)) for c in classes) for classes in inner}
    if len(forms) != 1:
        return {}
    rows = zip(*inner, strict=True)
    return {row[0].name: tuple(c.name for c in row) for row in rows}


def common_name(names: Sequence[str]) -> str:
    """Names of things in repeated layers as one.

    Args:
        names: at least one.

    Example:
        >>> common_name(["layers.0.fc.weight[0]", "layers.1.fc.weight[0]", "layers.2.fc.weight[0]"])
        'layers.{0…2}.fc.weight[0]'
    """
    columns = list(zip(*(name.split(".") for name in names), strict=False))
    if len({name.count(".") for name in names}) > 1:
        return f"{names[0]} … {names[-1]}"
    return ".".join(c[0] if len(set(c)) == 1 else _range(c[0], c[-1]) for c in columns)


def _range(first: str, last: str) -> str:
    """Names that are numbered, from the first to the last."""
    numbered = re.fullmatch(r"(.*?)\d+", first)
    stem = numbered[1] if numbered is not None and last.startswith(numbered[1]) else ""
    return f"{stem}{{{first[len(stem) :]}…{last[len(stem) :]}}}"
