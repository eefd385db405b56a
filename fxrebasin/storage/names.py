"""How the names of tensors in a file and in a model correspond.

The same weights have other names where a wrapper held them: DataParallel puts `module.` before all
names, torch.compile `_orig_mod.`, a training framework the name of an attribute, and some averages
leave out all dots. Which of these it is is not looked up in a list of frameworks. It is read off
the names: a prefix is whatever stands before names of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch

Shapes = Mapping[str, torch.Size | None]
"""Shape of each tensor by name; None where it is not known."""

WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_forward_module",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
    }
)
"""What wrappers of a module put into names, also in the middle."""

_MOST = 16  # prefixes that are looked at: those that the most names have


@dataclass(frozen=True)
class Naming:
    """One way to find a model's tensors in a dictionary.

    Args:
        names: name in the file by name in the model, of those that are there in any shape.
        prefix: what stands before the names in the file.
        own_prefix: what stands before the names in the model, and not in the file.
        plain: names are the same but for the prefix.
        fits: how many are there in the shape that they should have.
    """

    names: Mapping[str, str]
    prefix: str = ""
    own_prefix: str = ""
    plain: bool = True
    fits: int = 0


def namings(stored: Shapes, expected: Shapes, prefix: str | None = None) -> list[Naming]:
    """The ways to find a model's tensors in a dictionary, the simplest first.

    Args:
        stored: of the file.
        expected: of the model.
        prefix: the only one that is looked at.

    Example:
        >>> file = {"bert.a.weight": None, "bert.b.weight": None, "head.weight": None}
        >>> [found.prefix for found in namings(file, {"a.weight": None, "b.weight": None})]
        ['bert.']
    """
    found: dict[tuple[tuple[str, str], ...], Naming] = {}
    for spell_stored, spell_expected, splits in _SPELLINGS:
        spelled = _spelled(stored, spell_stored), _spelled(expected, spell_expected)
        if spelled[0] is None or spelled[1] is None:
            continue
        plain = spell_stored is spell_expected is _as_it_is
        for naming in _by_prefix(stored, expected, (spelled[0], spelled[1]), splits, prefix, plain):
            found.setdefault(tuple(naming.names.items()), naming)
    return sorted(found.values(), key=lambda n: (n.prefix != "") + (n.own_prefix != ""))


def _by_prefix(
    stored: Shapes,
    expected: Shapes,
    spelled: tuple[Mapping[str, str], Mapping[str, str]],
    splits: Callable[[str], Iterable[tuple[str, str]]],
    prefix: str | None,
    plain: bool,
) -> Iterator[Naming]:
    """The namings of one spelling: both sides are given as names by their spelling."""
    own, there = spelled[1], spelled[0]
    for own_prefix in _own_prefixes(there, own):
        inner = {
            name.removeprefix(own_prefix): real
            for name, real in own.items()
            if name.startswith(own_prefix)
        }
        prefixes: Iterable[str] = (
            [prefix] if prefix is not None else _prefixes(there, inner, splits)
        )
        for before in prefixes:
            names = {
                real: there[before + name] for name, real in inner.items() if before + name in there
            }
            if names:
                fits = sum(_same(stored[there_], expected[own_]) for own_, there_ in names.items())
                yield Naming(names, before, own_prefix, plain, fits)


def _prefixes(
    stored: Iterable[str],
    expected: Mapping[str, str],
    splits: Callable[[str], Iterable[tuple[str, str]]],
) -> list[str]:
    """What stands before names of the model, the most frequent first."""
    counts = Counter(before for name in stored for before, rest in splits(name) if rest in expected)
    return [before for before, _ in counts.most_common(_MOST)]


def _own_prefixes(stored: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """What stands before names in the model and may be missing in the file."""
    counts = Counter(
        before for name in expected for before, rest in _at_dots(name) if rest in stored
    )
    frequent = [before for before, _ in counts.most_common(3)]
    first = next(iter(expected), "")
    common = [p for p, _ in _at_dots(first) if all(name.startswith(p) for name in expected)]
    return list(dict.fromkeys(["", *common, *frequent]))


def _at_dots(name: str) -> Iterator[tuple[str, str]]:
    """A name cut at each dot, beginning with the whole."""
    yield "", name
    for index, letter in enumerate(name):
        if letter == "." and index + 1 < len(name):
            yield name[: index + 1], name[index + 1 :]


def _within_last(name: str) -> Iterator[tuple[str, str]]:
    """A name cut anywhere after its last dot."""
    for index in range(name.rfind(".") + 1, len(name)):
        yield name[:index], name[index:]


def _as_it_is(name: str) -> str:
    return name


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _without_dots(name: str) -> str:
    return name.replace(".", "")


_SPELLINGS: tuple[
    tuple[Callable[[str], str], Callable[[str], str], Callable[[str], Iterable[tuple[str, str]]]],
    ...,
] = (
    (_as_it_is, _as_it_is, _at_dots),
    (_unwrapped, _unwrapped, _at_dots),
    (_as_it_is, _without_dots, _within_last),
)
"""How names in the file and in the model are spelled before they are compared, and where a prefix
may end. The last is that of averages whose buffers may not have dots in their names."""


def _spelled(names: Iterable[str], spell: Callable[[str], str]) -> dict[str, str] | None:
    """Names by their spelling, or None where two are spelled alike."""
    given = list(names)
    spelled = {spell(name): name for name in given}
    return spelled if len(spelled) == len(given) else None


def _same(stored: torch.Size | None, expected: torch.Size | None) -> bool:
    return stored is None or expected is None or stored == expected


def outside(naming: Naming, name: str) -> bool:
    """Whether a name in the file lies beside the model: it lacks the prefix of the others."""
    spelled = name if naming.plain else _unwrapped(name)
    return not spelled.startswith(naming.prefix)


def stem(naming: Naming) -> str:
    """The part of a prefix that is whole: up to its last dot."""
    return naming.prefix[: naming.prefix.rfind(".") + 1]


def steps(naming: Naming) -> list[str]:
    """The names that a prefix consists of."""
    return list(chain(part for part in stem(naming).split(".") if part))
