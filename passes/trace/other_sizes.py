"""Which other sizes of the open axes of a graph show whether it holds for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from fxrebasin.errors import InputError

Taken = TypeVar("Taken")

_CHANGES: tuple[Callable[[int], int], ...] = (
    lambda size: size + 1,
    lambda size: size - 1,
    lambda size: 2 * size,
    lambda size: size // 2,
)
_FARTHEST = 64
"""How many times as long as an example inputs get, where PyTorch relied on their not being so."""


class OtherSizes(Generic[Taken]):
    """Finds sizes that the model takes: others than the example's, and those that are special.

    A size is special if PyTorch relied on sizes not being so, and 1, along which values may be
    repeated. A graph has to be right for these as well, or the model has to refuse them.

    Args:
        known: the sizes of the example, by label.
        batch: the label of the batch, of which other sizes are tried in any case; or None.
        objection: PyTorch's reason against sizes, or None.
        taken: what comes of some sizes, or None if the model does not take them.

    Attributes:
        objections: PyTorch's reasons against sizes that are tried, in words.
    """

    def __init__(
        self,
        known: Mapping[str, int],
        batch: str | None,
        objection: Callable[[Mapping[str, int]], str | None],
        taken: Callable[[Mapping[str, int]], Taken | None],
    ) -> None:
        self.objections: list[str] = []
        self._known, self._batch, self._taken = known, batch, taken
        self._objection = objection

    def found(self) -> Iterator[Taken]:
        """What comes of the sizes that the model takes, besides some with another batch.

        Raises:
            InputError: the model takes no other size of an axis.
        """
        yield from self._other()
        yield from self._special()

    def _other(self) -> Iterator[Taken]:
        """All axes with other sizes; one after the other if the model does not take that."""
        labels = [label for label in self._known if label != self._batch]
        if not labels:
            return
        together = self._first_taken(*self._known)
        if together is not None:
            yield together
            return
        for label in labels:
            alone = self._first_taken(label)
            if alone is None:
                raise InputError(
                    f"{label}: the model takes no other size than {self._known[label]}"
                )
            yield alone

    def _first_taken(self, *labels: str) -> Taken | None:
        for change in _CHANGES:
            sizes = {label: change(self._known[label]) for label in labels}
            if min(sizes.values()) > 0 and self._against(sizes) is None:
                taken = self._taken(sizes)
                if taken is not None:
                    return taken
        return None

    def _special(self) -> Iterator[Taken]:
        for label, size in self._known.items():
            below = [n for n in (1, 2, size // 2, size - 1) if 0 < n < size]
            above = [n for n in (size + 1, self._end(label)) if n is not None]
            against = {n: self._against({label: n}) for n in (*below, *above)}
            special = [*[n for n in below if against[n]][:1], *[n for n in above if against[n]]]
            for n in dict.fromkeys(special):
                if n == 1 and label == self._batch:  # is tried in any case
                    self.objections += [reason for reason in [against[n]] if reason]
                    continue
                taken = self._taken({label: n})
                if taken is not None:
                    self.objections += [reason for reason in [against[n]] if reason]
                    yield taken

    def _end(self, label: str) -> int | None:
        """The least size above that PyTorch relied on not being there, if there is one."""
        known = self._known[label]
        right, wrong = known, 2 * known + 1
        while self._against({label: wrong}) is None:
            right, wrong = wrong, 2 * wrong
            if wrong > _FARTHEST * known:
                return None
        while wrong - right > 1:
            middle = (right + wrong) // 2
            if self._against({label: middle}) is None:
                right = middle
            else:
                wrong = middle
        return wrong

    def _against(self, sizes: Mapping[str, int]) -> str | None:
        return self._objection({**self._known, **sizes})
