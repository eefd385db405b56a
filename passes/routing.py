"""Models that look at data: what their other paths may do with what they hold.

A look is an operator whose answer is a Python number or has a shape that depends on data. What a
model does next may be another thing with other inputs. Runs on other inputs, on more rows and with
the answers of yes-or-no looks turned round reach what they can; state that none of them reads may
meet everything that is alive at a look or made after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxrebasin.labels import Value, pinned_value
from fxrebasin.passes.ledger import Ledger
from fxrebasin.passes.tracking import Track, refresh
from fxrebasin.provenance import Origin

_TURNED_AT_MOST = 16
"""Answers of one look that are turned round in a run, so that a loop comes to its end."""

_SPREAD = 3

_ELEMENTS_AT_MOST = 1 << 20
"""Elements of an input with more rows."""


class Looks:
    """The looks of a model at data, over several runs.

    Attributes:
        sources: for each line that looked, whether it asked for yes or no.
        in_doubt: what was alive at a look, or made after it.
    """

    def __init__(self) -> None:
        self.sources: dict[str, bool] = {}
        self.in_doubt: list[Value | Track] = []
        self._started = False
        self._turned: str | None = None
        self._left = 0

    def begin_run(self, turned: str | None = None) -> None:
        """A run starts, in which the answers at one line are turned round, if it is given.

        The line is an empty text for code that was not read from a file.
        """
        self._started = False
        self._turned, self._left = turned, _TURNED_AT_MOST

    def look(self, source: str, answer: Any, alive: Iterable[Value]) -> Any:
        """The answer to a look, or the opposite.

        Args:
            source: where the model looks.
            answer: what it finds.
            alive: all values that exist then; only asked for at the first look of a run.
        """
        yes_or_no = isinstance(answer, bool)
        self.sources[source] = yes_or_no and self.sources.get(source, True)
        if not self._started:
            self._started = True
            self.in_doubt += alive
        if yes_or_no and source == self._turned and self._left:
            self._left -= 1
            return not answer
        return answer

    def made(self, values: Iterable[Value | Track]) -> None:
        """Values that an operator made, or their tracks while they are not looked up."""
        if self._started:
            self.in_doubt += values

    def pin_doubtful(self, ledger: Ledger) -> None:
        """Give up all freedom of what state that was not read may meet."""
        reason = "may meet state that was not read, where the model looks at data"
        ledger.origins.append(Origin("look", "routing", next(iter(self.sources), "")))
        for item in self.in_doubt:
            value = refresh(item, ledger) if isinstance(item, Track) else item
            value = value if value.when_read is None else value.when_read()
            pinned = pinned_value(value.shape, reason)
            ledger.join([*pinned.fields, *value.fields])

    def notes(self, unread: Sequence[str]) -> list[str]:
        """What to say of a model that looks at data."""
        if not self.sources:
            return []
        first, *others = self.sources
        more = f" and {len(others)} more line{'s' * (len(others) > 1)}" if others else ""
        place = f"{first or 'a line that is not known'}{more}"
        found = [
            f"the model looks at data at {place}: what it does with inputs that take ways which "
            "none of the tried ones took was not seen"
        ]
        if unread:
            shown = ", ".join(unread[:5]) + (
                f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            )
            found.append(
                f"{shown} were not read, or not all of them, by any input that was tried: what is "
                "alive where the model looks at data, or made after that, is pinned"
            )
        return found


def unread_state(ledger: Ledger, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """State tensors of several elements of which not all were read."""
    return [
        name
        for name, shape in shapes.items()
        if torch.Size(shape).numel() > 1 and not _all_read(ledger, name, torch.Size(shape).numel())
    ]


def _all_read(ledger: Ledger, name: str, count: int) -> bool:
    views = [item.view for item in ledger.impositions.get(name, [])]
    views += [item.view for item in ledger.used_parts if item.state == name]
    if any(view.numel() == count and view.is_contiguous() for view in views):
        return True
    read = torch.zeros(count, dtype=torch.bool)
    for view in views:
        places = torch.arange(count).as_strided(view.shape, view.stride(), view.storage_offset())
        read[places.reshape(-1)] = True
    return bool(read.all())


def with_more_rows(values: Any, factor: int) -> Any:
    """Inputs whose first axes, if of one size, are `factor` times as long; None if they are not."""
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    rows = {tuple(tensor.shape[:1]) for tensor in tensors}
    too_many = any(tensor.numel() * factor > _ELEMENTS_AT_MOST for tensor in tensors)
    if len(rows) != 1 or rows == {()} or too_many:
        return None
    return pytree.tree_map_only(
        Tensor, lambda tensor: tensor.repeat(factor, *[1] * (tensor.ndim - 1)), values
    )


def spread(values: Any) -> Any:
    """Inputs whose floating-point tensors vary more, to reach what usual inputs seldom do."""

    def wider(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        mean = tensor.mean()
        return mean + _SPREAD * (tensor - mean)

    return pytree.tree_map_only(Tensor, wider, values)
