"""Factor strings, in the style of einops: what an operator does to the axes of its operands.

A factor names an index space that the operator loops over. Factors that appear in two operands tie
those axes; factors that are missing from the output are summed over. `(g i)` is an axis that splits
into two factors; a factor that starts with `!` is a position and cannot be permuted. `...` stands
for the axes of a tensor that are not written, however many, and `!...` for as many positions; the
last of them in one tensor is the last of them in the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from fxrebasin.errors import InputError

Axes = tuple[tuple[str, ...], ...]

_POSITION = "!"
_REST = ("...", f"{_POSITION}...")
_WORD = re.compile(r"\([^()]*\)|[^\s()]+|[()]")
_FACTOR = re.compile(r"!?[A-Za-z]\w*")


@dataclass(frozen=True, eq=False)
class Pattern:
    """A parsed factor string: for each tensor, its axes as tuples of factors."""

    text: str
    inputs: tuple[Axes, ...]
    output: Axes

    @property
    def tensors(self) -> tuple[Axes, ...]:
        """The operands and the output."""
        return (*self.inputs, self.output)

    @cached_property
    def positions(self) -> frozenset[str]:
        """The factors that cannot be permuted."""
        names = (name for axes in self.tensors for name in factors_of(axes))
        return frozenset(name for name in names if name.startswith(_POSITION))


def factors_of(axes: Iterable[tuple[str, ...]]) -> list[str]:
    """The factors of some axes, major to minor."""
    return [name for axis in axes for name in axis]


@lru_cache(maxsize=1024)
def pattern(text: str) -> Pattern:
    """Parse and check a factor string.

    Args:
        text: such as `"n (g i), (g o) i -> n (g o)"`.

    Raises:
        InputError: it is not of this form, or says something that no operator does.

    Example:
        >>> pattern("... c !h !w -> ... (c !k) !l").output
        (('...',), ('c', '!k'), ('!l',))
    """
    left, *rights = text.split("->")
    if len(rights) != 1:
        raise _wrong(text, f"{len(rights)} arrows", "operands, one arrow `->` and an output")
    inputs = tuple(_axes(text, part) for part in left.split(","))
    found = Pattern(text, inputs, _axes(text, rights[0]))
    _check(found)
    return found


def _axes(text: str, part: str) -> Axes:
    """The axes of one tensor."""
    found = []
    for word in _WORD.findall(part):
        names = tuple(word[1:-1].split()) if word.startswith("(") else (word,)
        wrong = [name for name in names if not _FACTOR.fullmatch(name)]
        if not names or (wrong and word not in _REST):
            raise _wrong(text, repr(word), "a factor `n`, a position `!n`, `(n m)` or `...`")
        found.append(names)
    return tuple(found)


def _check(found: Pattern) -> None:
    for axes in found.tensors:
        names = Counter(name.removeprefix(_POSITION) for name in factors_of(axes))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise _wrong(found.text, f"{twice[0]!r} twice in one tensor", "each factor once")
    given = {name for axes in found.inputs for name in factors_of(axes)}
    written = factors_of(found.output)
    for name in sorted({*given, *written} - set(_REST)):
        if f"{_POSITION}{name}" in {*given, *written}:
            raise _wrong(
                found.text, f"both {name!r} and '{_POSITION}{name}'", "a factor or a position"
            )
    for name in written:
        if name not in given and not name.startswith(_POSITION):
            raise _wrong(
                found.text, f"{name!r} in the output only", "a factor of an operand, or a position"
            )


def _wrong(text: str, found: str, expected: str) -> InputError:
    return InputError(
        f"the factor string {text!r} has {found}; expected {expected}. Mend it where the rule is "
        "registered; passes/fields/patterns.py says how they are written."
    )


def spelled_out(found: Pattern, ranks: tuple[int, ...]) -> Pattern:
    """The pattern with `...` replaced by as many factors as each tensor has axes left.

    Args:
        found: a pattern.
        ranks: how many axes each tensor has.

    Raises:
        InputError: a tensor has another number of axes than are written.
    """
    if len(ranks) != len(found.tensors):
        raise _wrong(found.text, f"{len(found.inputs)} operands", f"{len(ranks) - 1}")
    *inputs, output = (
        _spelled_out(found.text, axes, rank)
        for axes, rank in zip(found.tensors, ranks, strict=True)
    )
    return Pattern(found.text, tuple(inputs), output)


def _spelled_out(text: str, axes: Axes, rank: int) -> Axes:
    count = rank - len(axes) + 1
    open_ended = any(axis[0] in _REST for axis in axes)
    if count < 0 or (count != 1 and not open_ended):
        raise _wrong(text, f"{len(axes)} axes for a tensor of {rank}", "as many as there are")
    result: list[tuple[str, ...]] = []
    for axis in axes:
        rest = [(f"{axis[0]}{index}",) for index in range(count, 0, -1)]
        result += rest if axis[0] in _REST else [axis]
    return tuple(result)


def merged(found: Pattern, ones: frozenset[str]) -> Pattern:
    """The pattern without the factors of size 1 in axes that are split, such as a single group."""
    *inputs, output = (
        tuple(tuple(name for name in axis if name not in ones) or axis[:1] for axis in axes)
        for axes in found.tensors
    )
    return Pattern(found.text, tuple(inputs), output)


def factor_sizes(
    found: Pattern, shapes: Sequence[Sequence[int]], known: Mapping[str, int]
) -> dict[str, int]:
    """Sizes of all factors from the tensors' shapes; of a split axis one may be unknown.

    An axis of size 1 may be one that is broadcast: where another tensor has more, that counts.
    """
    sizes = dict(known)
    for axes, shape in zip(found.tensors, shapes, strict=True):
        for names, size in zip(axes, shape, strict=True):
            if len(names) == 1 and sizes.get(names[0], 1) == 1:
                sizes[names[0]] = size
            unknown = [name for name in names if name not in sizes]
            for name in unknown[:1]:
                for other in names:
                    size //= sizes.get(other, 1)
                sizes[name] = size
    return sizes
