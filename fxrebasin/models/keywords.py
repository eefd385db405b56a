"""What comes after the `?` of a model's name: keyword arguments for what builds it."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from fxrebasin.errors import InputError

Keywords: TypeAlias = Mapping[str, Any]
Builder: TypeAlias = Callable[[], object]
"""Makes a model; everything that can be refused before was."""


def split_keywords(name: str) -> tuple[str, dict[str, Any]]:
    """A name and the keyword arguments behind its first `?`.

    Values are Python literals where they parse as such, and text where they do not.

    Args:
        name: such as `timm:resnet18?num_classes=10&in_chans=1`.

    Raises:
        InputError: a part is not of the form keyword=value, or a keyword comes twice.

    Example:
        >>> split_keywords("timm:resnet18?num_classes=10&global_pool=max")
        ('timm:resnet18', {'num_classes': 10, 'global_pool': 'max'})
    """
    base, mark, rest = name.partition("?")
    keywords: dict[str, Any] = {}
    for part in rest.split("&") if mark else ():
        keyword, equals, value = part.partition("=")
        if not equals or not keyword.isidentifier():
            raise InputError(
                f"{part!r} in {name!r} is no keyword argument; write NAME?keyword=value&other=value"
            )
        if keyword in keywords:
            raise InputError(f"{name!r} gives {keyword} twice")
        keywords[keyword] = _literal(value)
    return base, keywords


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def check_known(name: str, keywords: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that are not known, with the nearest that are.

    Args:
        name: of the model, for the message.
        keywords: that were given.
        known: all that there are.

    Raises:
        InputError: one is unknown.

    Example:
        >>> check_known("net", ["width"], ["width", "depth"])
    """
    known = list(known)
    for keyword in keywords:
        if keyword not in known:
            raise InputError(
                f"{name} has no keyword argument {keyword!r}{nearest(keyword, known, 1)}; "
                f"it has {', '.join(sorted(known)) or 'none'}"
            )


def nearest(word: str, known: Iterable[str], most: int = 3) -> str:
    """A hint at the known words that are most like one that is not; nothing when none is.

    Example:
        >>> nearest("num_clases", ["num_classes", "in_chans"])
        '; did you mean num_classes?'
    """
    close = difflib.get_close_matches(word, list(known), most)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def accepted(target: Callable[..., Any]) -> tuple[set[str], bool]:
    """The keywords that a callable names, and whether it takes others too.

    Example:
        >>> names, others = accepted(split_keywords)
        >>> names, others
        ({'name'}, False)
    """
    parameters = inspect.signature(target).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    others = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return {p.name for p in parameters if p.kind in by_name}, others
