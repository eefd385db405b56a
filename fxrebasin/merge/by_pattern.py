"""Values that differ from tensor to tensor, by patterns of their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from fxrebasin.errors import InputError
from fxrebasin.wording import listed

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class ByPattern(Generic[T_co]):
    """A value for every tensor.

    Args:
        everywhere: where no pattern fits.
        rules: pairs of a pattern, as file names have them, and a value; the last that fits counts.
            A pattern that begins with `"class:"` is one of names of permutation classes, and fits
            all tensors that such a class moves.
        classes: names of the classes that move a tensor, by its name.

    Example:
        >>> weights = ByPattern(0.5, (("layer4.*", 0.7), ("*.bias", 0.0)))
        >>> [weights.of(name) for name in ("conv1.weight", "layer4.0.weight", "layer4.0.bias")]
        [0.5, 0.7, 0.0]
    """

    everywhere: T_co
    rules: tuple[tuple[str, T_co], ...] = ()
    classes: Mapping[str, Collection[str]] = field(default_factory=dict)

    def of(self, name: str) -> T_co:
        """The value for a tensor.

        Args:
            name: of the tensor.
        """
        fitting = [value for pattern, value in self.rules if self._fits(pattern, name)]
        return fitting[-1] if fitting else self.everywhere

    def values(self) -> tuple[T_co, ...]:
        """All values, the one for everywhere first."""
        return (self.everywhere, *(value for _, value in self.rules))

    def check(
        self, names: Collection[str], label: str, tied: Mapping[str, str] | None = None
    ) -> None:
        """Refuse patterns that fit nothing, which are misspelt.

        Args:
            names: of all tensors.
            label: what messages call the values.
            tied: other names of these, which nothing goes by, with the name that it goes by.

        Raises:
            InputError: a pattern fits no tensor.
        """
        for pattern, _ in self.rules:
            if not any(self._fits(pattern, name) for name in names):
                other = next((name for name in tied or {} if self._fits(pattern, name)), None)
                if tied is not None and other is not None:
                    raise InputError(
                        f"{label}: {other} is one tensor with {tied[other]}, by which it goes; "
                        f"{pattern!r} fits nothing else"
                    )
                raise InputError(
                    f"{label}: no tensor fits {pattern!r}; there are: {listed(list(names), 5)}"
                )

    def _fits(self, pattern: str, name: str) -> bool:
        if pattern.startswith("class:"):
            wanted = pattern.removeprefix("class:")
            return any(_same(own, wanted) for own in self.classes.get(name, ()))
        return _same(name, pattern)


def _same(name: str, pattern: str) -> bool:
    """Names of classes hold brackets, which are special in patterns."""
    return name == pattern or fnmatchcase(name, pattern)
