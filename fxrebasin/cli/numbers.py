"""Numbers on the command line that may differ from tensor to tensor: `[PATTERN=]NUMBERS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from fxrebasin.errors import InputError
from fxrebasin.merge.by_pattern import ByPattern

T = TypeVar("T")


def weights(
    texts: Sequence[str], count: int, classes: Mapping[str, Sequence[str]]
) -> ByPattern[tuple[float, ...]] | None:
    """How much each model counts; None if nothing was said.

    Args:
        texts: `0.5,0.5`, or `layer4.*=0.3,0.7`.
        count: of the models.
        classes: that move a tensor, by its name.

    Raises:
        InputError: a text is no list of as many numbers.
    """
    rules = [_rule("--weights", text) for text in texts]
    wrong = [text for text, (_, values) in zip(texts, rules, strict=True) if len(values) != count]
    if wrong:
        raise InputError(
            f"--weights {wrong[0]}: {count} checkpoints need {count} numbers with commas between "
            "them; the first folder is only the MODEL where more than two are named: write it "
            "twice to merge it as well"
        )
    return _patterned(rules, (1.0,) * count, classes) if rules else None


def single(
    option: str, texts: Sequence[str], default: float, classes: Mapping[str, Sequence[str]]
) -> ByPattern[float]:
    """One number, which may differ from tensor to tensor.

    Args:
        option: that it was given with.
        texts: `0.5`, or `layer4.*=0.5`.
        default: where nothing was said.
        classes: that move a tensor, by its name.

    Raises:
        InputError: a text is no number.
    """
    rules = [_rule(option, text) for text in texts]
    if any(len(values) != 1 for _, values in rules):
        raise InputError(f"{option} takes one number, or PATTERN=NUMBER several times")
    return _patterned([(pattern, values[0]) for pattern, values in rules], default, classes)


def _patterned(
    rules: Sequence[tuple[str, T]], default: T, classes: Mapping[str, Sequence[str]]
) -> ByPattern[T]:
    everywhere = [value for pattern, value in rules if not pattern]
    own = tuple((pattern, value) for pattern, value in rules if pattern)
    return ByPattern(everywhere[-1] if everywhere else default, own, classes)


def _rule(option: str, text: str) -> tuple[str, tuple[float, ...]]:
    pattern, _, numbers = text.rpartition("=")
    try:
        return pattern, tuple(float(number) for number in numbers.split(","))
    except ValueError as error:
        raise InputError(
            f"{option} {text}: {numbers!r} is no list of numbers; write such as 0.5,0.5, or "
            "'layer4.*=0.3,0.7' for some tensors"
        ) from error
